"""The loop of a run, with doubles of the engine and of clips."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cli_doubles import EchoEngine, MadeClip, ProgressLog, open_made_clip

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import ModelNotFound, OutputError
from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.inputs import read_jobs
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.open import is_media_path
from llava_mini_cli.pipelines.answer import AnswerEngine, Tally, Tools, answer_jobs
from llava_mini_cli.pipelines.interrupt import Interrupted, Interrupts
from llava_mini_cli.pipelines.settings import RunOptions

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
    jobs: Iterator[Job], writer: RowList, progress: ProgressLog | None = None, engine: AnswerEngine | None = None
) -> Tally:
    def load(options: ModelOptions) -> AnswerEngine:
        return engine or EchoEngine(options)

    with Interrupts() as interrupts:
        tools = Tools(load, open_made_clip, lambda: writer, progress or ProgressLog(), interrupts)
        return answer_jobs(jobs, OPTIONS, tools)


def test_every_prompt_of_every_medium_gets_one_row(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4", b="broken", c="unopenable", d="", e="2")
    media.insert(2, str(tmp_path / "gone.mp4"))
    writer = RowList()
    tally = run(read_jobs(media, PROMPTS, is_media_path), writer)
    assert tally == Tally(answered=2, failed=10)
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
    assert run(iter(jobs), writer) == Tally(answered=1, failed=2)
    assert len(MadeClip.opened) == 1
    assert [(row.id, row.error_stage, row.error) for row in writer.rows if row.status == "error"] == [
        ("row 17", "input", "t.csv:17")
    ] * 2
    assert [row.as_dict()["split"] for row in writer.rows] == ["train"] * 3


def test_few_clips_are_open_at_once_and_folders_stream(tmp_path: Path) -> None:
    media = write_media(tmp_path, **{f"m{number:02}": "1" for number in range(30)})
    engine = EchoEngine(OPTIONS.model)
    seen: list[int] = []

    def jobs() -> Iterator[Job]:
        for job in read_jobs(media, PROMPTS[:1], is_media_path):
            seen.append(sum(not clip.closed for clip in MadeClip.opened))
            yield job

    writer = RowList()
    assert run(jobs(), writer, engine=engine).answered == 30
    assert max(seen) <= 2
    assert engine.most_waiting == 2
    assert [row.file_name for row in writer.rows] == [f"m{number:02}.mp4" for number in range(30)]


def test_the_model_is_not_loaded_for_media_that_are_not_there(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise AssertionError

    writer = RowList()
    with Interrupts() as interrupts:
        tools = Tools(load, open_made_clip, lambda: writer, ProgressLog(), interrupts)
        tally = answer_jobs(read_jobs([str(tmp_path / "gone.mp4")], PROMPTS, is_media_path), OPTIONS, tools)
    assert tally == Tally(answered=0, failed=2)
    assert writer.rows[0].model_revision is None


def test_a_model_that_cannot_be_had_leaves_the_output_alone(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise ModelNotFound("no such model")

    def open_output() -> RowList:
        raise AssertionError

    with Interrupts() as interrupts, pytest.raises(ModelNotFound):
        tools = Tools(load, open_made_clip, open_output, ProgressLog(), interrupts)
        answer_jobs(read_jobs(write_media(tmp_path, a="1"), PROMPTS, is_media_path), OPTIONS, tools)


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
    with pytest.raises(Interrupted) as stop:
        run(read_jobs(write_media(tmp_path, a="1", b="1", c="1"), PROMPTS, is_media_path), writer, engine=engine)
    assert stop.value.exit_code == 128 + number
    assert len(writer.rows) == 2
    assert not writer.open
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_signal_waits_until_a_row_is_written() -> None:
    order: list[str] = []
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted), interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            order.append("written")
        with pytest.raises(Interrupted):
            interrupts.check()
    assert order == ["written"]
