"""Rows, counts, keys of what is done, limits and signals, each by itself."""

import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli_doubles import MadeClip

from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.engine.request import Answer
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.interrupt import Interrupted, Interrupts
from llava_mini_cli.pipelines.open_job import CountedFrames, fault_of
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.rows import RowBuilder, one_line
from llava_mini_cli.pipelines.run_jobs import limited
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import LISTED, Tally

OPTIONS = RunOptions(ModelOptions("m"), SamplingOptions(2.0, 8, 1.0, 9.0), GenerationOptions(), prefix="<", suffix=">")
INFO = ClipInfo("a", "video", 64, 48, 5.0, 5, 1.0)
JOB = Job("in/a.mp4", "a.mp4", (Question(Prompt("Why?", "why"), "7", {"split": "x"}, "f" * 32),))


def answered(**changes: object) -> Answer:
    return Answer("0", 0, "because", (1, 2), "length", 5, 6, 7, 8, p_yes=0.25, **changes)  # pyright: ignore


def test_the_row_of_an_answer() -> None:
    row = RowBuilder(OPTIONS, "rev").answer(JOB, answered(), INFO, ["two\nlines", "more"])
    assert (datetime.now(UTC) - row.created_at).total_seconds() < 60
    known = {name: value for name, value in row.as_dict().items() if value is not None and name != "created_at"}
    assert known == {
        "id": "7", "file_name": "a.mp4", "media": "video", "start": 1.0, "end": 9.0, "prompt_name": "why",
        "prompt": "Why?", "text": "<because>", "status": "ok", "warning": "two lines; more", "finish_reason": "length",
        "frame_count": 5, "fps_sampled": 1.0, "duration_s": 5.0, "width": 64, "height": 48, "prompt_tokens": 6,
        "vision_tokens": 7, "completion_tokens": 8, "p_yes": 0.25, "model": "m", "model_revision": "rev",
        "fingerprint": "f" * 32, "split": "x",
    }  # fmt: skip
    assert row.source == "in/a.mp4"
    assert RowBuilder(OPTIONS).answer(JOB, answered(), INFO, []).warning is None


def test_the_row_of_a_choice() -> None:
    row = RowBuilder(OPTIONS, "rev").answer(JOB, answered(choice_probs={"because": 0.75, "why": 0.25}), INFO, [])
    assert (row.text, row.choice, row.choice_probs) == ("<because>", "because", {"because": 0.75, "why": 0.25})


def test_the_row_of_a_failure() -> None:
    row = RowBuilder(OPTIONS).failure(JOB, 0, Fault("decode", "corrupt", "bad\n frame"))
    assert (row.status, row.error, row.error_type, row.error_stage) == ("error", "bad frame", "corrupt", "decode")
    assert (row.text, row.media, row.width, row.height, row.duration_s, row.fps_sampled) == (None,) * 6
    assert RowBuilder(OPTIONS).failure(JOB, 0, Fault("decode", "corrupt", "x"), INFO).width == 64


def test_a_span_stands_in_its_row() -> None:
    job = JOB._replace(span=TimeSpan(3, 2.0, 4.0, "the third"))
    row = RowBuilder(OPTIONS).answer(job, answered(), INFO, ["odd"])
    assert (row.segment, row.start, row.end, row.warning) == (3, 2.0, 4.0, "the third; odd")


def test_one_line() -> None:
    assert one_line(" a\n\t b\udcff ") == "a b\\xff"


# Counting


def row_of(error: str | None = None, row_id: str = "7") -> object:
    fault = Fault("decode", error or "", "why")
    builder = RowBuilder(OPTIONS)
    job = JOB._replace(questions=(Question(Prompt("Why?"), row_id),))
    return builder.failure(job, 0, fault) if error else builder.answer(job, answered(), INFO, [])


def test_rows_are_counted_and_the_first_failed_media_remembered() -> None:
    tally = Tally()
    tally.row(row_of(), fails_medium=False)
    tally.row(row_of("corrupt", "a"), fails_medium=True)
    tally.row(row_of("timeout", "a"), fails_medium=False)
    assert (tally.answered, tally.failed, tally.media_failed) == (1, 2, 1)
    assert tally.failures == {"corrupt": 1, "timeout": 1}
    for number in range(LISTED + 5):
        tally.row(row_of("corrupt", str(number)), fails_medium=True)
    assert tally.media_failed == LISTED + 6
    assert tally.listed == [("a", "corrupt", "why"), *((str(n), "corrupt", "why") for n in range(LISTED - 1))]
    assert LISTED == 20


def test_a_limit_of_media_is_said_only_where_work_is_left() -> None:
    jobs = [JOB] * 3
    for most, given, stopped_by in ((2, 2, "limit"), (3, 3, None), (None, 3, None)):
        tally = Tally()
        assert len(list(limited(jobs, most, tally))) == given
        assert tally.stopped_by == stopped_by


# What is done


def test_what_is_there_is_left_out_question_by_question_and_counted() -> None:
    questions = tuple(Question(Prompt(text), "a") for text in ("one", "two"))
    jobs = [Job("a", "a", questions, item=("a", 1, 2)), Job("b", "b", questions, item=("b", 1, 2))]
    keys, tally, done = OPTIONS.row_keys(), Tally(), Done()
    first = list(left_to_do(iter(jobs), keys, done, tally))
    assert [len(job.questions) for job in first] == [2, 2]
    names = [question.key for job in first for question in job.questions]
    assert len(set(names)) == 4
    assert all(len(name) == 32 for name in names)
    assert tally.media_skipped == 0
    again = Done()
    again.add([(names[0], False), (names[2], False), (names[3], True)])
    left = list(left_to_do(iter(jobs), keys, again, tally))
    assert [(job.path, [question.prompt.text for question in job.questions]) for job in left] == [("a", ["two"])]
    assert left[0].questions[0].key == names[1]
    assert (tally.media_skipped, again.rows_left, again.errors_left) == (1, 3, 1)


def test_an_output_may_tell_by_itself_what_is_there() -> None:
    done = Done(is_there=lambda job, question: question.prompt.text == "one")
    job = Job("a", "a", tuple(Question(Prompt(text), "a") for text in ("one", "two")), item=("a", 1, 2))
    (left,) = left_to_do(iter([job]), OPTIONS.row_keys(), done, Tally())
    assert [question.prompt.text for question in left.questions] == ["two"]
    assert done.rows_left == 1


def test_what_shapes_an_answer() -> None:
    assert OPTIONS.answer_settings() == {
        "dtype": "auto", "quantize": None, "prompt_layout": "trained", "fps": 2.0, "max_frames": 8, "start": 1.0,
        "end": 9.0, "max_new_tokens": 512, "temperature": 0.0, "top_p": None, "seed": None, "repetition_penalty": None,
        "prefix": "<", "suffix": ">", "yes_no": None,
    }  # fmt: skip
    plain = RunOptions(ModelOptions("m", "rev"), SamplingOptions(), GenerationOptions(yes_no=True))
    assert {name: plain.answer_settings()[name] for name in ("prefix", "suffix", "yes_no")} == {
        "prefix": None, "suffix": None, "yes_no": True,
    }  # fmt: skip
    info = plain.run_info()
    assert (info.model, info.revision, info.settings, info.kept) == ("m", "rev", plain.answer_settings(), ())
    assert plain.limits == RunLimits(None, None)


# Opening


def test_why_a_medium_cannot_even_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good").write_text("x")
    (tmp_path / "empty").touch()
    told = Fault("fetch", "not_found", "gone")
    assert fault_of(Job(str(tmp_path / "none"), "", (), told)) == told
    assert fault_of(Job(str(tmp_path / "good"), "", ())) is None
    assert fault_of(Job("http://x", "", (), local=str(tmp_path / "good"))) is None
    assert fault_of(Job(str(tmp_path / "none"), "", ())) == ("decode", "not_found", "no such file")
    assert fault_of(Job(str(tmp_path / "empty"), "", ())) == ("decode", "empty", "the file is empty")
    assert fault_of(Job(str(tmp_path), "", ())) == ("decode", "unreadable", "a folder, not a file")
    assert fault_of(Job("a\0b", "", ())) == ("decode", "not_found", "no file can have this name")
    assert fault_of(Job(str(tmp_path / "good" / "x"), "", ())) == ("decode", "not_found", "not a directory")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert fault_of(Job(str(tmp_path / "good"), "", ())) == ("decode", "unreadable", "permission denied")


def test_a_pipe_may_be_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert fault_of(Job(str(tmp_path / "pipe"), "", ())) is None


def test_frames_are_counted_as_they_are_read() -> None:
    counted: list[int] = []
    ends: list[str] = []
    clip = MadeClip("a", "2")
    frames = CountedFrames(clip, counted.append, lambda: ends.append("released"))
    assert frames.ready()
    chunks = iter(frames)
    next(chunks)
    assert counted == []
    next(chunks)
    assert counted == [1]
    frames.close()
    assert (clip.closed, ends) == (True, ["released"])


def test_progress_keeps_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.loading("m")
    progress.opened(INFO)
    progress.frames(3)
    progress.row(row_of())
    progress.item_done()
    progress.warned("a", "odd")
    assert capsys.readouterr() == ("", "")


# Signals


def test_interrupts_that_were_not_entered_catch_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupts = Interrupts()
    interrupts.check()
    with interrupts.allowed():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_raised_at_once_where_it_may_come_and_the_next_one_ends_the_process() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted, match="interrupted by SIGINT") as stop, interrupts.allowed():
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)
            raise AssertionError
        assert stop.value.exit_code == 130
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_DFL] * 2
        with pytest.raises(Interrupted):
            interrupts.check()  # again: it was not acted on
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_after_allowed_a_signal_waits_again() -> None:
    with Interrupts() as interrupts:
        with interrupts.allowed():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM") as stop:
            interrupts.check()
        assert stop.value.exit_code == 143
