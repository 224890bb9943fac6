"""The loop of a run, with doubles of the engine and of clips."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cli_doubles import EchoEngine, MadeClip, ProgressLog, open_made_clip, read_jobs

from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import ModelNotFound, OutputError
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.open import is_media_path
from llava_mini_cli.pipelines.ahead import AHEAD
from llava_mini_cli.pipelines.answer import answer_into
from llava_mini_cli.pipelines.interrupt import Interrupted, Interrupts
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

PROMPTS = (Prompt("What?", "what"), Prompt("Why is this too long?"))
OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(start=1.0), GenerationOptions())


class RowList:
    """A writer that keeps its rows; `broken` fails at the first."""

    def __init__(self, *, broken: bool = False) -> None:
        self.done = Done()
        self.rows: list[Row] = []
        self.open = False
        self.broken = broken

    def write(self, row: Row) -> None:
        assert self.open
        if self.broken:
            raise OutputError("disk full")
        self.rows.append(row)

    def __enter__(self) -> Self:
        self.open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open = False


@pytest.fixture(autouse=True)
def no_clip_stays_open() -> Iterator[None]:
    MadeClip.opened.clear()
    yield
    assert all(clip.closed for clip in MadeClip.opened)


def write_media(folder: Path, **contents: str) -> list[str]:
    for name, text in contents.items():
        (folder / f"{name}.mp4").write_text(text)
    return [str(folder / f"{name}.mp4") for name in contents]


def run(
    jobs: Iterator[Job],
    writer: RowList,
    progress: ProgressLog | None = None,
    engine: AnswerEngine | None = None,
    options: RunOptions = OPTIONS,
) -> Tally:
    def load(options: ModelOptions) -> AnswerEngine:
        return engine or EchoEngine(options)

    with Interrupts() as interrupts:
        parts = RunParts(open_made_clip, progress=progress or ProgressLog(), interrupts=interrupts)
        answer_into(lambda: writer, jobs, load, options, parts)
    return parts.tally


def test_every_prompt_of_every_medium_gets_one_row(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4", b="broken", c="unopenable", d="", e="2")
    media.insert(2, str(tmp_path / "gone.mp4"))
    writer = RowList()
    tally = run(read_jobs(media, PROMPTS, is_media_path), writer)
    assert (tally.media, tally.media_failed, tally.answered, tally.failed) == (6, 6, 2, 10)
    assert tally.failures == {"too_long": 2, "corrupt": 2, "no_video": 2, "empty": 2, "not_found": 2}
    assert sorted(failed.error_type for failed in tally.listed if failed.error_type != "too_long") == [
        "corrupt", "empty", "no_video", "not_found",
    ]  # fmt: skip
    got = {(row.file_name, row.prompt): (row.status, row.error_stage, row.error_type) for row in writer.rows}
    assert len(writer.rows) == len(got) == 12
    faults = {"b": ("decode", "corrupt"), "c": ("decode", "no_video"), "d": ("decode", "empty")}
    for name, fault in (faults | {"gone": ("decode", "not_found")}).items():
        for prompt in PROMPTS:
            assert got[f"{name}.mp4", prompt.text] == ("error", *fault)
    for name in ("a", "e"):
        assert got[f"{name}.mp4", PROMPTS[0].text] == ("ok", None, None)
        assert got[f"{name}.mp4", PROMPTS[1].text] == ("error", "prompt", "too_long")


def test_an_answered_row_says_all_that_is_known(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4")
    writer = RowList()
    run(read_jobs(media, PROMPTS, is_media_path), writer)
    row = writer.rows[0].as_dict()
    assert len(row.pop("fingerprint")) == 32
    assert row.pop("created_at").tzinfo is not None
    known = {key: value for key, value in row.items() if value is not None}
    assert known == {
        "id": media[0], "file_name": "a.mp4", "media": "video", "start": 1.0, "prompt_name": "what",
        "prompt": "What?", "text": "What? [4]", "status": "ok", "warning": "read 4 frames", "finish_reason": "stop",
        "frame_count": 4, "fps_sampled": 1.0, "duration_s": 4.0, "width": 64, "height": 48, "prompt_tokens": 5,
        "vision_tokens": 4, "completion_tokens": 2, "model": "echo", "model_revision": "abc123",
    }  # fmt: skip


def test_a_job_with_a_fault_becomes_rows_without_being_opened(tmp_path: Path) -> None:
    (medium,) = write_media(tmp_path, a="4")
    questions = tuple(Question(prompt, "row 17", {"split": "train"}) for prompt in PROMPTS)
    jobs = [Job(medium, "a.mp4", questions[:1]), Job(medium, "a.mp4", questions, Fault("input", "bad_row", "t.csv:17"))]
    writer = RowList()
    tally = run(iter(jobs), writer)
    assert (tally.answered, tally.failed, tally.failures) == (1, 2, {"bad_row": 2})
    assert len(MadeClip.opened) == 1
    assert [(row.id, row.error_stage, row.error) for row in writer.rows if row.status == "error"] == [
        ("row 17", "input", "t.csv:17")
    ] * 2
    assert [row.as_dict()["split"] for row in writer.rows] == ["train"] * 3


def test_media_are_opened_ahead_and_answered_in_order(tmp_path: Path) -> None:
    media = write_media(tmp_path, **{f"m{number:03}": "1" for number in range(300)})
    engine = EchoEngine(OPTIONS.model)
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for job in read_jobs(media, PROMPTS[:1], is_media_path):
            taken.append(sum(not clip.closed for clip in MadeClip.opened))
            yield job

    writer = RowList()
    assert run(jobs(), writer, engine=engine).answered == 300
    assert max(taken) <= AHEAD + 3  # and what the engine holds
    assert engine.most_waiting == 2
    assert [row.file_name for row in writer.rows] == [f"m{number:03}.mp4" for number in range(300)]


def test_a_limit_leaves_work_undone_and_says_so(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="1", c="1")
    for most, stopped_by, answered in ((2, "limit", 2), (3, None, 3), (None, None, 3)):
        options = replace(OPTIONS, limits=RunLimits(media=most))
        tally = run(read_jobs(media, PROMPTS[:1], is_media_path), RowList(), options=options)
        assert (tally.stopped_by, tally.answered) == (stopped_by, answered)


@pytest.mark.parametrize("bad", ["unopenable", "broken", ""])
def test_a_run_stops_once_as_many_media_failed_as_may(tmp_path: Path, bad: str) -> None:
    media = write_media(tmp_path, **{f"m{number}": bad for number in range(9)}, z="1")
    options = replace(OPTIONS, limits=RunLimits(failures=3))
    writer = RowList()
    tally = run(read_jobs(media, PROMPTS[:1], is_media_path), writer, options=options)
    assert (tally.stopped_by, tally.media_failed, len(writer.rows)) == ("max_failures", 3, 3)


def test_the_model_is_not_loaded_for_media_that_are_not_there(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise AssertionError

    writer = RowList()
    parts = RunParts(open_made_clip)
    jobs = read_jobs([str(tmp_path / "gone.mp4")], PROMPTS, is_media_path)
    answer_into(lambda: writer, jobs, load, OPTIONS, parts)
    assert (parts.tally.answered, parts.tally.failed) == (0, 2)
    assert writer.rows[0].model_revision is None


def test_a_model_that_cannot_be_had_leaves_the_output_alone(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise ModelNotFound("no such model")

    writer = RowList()
    jobs = read_jobs(write_media(tmp_path, a="1"), PROMPTS, is_media_path)
    with pytest.raises(ModelNotFound):
        answer_into(lambda: writer, jobs, load, OPTIONS, RunParts(open_made_clip))
    assert not writer.rows


def test_what_is_done_is_left_out_question_by_question(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="1")
    first, writer = RowList(), RowList()
    run(read_jobs(media, PROMPTS, is_media_path), first)
    done = [row for row in first.rows if (row.file_name, row.status) != ("b.mp4", "ok")]
    writer.done.add([(row.fingerprint, row.status == "error") for row in done])
    MadeClip.opened.clear()
    tally = run(read_jobs(media, PROMPTS, is_media_path), writer)
    assert (tally.answered, tally.failed, tally.skipped, tally.errors_skipped) == (1, 0, 3, 2)
    assert [(row.file_name, row.prompt) for row in writer.rows] == [("b.mp4", "What?")]
    assert len(MadeClip.opened) == 1


def test_without_anything_left_no_model_is_loaded(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1")
    first, writer = RowList(), RowList()
    run(read_jobs(media, PROMPTS, is_media_path), first)
    writer.done.add([(row.fingerprint, False) for row in first.rows])

    def load(options: ModelOptions) -> AnswerEngine:
        raise AssertionError

    parts = RunParts(open_made_clip)
    answer_into(lambda: writer, read_jobs(media, PROMPTS, is_media_path), load, OPTIONS, parts)
    assert parts.tally.skipped == 2


def test_a_full_disk_ends_the_run_and_closes_clips(tmp_path: Path) -> None:
    writer = RowList(broken=True)
    with pytest.raises(OutputError, match="disk full"):
        run(read_jobs(write_media(tmp_path, a="1", b="1", c="1"), PROMPTS, is_media_path), writer)
    assert not writer.open


def test_progress_hears_of_everything(tmp_path: Path) -> None:
    progress = ProgressLog()
    run(read_jobs(write_media(tmp_path, a="2"), PROMPTS[:1], is_media_path), RowList(), progress)
    assert progress.events == ["loading echo", "opened a.mp4", "frames 1", "frames 1", "item done"]
    assert [row.text for row in progress.rows] == ["What? [2]"]


class StuckEngine(EchoEngine):
    """Waits in its second step until a signal comes."""

    steps = 0

    def step(self) -> list[Answer | Failure]:
        self.steps += 1
        if self.steps == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), self.number)).start()
            threading.Event().wait(10)
            raise AssertionError
        return super().step()

    number = signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_closes_clips_and_keeps_rows(tmp_path: Path, number: signal.Signals) -> None:
    engine = StuckEngine(OPTIONS.model)
    engine.number = number
    writer = RowList()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        run(read_jobs(write_media(tmp_path, a="1", b="1", c="1"), PROMPTS, is_media_path), writer, engine=engine)
    assert stop.value.exit_code == 128 + number
    assert len(writer.rows) == 2
    assert not writer.open
    assert signal.getsignal(number) == before


def test_a_signal_waits_for_a_point_where_it_may_come() -> None:
    order: list[str] = []
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        order.append("written")
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(Interrupted), interrupts.allowed():
            order.append("never")
    assert order == ["written"]
