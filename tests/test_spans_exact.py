"""Spans of real files, decoded once, against separate requests about the frames of each: the same tokens."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import media_films as films
import numpy as np
import pytest
from engine_oracle import Oracle, limits, make_oracle
from PIL import Image

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.settings import RunOptions

QUESTIONS = ("What is shown?", "How many are there! Count them one by one, please.")
GENERATION = GenerationOptions(max_new_tokens=6)
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
    oracle: Oracle, path: Path, sampling: SamplingOptions, spans: SpanOptions
) -> tuple[dict[RowOf, Row], dict[RowOf, tuple[int, ...]]]:
    """The rows of a run, and the new tokens of each."""
    job = Job(str(path), path.name, tuple(Question(Prompt(text), str(path)) for text in QUESTIONS))
    engine = HeardEngine(oracle.engine(limits(4)))
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
