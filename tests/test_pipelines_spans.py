"""Rows of spans: how many there are, which are there already, and that very many cost no more than their number."""

import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from cli_doubles import EchoEngine, MadeClip, open_made_clip

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines import spans as spans_module
from llava_mini_cli.pipelines.answer import answer, answer_into
from llava_mini_cli.pipelines.forecast import forecast
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import Grid, SpanWindows
from llava_mini_cli.pipelines.tally import Tally

OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(), GenerationOptions(), spans=SpanOptions(every=2.0))
WHOLE_TOO = replace(OPTIONS, spans=SpanOptions(every=2.0, whole=True))


class SpanEngine(EchoEngine):
    """Answers each prompt about each window with the times of its frames, in another order each time."""

    def step(self) -> list[Answer | Failure]:
        request = self._waiting.pop(0)
        times = [float(one) for chunk in request.frames for one in chunk.times]
        request.frames.close()
        outcomes: list[Answer | Failure] = []
        for index, window in enumerate(request.windows):
            seen = [one for one in times if window.start <= one < window.end]
            for prompt in set(range(len(request.prompts))) - window.without:
                if seen and "fail" not in request.prompts[prompt]:
                    text = f"{seen[0]:g}-{seen[-1]:g}"
                    outcomes.append(Answer(request.key, prompt, text, (1,), "stop", len(seen), 5, 1, 1, index))
                else:
                    kind = "empty" if not seen else "corrupt"
                    outcomes.append(Failure(request.key, prompt, "decode", kind, "why", index))
        random.Random(len(outcomes)).shuffle(outcomes)
        return outcomes


def jobs(folder: Path, *questions: str, **contents: str) -> Iterator[Job]:
    for name, text in contents.items():
        path = folder / f"{name}.mp4"
        if not path.exists():
            path.write_text(text)
        yield Job(str(path), path.name, tuple(Question(Prompt(one), str(path)) for one in questions or ("What?",)))


def run(
    made: Iterator[Job], output: Path, options: RunOptions = OPTIONS, *, retry: bool = False
) -> tuple[Tally, list[SpanEngine]]:
    engines: list[SpanEngine] = []

    def load(model: ModelOptions) -> SpanEngine:
        engines.append(SpanEngine(model))
        return engines[-1]

    parts = RunParts(open_made_clip)
    target = OutputOptions.parse(str(output), None, retry_errors=retry)
    answer_into(lambda: open_output(target, options.run_info()), made, load, options, parts)
    return parts.tally, engines


def rows_in(output: Path) -> list[tuple[str, str, int | None, str | None]]:
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return sorted((one["file_name"], one["prompt"], one["segment"] or 0, one["text"]) for one in rows)


# How many there are


@pytest.mark.parametrize(
    ("begin", "end", "length", "step", "expected"),
    [
        (0, 7, 2, 2, [(0, 2), (2, 4), (4, 6), (6, 7)]),
        (0, 6, 2, 2, [(0, 2), (2, 4), (4, 6)]),
        (0, 6, 3, 1, [(0, 3), (1, 4), (2, 5), (3, 6)]),
        (1, 6.5, 3, 1, [(1, 4), (2, 5), (3, 6), (4, 6.5)]),
        (0, 1, 5, 5, [(0, 1)]),
        (0, 9, 1, 4, [(0, 1), (4, 5), (8, 9)]),
        (0, 10, 1, 4, [(0, 1), (4, 5), (8, 9)]),
        (0, 0.3, 0.1, 0.1, [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),
        (5, None, 2, 2, [(5, None)]),
    ],
)
def test_the_last_stretch_is_the_first_that_reaches_the_end(
    begin: float, end: float | None, length: float, step: float, expected: list[tuple[float, float | None]]
) -> None:
    grid = Grid(begin, end, length, step)
    made = [grid.span(number) for number in range(1, grid.total + 1)]
    assert [(one.number, one.start, one.end) for one in made] == [(n, *one) for n, one in enumerate(expected, start=1)]
    windows = [grid.window(number) for number in range(1, grid.total + 1)]
    assert [one.start for one in windows] == [one.start for one in made]
    assert [one.end for one in windows] == [float("inf") if one.end in (end, None) else one.end for one in made]


def test_neighbours_meet_however_long_a_video_is() -> None:
    grid = Grid(0.0, 90_000.0, 0.1, 0.1)
    assert grid.total == 900_000
    assert all(grid.bounds(number)[1] == grid.bounds(number + 1)[0] for number in range(1, 900_000, 7))


def test_every_is_a_window_that_is_as_long_as_its_stride() -> None:
    none = {"every": None, "window": None, "stride": None, "scenes_from": None}
    assert SpanOptions(window=3.0, stride=3.0).shaping() == SpanOptions(every=3.0).shaping() == none | {"every": 3.0}
    assert SpanOptions(window=3.0, stride=1.0, whole=True).shaping() == none | {"window": 3.0, "stride": 1.0}
    assert SpanOptions(scenes_from="a.csv").shaping() == none | {"scenes_from": "given"}
    assert SpanOptions().shaping() == {}


# Rows


def test_each_span_has_a_row_and_the_whole_too(tmp_path: Path) -> None:
    made = list(answer(jobs(tmp_path, a="5"), SpanEngine(ModelOptions("echo")), WHOLE_TOO, RunParts(open_made_clip)))
    assert sorted((one.segment or 0, one.start, one.end, one.text, one.frame_count) for one in made) == [
        (0, None, None, "0-4", 5), (1, 0.0, 2.0, "0-1", 2), (2, 2.0, 4.0, "2-3", 2), (3, 4.0, 5.0, "4-4", 1),
    ]  # fmt: skip
    fine = replace(OPTIONS, spans=SpanOptions(every=0.5))
    made = list(answer(jobs(tmp_path, b="2"), SpanEngine(ModelOptions("echo")), fine, RunParts(open_made_clip)))
    assert sorted((one.segment, one.text, one.error_type) for one in made) == [
        (1, "0-0", None), (2, None, "empty"), (3, "1-1", None), (4, None, "empty"),
    ]  # fmt: skip


def test_a_medium_that_cannot_be_opened_has_one_row_until_it_can(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    tally, _ = run(jobs(tmp_path, a="unopenable"), output, WHOLE_TOO)
    assert (tally.failed, tally.media_failed) == (2, 1)
    assert rows_in(output) == [("a.mp4", "What?", 0, None), ("a.mp4", "What?", 1, None)]
    tally, engines = run(jobs(tmp_path, a=""), output, WHOLE_TOO)
    assert (tally.skipped, tally.errors_skipped, engines) == (2, 2, [])
    stamp = (tmp_path / "a.mp4").stat()
    again = [job._replace(item=(job.path, stamp.st_size, stamp.st_mtime_ns)) for job in jobs(tmp_path, a="")]
    (tmp_path / "a.mp4").write_text("3")
    tally, _ = run(iter(again), output, WHOLE_TOO, retry=True)
    assert (tally.answered, tally.failed) == (3, 0)
    assert rows_in(output) == [("a.mp4", "What?", 0, "0-2"), ("a.mp4", "What?", 1, "0-1"), ("a.mp4", "What?", 2, "2-2")]


def test_a_row_that_cannot_be_used_has_one_row(tmp_path: Path) -> None:
    bad = [
        Job("t.csv", "t.csv", (Question(Prompt(""), "t.csv:3"),), Fault("input", "bad_row", "x"), ("t:3", None, None))
    ]
    output = tmp_path / "rows.jsonl"
    for failed in (1, 0):
        assert run(iter(bad), output, WHOLE_TOO)[0].failed == failed
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert (row["segment"], row["error_type"]) == (None, "bad_row")


def test_a_length_that_makes_too_many_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "MOST_SPANS", 3)
    (row, other) = (
        answer(jobs(tmp_path, a="7", b="6"), SpanEngine(ModelOptions("echo")), OPTIONS, RunParts(open_made_clip)),
        [],
    )
    rows = sorted(row, key=lambda one: (one.file_name, one.segment or 0))
    assert [(one.file_name, one.error_type) for one in rows][:2] == [("a.mp4", "too_many"), ("b.mp4", None)]
    assert "has 4 stretches; at most 3 are asked about" in (rows[0].error or "")
    assert (len(rows), other) == (4, [])
    assert all(clip.closed for clip in MadeClip.opened_in(tmp_path))


# What is done


@pytest.mark.parametrize("seed", range(5))
def test_after_a_kill_each_span_is_there_once(tmp_path: Path, seed: int) -> None:
    output, questions = tmp_path / "rows.jsonl", ("What?", "Where?", "When?")
    options, contents = (OPTIONS, WHOLE_TOO)[seed % 2], {"a": "9", "b": "1", "c": "4", "d": "12"}
    run(jobs(tmp_path, *questions, **contents), output, options)
    everything, lines = rows_in(output), output.read_text().splitlines(keepends=True)
    assert len(everything) == 3 * (5 + 1 + 2 + 6 + (4 if options.spans.whole else 0))
    chosen = random.Random(seed)
    kept = [line for line in lines if chosen.random() < 0.6]
    output.write_text("".join(kept))
    tally, _ = run(jobs(tmp_path, *questions, **contents), output, options)
    assert rows_in(output) == everything
    assert (tally.skipped, tally.answered) == (len(kept), len(lines) - len(kept))
    tally, engines = run(jobs(tmp_path, *questions, **contents), output, options)
    assert (tally.skipped, tally.media_skipped, engines) == (len(lines), 4, [])


def test_errors_of_single_spans_are_tried_again_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run(jobs(tmp_path, a="5"), output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line, kind in zip(lines, ("corrupt", "out_of_memory", None), strict=True):
        if kind:
            line |= {"text": None, "status": "error", "error": "x", "error_type": kind, "error_stage": "decode"}
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tally, engines = run(jobs(tmp_path, a="5"), output)
    assert (tally.answered, tally.skipped, tally.errors_skipped) == (1, 2, 1)
    assert len(engines[0].requests[0].windows) == 1
    tally, _ = run(jobs(tmp_path, a="5"), output, retry=True)
    assert (tally.answered, tally.skipped) == (1, 2)
    assert [one[2:] for one in rows_in(output)] == [(1, "0-1"), (2, "2-3"), (3, "4-4")]


def test_the_same_medium_twice_has_its_rows_twice(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for answered in (4, 0):
        twice = [*jobs(tmp_path, a="4"), *jobs(tmp_path, a="4")]
        assert run(iter(twice), output)[0].answered == answered
    assert [one[2] for one in rows_in(output)] == [1, 1, 2, 2]
    assert len({json.loads(line)["fingerprint"] for line in output.read_text().splitlines()}) == 4


def test_rows_of_other_stretches_are_other_rows(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run(jobs(tmp_path, a="4"), output)
    with pytest.raises(UsageError, match="--every was 2, is 1"):
        run(jobs(tmp_path, a="4"), output, replace(OPTIONS, spans=SpanOptions(every=1.0)))
    tally, _ = run(jobs(tmp_path, a="4"), output, WHOLE_TOO)
    assert (tally.answered, tally.skipped) == (1, 2)


def test_a_forecast_counts_the_rows_of_spans(tmp_path: Path) -> None:
    def probe(path: str, seconds: float) -> ClipInfo:
        return ClipInfo(path, "video", 64, 48, None if "b." in path else 7.0, None, None)

    output = tmp_path / "rows.jsonl"
    made = list(jobs(tmp_path, "What?", "Where?", a="7", b="8"))
    assert forecast(iter(made), WHOLE_TOO, probe, None).rows == 2 * (1 + 4) + 2 * (1 + 1)
    run(iter(made[:1]), output, WHOLE_TOO)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:6]))
    target = OutputOptions.parse(str(output), None)
    with open_output(target, WHOLE_TOO.run_info()) as opened:
        left = left_to_do(iter(made[:1]), WHOLE_TOO.row_keys(), opened.done, Tally(), WHOLE_TOO.spans)
        assert forecast(left, WHOLE_TOO, probe, None).rows == 10 - 6


# Very many


def test_windows_are_not_kept(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "What?", "Where?", a="1")
    info = ClipInfo("a", "video", 64, 48, 1_000_000.0, None, None)
    windows = SpanWindows(job, info, SpanOptions(every=1.0), SamplingOptions())
    began = time.monotonic()
    assert sum(window.start for window in windows) == 1_000_000 * 999_999 / 2
    assert time.monotonic() - began < 60
    tracemalloc.start()  # makes each of them ten times as slow, so that it looks at one in twenty
    windows = SpanWindows(job, info, SpanOptions(every=1.0), SamplingOptions())
    assert len(windows) == 1_000_000
    assert sum(window.start for window in islice(windows, 50_000)) == 50_000 * 49_999 / 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 20) / 20


def test_a_picture_has_no_times_for_subtitles(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, a="1")
    picture = ClipInfo("a", "image", 64, 48, None, 1, None)
    fault = SpanWindows(job, picture, SpanOptions(every=1.0, timed=True), SamplingOptions()).fault
    assert fault == Fault("output", "no_time", "a picture has no times, which subtitles need")
    assert SpanWindows(job, picture, SpanOptions(every=1.0), SamplingOptions()).fault is None
