"""Evidence whose spans are scenes: told while frames come, and equal to runs on the video without each of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_films import film, rows, run
from engine_doubles import ArrayFrames
from engine_oracle import QUESTIONS, Oracle, limits, make_oracle, request
from scene_films import scene_film
from test_evidence import CLOSE, embedded, explained, likelihood
from test_spans_exact import CLIP_THRESHOLD, LENGTHS, clip_engine
from test_thumbnails import CountedMaker, in_chunks

from llava_mini_cli.config import (
    MOST_PIECES,
    EvidenceOptions,
    GenerationOptions,
    ModelOptions,
    SamplingOptions,
    SpanOptions,
)
from llava_mini_cli.engine.request import Answer, FeatureChunk, Window
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.evidence import ListedPieces, ScenePieces
from llava_mini_cli.pipelines.scenes import BY_CLIP, Scenes
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.thumbnails import WindowThumbnails

ANY_LENGTH = SpanOptions(min_scene_len=0.0)
VIDEO = ClipInfo("a.mp4", "video", 64, 36, 100.0, 100, 1.0)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@dataclass
class CutFrames(ArrayFrames):
    """Frames of which each chunk brings the cuts up to its last one, and maybe some that lie further on."""

    pixels: Any
    cuts: Sequence[float]
    told: list[float]  # grows
    ahead: float = 0.0  # seconds
    size: int = 3
    not_ready: int = 0
    error = None

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in super().__iter__():
            self._tell(float(chunk.times[-1]) + self.ahead)
            yield chunk
        self._tell(inf)

    def _tell(self, until: float) -> None:
        self.told += [cut for cut in self.cuts[len(self.told) :] if cut <= until]


def check(oracle: Oracle, found: Answer, pixels: Any, question: str, bounds: Sequence[float]) -> None:
    """The evidence of a window from and to the first and last bound, against its frames without each piece."""
    evidence = found.evidence
    assert evidence is not None
    times = np.arange(len(pixels))
    inside = (times >= bounds[0]) & (times < bounds[-1])
    filled = [(start, end) for start, end in pairwise(bounds) if ((times >= start) & (times < end)).any()]
    assert [(part.start, part.end) for part in evidence.parts] == filled
    for (start, end), part in zip(filled, evidence.parts, strict=True):
        others = pixels[inside & ~((times >= start) & (times < end))]
        asked = embedded(oracle, others if len(others) else None, question, is_video=True)
        assert part.score == pytest.approx(likelihood(oracle, asked, found), **CLOSE)


@pytest.mark.parametrize("seed", range(6))
def test_a_scene_left_out_is_a_run_on_the_video_without_it(oracle: Oracle, seed: int) -> None:
    """Of the whole and of windows; cuts lie between frames, on frames, and where no frame is looked at."""
    chance = random.Random(seed)
    pixels = oracle.video(11, seed)
    cuts = sorted({chance.choice([chance.randint(1, 10), chance.uniform(0, 11)]) for _ in range(chance.randint(0, 8))})
    told: list[float] = []
    frames = CutFrames(pixels, cuts, told, ahead=chance.choice([0.0, 2.0]), size=chance.randint(1, 5))
    cut = ScenePieces(0.0, 11.0, Scenes(told, ANY_LENGTH, 0.0, 11.0))
    windows = (Window(), Window(2.5, 7), Window(6))
    asked = replace(request("v", pixels, QUESTIONS[:2], windows=windows, cut=cut), frames=frames)
    found = explained(oracle.engine(limits(chance.randint(1, 4))), asked)
    for (_, window, prompt), said in found.items():
        start, end = windows[window].start, min(windows[window].end, 11.0)
        bounds = [start, *(one for one in cuts if start < one < end), end]
        check(oracle, said, pixels, QUESTIONS[prompt], bounds)


def test_more_scenes_than_are_left_out_are_no_evidence(oracle: Oracle) -> None:
    """Found out on the way; what was summed is let go."""
    pixels = oracle.video(6, 1)
    told: list[float] = []
    frames = CutFrames(pixels, [3 + 2 * number / MOST_PIECES for number in range(MOST_PIECES)], told, size=2)
    cut = ScenePieces(0.0, 6.0, Scenes(told, ANY_LENGTH, 0.0, 6.0))
    (found,) = oracle.engine(limits(2)).run([replace(request("v", pixels, QUESTIONS[:1], cut=cut), frames=frames)])
    assert isinstance(found, Answer)
    assert found.evidence is None
    told.pop()  # one fewer is as many as are left out
    assert len(ScenePieces(0.0, 6.0, Scenes(told, ANY_LENGTH, 0.0, 6.0)).bounds(0.0, inf)) == MOST_PIECES + 1


class StoredFrames(ArrayFrames):
    """Frames whose features and embeddings were stored: every other scene of two frames looks the other way."""

    def __init__(self, features: Any, embeddings: Any) -> None:
        super().__init__(features)
        self.embeddings = embeddings

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.pixels), 3):
            part = slice(start, start + 3)
            times = np.arange(start, start + len(self.pixels[part]), dtype=np.float64)
            yield FeatureChunk(self.pixels[part], times, self.embeddings[part])


def test_scenes_of_stored_frames_are_told_apart_by_their_embeddings(oracle: Oracle) -> None:
    features = np.random.default_rng(0).normal(size=(8, 1, 16, oracle.model.config.mm_hidden_size)).astype(np.float32)
    embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]] * 2, np.float16)
    cut = ScenePieces(0.0, 8.0, Scenes(None, ANY_LENGTH, 0.0, 8.0))
    asked = replace(request("v", oracle.video(8, 0), QUESTIONS[:2], cut=cut), frames=StoredFrames(features, embeddings))
    for said in explained(oracle.engine(limits(2)), asked).values():
        assert [(one.start, one.end) for one in said.evidence.parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]


def ask(
    engine: Any, path: Path, sampling: SamplingOptions, spans: SpanOptions, listed: tuple[TimeSpan, ...] = ()
) -> list[Row]:
    job = Job(str(path), path.name, (Question(Prompt("What is shown?"), str(path)),), spans=listed)
    evidence, generation = EvidenceOptions(MOST_PIECES, scenes=True), GenerationOptions(max_new_tokens=4)
    options = RunOptions(ModelOptions("tiny"), sampling, generation, spans=spans, evidence=evidence)
    found = list(answer([job], engine, options.with_scores()))
    assert {row.error for row in found} == {None}
    return found


def bounds_of(row: Row) -> list[tuple[float, float]]:
    parts: Any = row.kept["evidence"]
    return sorted((part["start"], part["end"]) for part in parts)


@pytest.mark.parametrize("by", ["decoder", "clip"])
def test_the_spans_are_the_scenes_that_rows_are_made_of(oracle: Oracle, tmp_path: Path, by: str) -> None:
    """Whatever finds them; a row of a scene has that scene alone."""
    path = scene_film(tmp_path / "a.mp4", LENGTHS)
    sampling = SamplingOptions(fps=2.0, decoder="auto" if by == "decoder" else "decord")
    found = SpanOptions(scene_threshold=10.0 if by == "decoder" else CLIP_THRESHOLD, min_scene_len=1.0)
    (whole,) = ask(clip_engine(oracle), path, sampling, found)
    scenes = ask(clip_engine(oracle), path, sampling, replace(found, scenes=True, whole=True))
    of_rows = sorted((row.start or 0.0, row.end or 0.0) for row in scenes if row.segment)
    assert len(of_rows) > 2
    assert bounds_of(whole) == of_rows
    assert whole.warning == (None if by == "decoder" else f"evidence of {BY_CLIP}")
    for row in scenes:
        assert bounds_of(row) == (of_rows if row.segment is None else [(row.start, row.end)])
        assert (row.warning or "").count("CLIP") == (by == "clip" and row.segment is not None)


def test_the_scenes_of_a_list_need_not_be_found(oracle: Oracle, tmp_path: Path) -> None:
    """Their spans meet where they begin and end; the rows are those of the list and of the whole."""
    path = scene_film(tmp_path / "a.mp4", LENGTHS)
    listed = (TimeSpan(1, 1.0, 4.0, ""), TimeSpan(2, 5.0, None, ""))
    spans = SpanOptions(scenes_from="list.csv", whole=True)
    found = {row.segment: row for row in ask(oracle.engine(limits()), path, SamplingOptions(), spans, listed)}
    assert bounds_of(found[None]) == [(0.0, 1.0), (1.0, 4.0), (4.0, 5.0), (5.0, 13.6)]
    assert (bounds_of(found[1]), bounds_of(found[2])) == ([(1.0, 4.0)], [(5.0, 13.6)])


@pytest.mark.parametrize(
    ("times", "window", "expected"),
    [
        ([], (0, inf), [0, 9]),
        ([0.0, 2.0, 9.0, 12.0], (0, inf), [0, 2, 9]),
        ([1.0, 2.0, 3.0], (1, 3), [1, 2, 3]),
        ([1.0, 2.0, 3.0], (2, 3), [2, 3]),
        ([1.0], (9, inf), []),
        ([number / MOST_PIECES for number in range(MOST_PIECES + 1)], (0, 1), "all"),
        ([number / MOST_PIECES for number in range(MOST_PIECES + 1)], (0, inf), []),
    ],
)
def test_a_window_is_cut_where_a_list_says(times: list[float], window: tuple[float, float], expected: Any) -> None:
    expected = times if expected == "all" else expected
    assert ListedPieces(0.0, 9.0, times).bounds(*window) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_every_scene_has_a_frame_of_its_middle_third(seed: int) -> None:
    """Or the one in its middle, where its end is known before."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(20, 400))
    cuts = sorted(float(one) for one in generator.uniform(0, count, int(generator.integers(0, 9))))
    told: list[float] = []
    cut = ScenePieces(0.0, float(count), Scenes(told, ANY_LENGTH, 0.0, float(count)))
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, [Window(), Window(10.0, 15.0)], 1, (0.0, float(count)), cut)
        for chunk in in_chunks([float(time) for time in range(count)], generator):
            told += [one for one in cuts[len(told) :] if one <= chunk.times[-1]]
            watcher.saw(chunk)
            assert all(len(one._kept) <= 2 for held in watcher._pieces.values() for one in held.values())
        for index, (first, last) in enumerate(((0.0, float(count)), (10.0, 15.0))):
            for start, end in pairwise([first, *(one for one in cuts if first < one < last), last]):
                kept, own = watcher.of_piece(index, start, end), [one for one in range(count) if start <= one < end]
                assert (kept is None) == (not own), (start, end)
                if kept is not None:
                    third = (end - start) / 3
                    assert start + third - 2 <= kept.time <= end - third + 2
            watcher.answered(index)
        assert watcher._pieces == {}


# On the command line, with the demo model

COMMAND = ("What appears briefly?", "-m", "demo", "-q", "--evidence", "9", "--evidence-spans", "scenes")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of three scenes: 4, 2 and 5 seconds."""
    path = tmp_path_factory.mktemp("shown") / "a.mp4"
    film(path, ["blue square"] * 4 + ["red circle"] * 2 + ["yellow cross"] * 5)
    return path


def test_a_row_lists_scenes_and_goes_on_with_the_same_ones_alone(shown: Path, tmp_path: Path) -> None:
    low = ("--scene-threshold", "1")
    (row,) = rows(run("ask", shown, *COMMAND, *low))
    assert sorted((part["start"], part["end"]) for part in row["evidence"]) == [(0, 4), (4, 6), (6, 11)]
    to = ("-o", tmp_path / "a.jsonl")
    assert run("ask", shown, *COMMAND, *low, *to).exit_code == 0
    for changed, words in (
        (("scenes",), "--scene-threshold was 1, is 10"),
        (("scenes", *low, "--min-scene-len", "3s"), "--min-scene-len was 2, is 3"),
        (("scenes", *low, "--decoder", "decord"), "--decoder was ffmpeg, is decord"),
        (("10s",), "--evidence-spans was scenes, is 10s"),
    ):
        done = run("ask", shown, *COMMAND[:-1], *changed, *to)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_each_scene_has_its_picture(shown: Path, tmp_path: Path) -> None:
    command = ("--scene-threshold", "1", "-f", "jsonl", "--thumbnails", tmp_path / "pictures")
    (row,) = rows(run("ask", shown, *COMMAND, *command, "-o", "-"))
    names = [part["thumbnail"] for part in row["evidence"]]
    assert len(set(names)) == 3
    assert None not in names


def test_an_archive_cuts_where_clip_finds_scenes(films: Path, archive: Path) -> None:
    command = ("ask", "--index", archive, "What colour is the shape?", *COMMAND[1:4], "--min-scene-len", "0")
    expected: dict[str, list[float]] = {}
    for row in rows(run(*command, "--scenes")):
        expected.setdefault(row["file_name"], []).append(row["start"])
    found = rows(run(*command, *COMMAND[4:]))
    cut = {row["file_name"]: sorted(part["start"] for part in row["evidence"]) for row in found}
    assert cut == {name: sorted(starts) for name, starts in expected.items()}
    assert {name: len(starts) for name, starts in cut.items()} == {"red.mp4": 2, "green.mp4": 1, "yellow.mp4": 3}
    assert {row["warning"] for row in found} == {f"evidence of {BY_CLIP}"}
