"""Spans of real files, decoded once, against separate requests about the frames of each: the same tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pytest
import torch
from engine_oracle import Oracle, limits, make_oracle
from PIL import Image
from scene_films import cuts_of, scene_film

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import Clip, FrameChunk
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.scenes import BY_CLIP
from llava_mini_cli.pipelines.settings import RunOptions

QUESTIONS = ("What is shown?", "How many are there! Count them one by one, please.")
GENERATION = GenerationOptions(max_new_tokens=6)
CLIP_THRESHOLD = 0.5  # at which CLIP of random weights tells some of the colours apart
Said = tuple[tuple[int, ...], int]  # new tokens and frames seen
RowOf = tuple[int | None, str]  # segment and prompt


class Frames:
    """Frames that were decoded before, as a source."""

    def __init__(self, chunk: FrameChunk) -> None:
        self.chunk = chunk

    def __iter__(self) -> Iterator[FrameChunk]:
        yield self.chunk

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


class HeardEngine:
    """An engine whose answers are kept, with the tokens that rows do not have."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.heard: list[Answer] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def step(self) -> list[Answer | Failure]:
        outcomes = self.engine.step()
        self.heard += [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        return outcomes


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("checkpoint") / "model")


def uneven(folder: Path) -> Path:
    """Half of it at 25 frames a second, half at 5."""
    fast, slow = folder / "fast.mp4", folder / "slow.mp4"
    films.film(fast, 75, *films.H264, fps="25")
    films.film(slow, 15, *films.H264, fps="5")
    (folder / "list.txt").write_text(f"file '{fast}'\nfile '{slow}'\n")
    films.ffmpeg("-f", "concat", "-safe", "0", "-i", folder / "list.txt", "-c", "copy", folder / "uneven.mkv")
    return folder / "uneven.mkv"


def still(folder: Path) -> Path:
    Image.fromarray(films.numbered(5)).save(folder / "still.png")
    return folder / "still.png"


MEDIA: dict[str, tuple[Callable[[Path], Path], float]] = {
    "still": (still, 1.0),
    "mp4": (lambda folder: films.film(folder / "a.mp4", 200, *films.B_FRAMES), 1.0),
    "uneven": (uneven, 1.0),
    "late": (lambda folder: films.film(folder / "late.mkv", 200, *films.H264, "-output_ts_offset", "3600"), 1.0),
    "slow": (lambda folder: films.film(folder / "s.mp4", 240, *films.H264), 0.7),
    "fast": (lambda folder: films.film(folder / "f.mp4", 150, *films.H264), 2.5),
}


def ask(
    oracle: Oracle, path: Path, sampling: SamplingOptions, spans: SpanOptions, of: Engine | None = None
) -> tuple[dict[RowOf, Row], dict[RowOf, tuple[int, ...]]]:
    """The rows of a run, and the new tokens of each."""
    job = Job(str(path), path.name, tuple(Question(Prompt(text), str(path)) for text in QUESTIONS))
    engine = HeardEngine(of or oracle.engine(limits(4)))
    options = RunOptions(ModelOptions("tiny"), sampling, GENERATION, spans=spans)
    rows = list(answer([job], engine, options))  # type: ignore[arg-type]
    assert {row.error for row in rows} == {None}
    found = {(row.segment, row.prompt): row for row in rows}
    assert len(found) == len(rows) == len(engine.heard)
    segments: list[int | None] = [None] if spans.whole or not spans.wanted else []
    segments += sorted({segment for segment, _ in found if segment is not None})
    return found, {(segments[one.window_index], QUESTIONS[one.prompt_index]): one.token_ids for one in engine.heard}


def alone(oracle: Oracle, kind: str, pixels: np.ndarray, times: np.ndarray, questions: Sequence[str]) -> list[Said]:
    """The answers about some frames that are a medium of their own."""
    asked = Request("one", kind, Frames(FrameChunk(pixels, times)), tuple(questions), GENERATION)  # type: ignore[arg-type]
    outcomes = [one for one in oracle.engine(limits()).run([asked]) if isinstance(one, Answer)]
    return [(one.token_ids, one.frame_count) for one in sorted(outcomes, key=lambda one: one.prompt_index)]


@pytest.mark.parametrize("name", MEDIA)
def test_spans_and_the_whole_are_answered_like_the_frames_alone(oracle: Oracle, tmp_path: Path, name: str) -> None:
    make, fps = MEDIA[name]
    path, sampling = make(tmp_path), SamplingOptions(fps=fps)
    engine = oracle.engine(limits())
    with open_clip(path, sampling, frame_size=engine.frame_size) as clip:
        chunks, info = list(clip), clip.info
    times, pixels = np.concatenate([one.times for one in chunks]), np.concatenate([one.pixels for one in chunks])
    rows, tokens = ask(oracle, path, sampling, SpanOptions(window=2.5, stride=1.5, whole=True))
    segments = sorted({segment for segment, _ in rows if segment is not None})
    assert segments == list(range(1, len(segments) + 1))
    assert len(segments) == (1 if name == "still" else 1 + np.ceil((round(info.duration_s or 0, 6) - 2.5) / 1.5))
    parts = {None: np.ones(len(times), bool)} | {
        one: (times >= (one - 1) * 1.5) & (times < (one - 1) * 1.5 + 2.5) for one in segments
    }
    for segment, inside in parts.items():
        said = alone(oracle, info.kind, pixels[inside], times[inside], QUESTIONS)
        for question, (ids, frames) in zip(QUESTIONS, said, strict=True):
            row = rows[segment, question]
            assert (tokens[segment, question], row.frame_count) == (ids, frames)
            if segment is None or info.kind == "image":
                assert (row.start, row.end) == (None, None)
            else:
                end = info.duration_s if segment == segments[-1] else (segment - 1) * 1.5 + 2.5
                assert (row.start, row.end) == ((segment - 1) * 1.5, pytest.approx(end))
    plain, _ = ask(oracle, path, sampling, SpanOptions())
    assert {row.prompt: row.text for row in plain.values()} == {text: rows[None, text].text for text in QUESTIONS}


def test_rows_of_a_table_are_answered_like_the_frames_alone(oracle: Oracle, tmp_path: Path) -> None:
    """Whatever other rows share their pass, and though the frames around them are not decoded."""
    path, sampling = films.film(tmp_path / "a.mp4", 300, *films.B_FRAMES), SamplingOptions(fps=2.0)
    pixels, times, _ = films.read(path, fps=2.0)
    with open_clip(path, sampling, frame_size=oracle.engine(limits()).frame_size) as clip:
        pixels = np.concatenate([chunk.pixels for chunk in clip])
    spans = [(1.0, 4.0, 0), (3.0, 6.5, 1), (3.0, 6.5, 0), (5.0, 5.6, 1)]
    asked = tuple(
        Question(Prompt(QUESTIONS[which]), f"{path}", key=f"{number}", span=TimeSpan(number, start, end, ""))
        for number, (start, end, which) in enumerate(spans)
    )
    options = RunOptions(ModelOptions("tiny"), sampling, GENERATION)
    job = Job(str(path), path.name, asked)
    for part in (job, *(job._replace(questions=(one,)) for one in asked)):
        engine = HeardEngine(oracle.engine(limits(3)))
        rows = list(answer([part], engine, options))  # type: ignore[arg-type]
        assert len(rows) == len(part.questions) == len(engine.heard)
        for row, heard in zip(rows, engine.heard, strict=True):
            start, end, which = spans[int(row.fingerprint)]
            inside = (times >= start) & (times < end)
            ((ids, frames),) = alone(oracle, "video", pixels[inside], times[inside], [QUESTIONS[which]])
            assert (heard.token_ids, row.frame_count) == (ids, frames)
            assert (row.segment, row.start, row.end) == (int(row.fingerprint), start, end)


def test_spans_begin_where_the_video_is_asked_about(oracle: Oracle, tmp_path: Path) -> None:
    path = films.film(tmp_path / "a.mp4", 300, *films.H264)
    rows, _ = ask(oracle, path, SamplingOptions(start=3.0, end=8.5), SpanOptions(every=2.0))
    first = [row for row in rows.values() if row.prompt == QUESTIONS[0]]
    assert [(row.segment, row.start, row.end, row.frame_count) for row in first] == [
        (1, 3.0, 5.0, 2), (2, 5.0, 7.0, 2), (3, 7.0, 8.5, 1),
    ]  # fmt: skip


# Scenes

LENGTHS = (25, 33, 17, 40, 21)  # frames
SCENES: dict[str, tuple[Callable[[Path], Path], float, SamplingOptions]] = {
    "still": (still, 10, SamplingOptions()),
    "mp4": (lambda folder: scene_film(folder / "a.mp4", LENGTHS, *films.B_FRAMES), 10, SamplingOptions()),
    "late": (
        lambda folder: scene_film(folder / "late.mkv", LENGTHS, *films.H264, "-output_ts_offset", "3600"),
        10,
        SamplingOptions(),
    ),
    "slow": (lambda folder: scene_film(folder / "s.mp4", LENGTHS), 10, SamplingOptions(fps=0.7)),
    "fast": (lambda folder: scene_film(folder / "f.mp4", LENGTHS, fps="15"), 15, SamplingOptions(fps=6.5)),
    "later": (lambda folder: scene_film(folder / "p.mp4", LENGTHS), 10, SamplingOptions(start=3.0, end=11.0)),
    "clip": (lambda folder: scene_film(folder / "c.mp4", LENGTHS), 10, SamplingOptions(fps=2.0, decoder="decord")),
}


def clip_engine(oracle: Oracle) -> Engine:
    """An engine with an image projection, which is random as all of its weights are."""
    width = oracle.model.config.vision_config.hidden_size
    projection = torch.randn(8, width, generator=torch.Generator().manual_seed(1))
    prompts = oracle.processor.prompts("trained")
    return Engine(oracle.model, oracle.processor, prompts, limits(4), image_projection=projection)


@pytest.mark.parametrize("name", SCENES)
def test_scenes_and_the_whole_are_answered_like_the_frames_alone(oracle: Oracle, tmp_path: Path, name: str) -> None:
    make, rate, sampling = SCENES[name]
    path = make(tmp_path)
    with open_clip(path, sampling, frame_size=oracle.engine(limits()).frame_size) as clip:
        chunks, info = list(clip), clip.info
    times, pixels = np.concatenate([one.times for one in chunks]), np.concatenate([one.pixels for one in chunks])
    threshold = 10.0 if name != "clip" else CLIP_THRESHOLD
    spans = SpanOptions(scenes=True, scene_threshold=threshold, min_scene_len=1.0, whole=True)
    scored = replace(sampling, scene_threshold=threshold)
    rows, tokens = ask(oracle, path, scored, spans, clip_engine(oracle))
    first, last = sampling.start or 0.0, min(sampling.end or np.inf, info.duration_s or 0.0)
    starts = [row.start for (segment, text), row in sorted(rows.items(), key=str) if segment and text == QUESTIONS[0]]
    if name == "still":
        assert starts == [None]
    elif name == "clip":
        assert len(starts) > 2
        assert set(starts) - {0.0} <= set(times.round(6))
    else:
        cuts = [cut / rate for cut in cuts_of(LENGTHS)]
        assert starts == pytest.approx([first, *(cut for cut in cuts if first < cut < last)])
    bounds = [*starts, last]
    for segment in (None, *range(1, len(starts) + 1)):
        start, end = (-1.0, np.inf) if segment is None or name == "still" else bounds[segment - 1 : segment + 1]
        inside = (times >= (start or 0.0) - 1e-6) & (times < (end or 0.0) - 1e-6)
        said = alone(oracle, info.kind, pixels[inside], times[inside], QUESTIONS)
        for question, (ids, frames) in zip(QUESTIONS, said, strict=True):
            row = rows[segment, question]
            assert (tokens[segment, question], row.frame_count) == (ids, frames)
            assert row.warning == (BY_CLIP if name == "clip" and segment is not None else None)
            if segment is not None and name != "still":
                assert (row.start, row.end) == pytest.approx((start, end), abs=1e-6)
    plain, _ = ask(oracle, path, sampling, SpanOptions())
    assert {row.prompt: row.text for row in plain.values()} == {text: rows[None, text].text for text in QUESTIONS}


class BreakingClip(Clip):
    """Frames of a film, which breaks behind some of them."""

    def __init__(self, clip: Clip, frames: int) -> None:
        self.info, self.warnings, self.cuts = clip.info, clip.warnings, clip.cuts
        self._clip, self._frames = clip, frames

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            for number in range(len(chunk.times)):
                if self._frames == 0:
                    raise MediaError("decoder_killed", "no more")
                self._frames -= 1
                yield FrameChunk(chunk.pixels[number : number + 1], chunk.times[number : number + 1])

    def close(self) -> None:
        self._clip.close()


@pytest.mark.parametrize("whole", [False, True])
def test_a_video_that_breaks_has_the_scenes_before_and_one_error(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", 400)
    path = scene_film(tmp_path / "a.mp4", LENGTHS)
    spans = SpanOptions(scenes=True, min_scene_len=0.0, whole=whole)
    job = Job(str(path), path.name, tuple(Question(Prompt(text), str(path)) for text in (*QUESTIONS, "x " * 400)))
    options = RunOptions(ModelOptions("tiny"), SamplingOptions(scene_threshold=10.0), GENERATION, spans=spans)

    def breaking(path: str, options: SamplingOptions, **more: Any) -> Clip:
        return BreakingClip(open_clip(path, options, **more), 8)  # the last of them at 7.8 s, in the fourth scene

    rows = list(answer([job], oracle.engine(limits(1)), options, RunParts(breaking)))
    found = sorted((row.segment or 0, row.start, row.end, row.error_type) for row in rows if row.prompt == QUESTIONS[1])
    assert found == [
        *([(0, None, None, "decoder_killed")] if whole else []),
        (1, 0.0, 2.5, None), (2, 2.5, 5.8, None), (3, 5.8, 7.5, None), (4, 7.5, 13.6, "decoder_killed"),
    ]  # fmt: skip
    long = [(row.segment or 0, row.error_type) for row in rows if row.prompt not in QUESTIONS]
    assert sorted(long) == [(number, "too_long") for number in range(0 if whole else 1, 5)]
    assert len(rows) == 3 * len(found)


def test_without_embeddings_scenes_of_frames_that_lie_far_apart_are_not_known(oracle: Oracle, tmp_path: Path) -> None:
    path = scene_film(tmp_path / "a.mp4", (20, 20))
    job = Job(str(path), path.name, (Question(Prompt("What?"), str(path)),))
    sampling, spans = SamplingOptions(decoder="decord", scene_threshold=10.0), SpanOptions(scenes=True)
    options = RunOptions(ModelOptions("tiny"), sampling, GENERATION, spans=spans)
    (row,) = answer([job], oracle.engine(limits()), options)
    assert (row.segment, row.error_type, row.error_stage) == (1, "no_scenes", "decode")
    assert "no projection; --scenes-from takes a list" in (row.error or "")
