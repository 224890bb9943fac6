"""Rows of scenes that are found while a video is decoded: which there are, and what a run leaves out later."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from cli_doubles import EchoEngine, MadeClip, open_made_clip

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import MediaError, UsageError
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines import scene_windows
from llava_mini_cli.pipelines.answer import answer, answer_into
from llava_mini_cli.pipelines.forecast import forecast
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.scene_windows import SceneWindows
from llava_mini_cli.pipelines.scenes import BY_CLIP, clip_scores
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

SPANS = SpanOptions(scenes=True, min_scene_len=1.5)
OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(scene_threshold=10.0), GenerationOptions(), spans=SPANS)
WHOLE_TOO = replace(OPTIONS, spans=replace(SPANS, whole=True))


class SceneEngine(EchoEngine):
    """Answers with the times of a scene's frames, in another order each time; some prompts fail while frames come."""

    def step(self) -> list[Answer | Failure]:
        request = self._waiting[0]
        outcomes: list[Answer | Failure] = []
        refused = [number for number, prompt in enumerate(request.prompts) if "fail" in prompt]
        told = range(0)
        times: list[float] = []
        for chunk in request.frames:
            times += map(float, chunk.times)
            new = range(told.stop, len(request.windows))
            outcomes += [
                Failure(request.key, one, "prompt", "too_long", "why", index)
                for index in new
                for one in refused
                if one not in request.windows[index].without
            ]
            told = new
        request.frames.close()
        self._waiting.pop(0)
        for index, window in enumerate(request.windows):
            seen = [one for one in times if window.start <= one < window.end]
            for prompt in set(range(len(request.prompts))) - window.without:
                if prompt in refused:
                    outcomes += [Failure(request.key, prompt, "prompt", "too_long", "why", index)] * (
                        index >= told.stop
                    )
                elif not seen:
                    outcomes.append(Failure(request.key, prompt, "decode", "empty", "why", index))
                else:
                    text = f"{seen[0]:g}-{seen[-1]:g}"
                    outcomes.append(Answer(request.key, prompt, text, (1,), "stop", len(seen), 5, 1, 1, index))
        random.Random(len(outcomes)).shuffle(outcomes)
        return outcomes


def jobs(folder: Path, *questions: str, **contents: str) -> Iterator[Job]:
    for name, text in contents.items():
        path = folder / f"{name}.mp4"
        if not path.exists():
            path.write_text(text)
        yield Job(str(path), path.name, tuple(Question(Prompt(one), str(path)) for one in questions or ("What?",)))


def run(made: Iterator[Job], output: Path, options: RunOptions = OPTIONS) -> Tally:
    parts = RunParts(open_made_clip)
    target = OutputOptions.parse(str(output), None)
    answer_into(lambda: open_output(target, options.run_info()), made, SceneEngine, options, parts)
    return parts.tally


def clip_of(text: str) -> MadeClip:
    """A clip of which the frames are not read."""
    clip = MadeClip("a", text)
    clip.close()
    return clip


def scenes_of(
    cuts: list[float], shortest: float, duration: float | None = 10.0, sampling: SamplingOptions | None = None
) -> list[tuple[float, float]]:
    """The scenes of a video whose frames come one a second."""
    clip = clip_of("/".join(["10", *map(str, cuts)]))
    clip.info = replace(clip.info, duration_s=duration)
    job = Job("a", "a", (Question(Prompt("What?"), "a"),))
    windows = SceneWindows(job, clip, replace(SPANS, min_scene_len=shortest), sampling or SamplingOptions())  # type: ignore[arg-type]
    for second in range(10):
        windows.reached(float(second))
        assert all(window.start <= max(second, sampling.start or 0.0 if sampling else 0.0) for window in windows)
        assert [window.end for window in windows][-1] == inf
    windows.reached(inf)
    windows.close()
    assert [(window.start, window.end) for window in windows] == [
        (start, end if number < len(windows) else inf)
        for number, (start, end) in enumerate(((one.start, one.end) for one in windows), start=1)
    ]
    spans = [windows.place(number, 0).span for number in range(len(windows))]
    assert [span and span.number for span in spans] == list(range(1, len(windows) + 1))
    assert all(span is not None and span.end != inf for span in spans)
    return [(span.start or 0.0, inf if span.end is None else span.end) for span in spans if span is not None]


@pytest.mark.parametrize(
    ("cuts", "shortest", "expected"),
    [
        ([], 2, [(0, 10)]),
        ([2, 5], 2, [(0, 2), (2, 5), (5, 10)]),
        ([1.9, 5], 2, [(0, 5), (5, 10)]),  # the first would be too short
        ([3, 4, 4.5, 6], 2, [(0, 3), (3, 6), (6, 10)]),  # cuts near to the one before do not count
        ([3, 8.5], 2, [(0, 3), (3, 10)]),  # nor those near to the end
        ([0, 0.04, 3, 9.96], 0, [(0, 0.04), (0.04, 3), (3, 9.96), (9.96, 10)]),
        ([3, 6], 20, [(0, 10)]),
        ([2 / 3, 4 / 3], 0, [(0, 0.666667), (0.666667, 1.333333), (1.333333, 10)]),
    ],
)
def test_no_scene_is_shorter_than_asked_for(
    cuts: list[float], shortest: float, expected: list[tuple[float, float]]
) -> None:
    assert scenes_of(cuts, shortest) == expected


def test_scenes_lie_between_start_and_end() -> None:
    some = SamplingOptions(start=2.5, end=8.0)
    assert scenes_of([1, 4, 6.5, 7, 9], 1, sampling=some) == [(2.5, 4), (4, 6.5), (6.5, 8)]
    assert scenes_of([1, 4], 1, duration=None) == [(0, 1), (1, 4), (4, inf)]


def test_a_frame_at_a_cut_belongs_to_the_scene_behind_it(tmp_path: Path) -> None:
    made = answer(jobs(tmp_path, a="9/2/4.5/6"), SceneEngine(ModelOptions("echo")), OPTIONS, RunParts(open_made_clip))
    assert sorted((one.segment, one.start, one.end, one.text, one.warning) for one in made) == [
        (1, 0.0, 2.0, "0-1", "read 9 frames"), (2, 2.0, 4.5, "2-4", "read 9 frames"),
        (3, 4.5, 6.0, "5-5", "read 9 frames"), (4, 6.0, 9.0, "6-8", "read 9 frames"),
    ]  # fmt: skip


def test_a_scene_without_a_frame_is_an_error_and_failures_are_there_for_all(tmp_path: Path) -> None:
    options = replace(WHOLE_TOO, spans=replace(WHOLE_TOO.spans, min_scene_len=0.0))
    made = list(
        answer(
            jobs(tmp_path, "What?", "fail", a="4/1.2/1.8"),
            SceneEngine(ModelOptions("echo")),
            options,
            RunParts(open_made_clip),
        )
    )
    assert sorted((one.prompt, one.segment or 0, one.start, one.end, one.text, one.error_type) for one in made) == [
        ("What?", 0, None, None, "0-3", None), ("What?", 1, 0.0, 1.2, "0-1", None),
        ("What?", 2, 1.2, 1.8, None, "empty"), ("What?", 3, 1.8, 4.0, "2-3", None),
        ("fail", 0, None, None, None, "too_long"), ("fail", 1, 0.0, 1.2, None, "too_long"),
        ("fail", 2, 1.2, 1.8, None, "too_long"), ("fail", 3, 1.8, 4.0, None, "too_long"),
    ]  # fmt: skip


def test_too_many_scenes_are_an_error_behind_those_that_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_windows, "MOST_SPANS", 2)
    (job,) = jobs(tmp_path, a="9/2/4/6")
    windows = SceneWindows(job, clip_of("9/2/4/6"), SPANS, SamplingOptions())  # type: ignore[arg-type]
    windows.reached(3.0)
    with pytest.raises(MediaError, match="it has more than 2 scenes") as caught:
        windows.reached(5.0)
    assert (caught.value.kind, len(windows)) == ("too_many", 2)


# By CLIP distance


def test_frames_that_are_far_apart_are_of_two_scenes() -> None:
    angles = np.radians([0, 5, 10, 100, 105, 200, 195, 10])  # 180 degrees are 100
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    np.testing.assert_allclose(
        clip_scores(vectors[:-1].astype(np.float32), 3 * vectors[1:].astype(np.float32)),
        50 * (1 - np.cos(np.diff(angles))),
        atol=0.2,
    )
    clip = clip_of("8")
    clip.cuts = None
    job = Job("a", "a", (Question(Prompt("What?"), "a"),))
    for size in (1, 3, 8):  # however the frames are dealt out
        windows = SceneWindows(job, clip, replace(SPANS, min_scene_len=0.0), SamplingOptions())  # type: ignore[arg-type]
        assert windows.wants_embeddings
        for first in range(0, 8, size):
            part = slice(first, first + size)
            windows.reached(float(first))
            for _ in range(2):  # as where memory ran out in between
                windows.saw(np.arange(8.0)[part], vectors[part])
        windows.reached(inf)
        windows.close()
        assert [window.start for window in windows] == [0, 3, 5, 7]
        assert windows.place(0, 0).span == (1, 0.0, 3.0, BY_CLIP)
    with pytest.raises(MediaError, match="its scenes are not known"):
        windows.saw(np.arange(1.0), None)


# What is done


@pytest.mark.parametrize("seed", range(4))
def test_after_a_kill_each_scene_is_there_once(tmp_path: Path, seed: int) -> None:
    output, questions = tmp_path / "rows.jsonl", ("What?", "Where?", "fail")
    options = (OPTIONS, WHOLE_TOO)[seed % 2]
    contents = {"a": "9/2/4.5/6", "b": "1", "c": "4/1/2", "d": "12/3/5/7/9"}
    run(jobs(tmp_path, *questions, **contents), output, options)

    def rows() -> list[tuple[object, ...]]:
        found = [json.loads(line) for line in output.read_text().splitlines()]
        names = ("file_name", "prompt", "segment", "start", "end", "text", "fingerprint")
        return sorted((tuple(one[name] for name in names) for one in found), key=str)

    everything, lines = rows(), output.read_text().splitlines(keepends=True)
    assert len(everything) == 3 * (4 + 1 + 2 + 5 + (4 if options.spans.whole else 0))
    chosen = random.Random(seed)
    kept = [line for line in lines if chosen.random() < 0.6]
    output.write_text("".join(kept))
    tally = run(jobs(tmp_path, *questions, **contents), output, options)
    assert rows() == everything
    assert (tally.skipped, tally.answered + tally.failed) == (len(kept), len(lines) - len(kept))
    tally = run(jobs(tmp_path, *questions, **contents), output, options)
    assert (tally.skipped, tally.media_skipped, tally.frames) == (len(lines), 4, 0)


def test_other_thresholds_are_refused_by_rows_that_are_there(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run(jobs(tmp_path, a="9/2/4"), output)
    for change, words in (
        ({"scene_threshold": 12.0}, "--scene-threshold was 10, is 12"),
        ({"min_scene_len": 2.0}, "--min-scene-len was 1.5, is 2"),
    ):
        with pytest.raises(UsageError, match=words):
            run(jobs(tmp_path, a="9/2/4"), output, replace(OPTIONS, spans=replace(SPANS, **change)))
    with pytest.raises(UsageError, match="--decoder was ffmpeg, is decord"):
        run(jobs(tmp_path, a="9/2/4"), output, replace(OPTIONS, sampling=SamplingOptions(decoder="decord")))
    with pytest.raises(UsageError, match="--every"):
        run(jobs(tmp_path, a="9/2/4"), output, replace(OPTIONS, spans=SpanOptions(every=2.0)))
    assert run(jobs(tmp_path, a="9/2/4"), output, WHOLE_TOO).answered == 1


def test_before_it_is_decoded_nobody_knows_how_many_scenes_a_video_has(tmp_path: Path) -> None:
    def probe(path: str, seconds: float) -> ClipInfo:
        if "p." in path:
            return ClipInfo(path, "image", 64, 48, None, 1, None)
        return ClipInfo(path, "video", 64, 48, 7.0, None, None)

    output = tmp_path / "rows.jsonl"
    for rows in (2 * (1 + 1) + 2 * (1 + 1), 0):
        target = OutputOptions.parse(str(output), None)
        made = jobs(tmp_path, "What?", "Where?", a="7", p="1")
        with open_output(target, WHOLE_TOO.run_info()) as opened:
            left = left_to_do(made, WHOLE_TOO.row_keys(), opened.done, Tally(), WHOLE_TOO.spans)
            found = forecast(left, WHOLE_TOO, probe, None)
        assert (found.rows, found.unknown_scenes, found.time) == (rows, rows > 0, None if rows else found.time)
        run(jobs(tmp_path, "What?", "Where?", a="7", p="1"), output, WHOLE_TOO)
    assert (
        forecast(jobs(tmp_path, a="7"), replace(OPTIONS, spans=SpanOptions(every=2.0)), probe, None).unknown_scenes == 0
    )
