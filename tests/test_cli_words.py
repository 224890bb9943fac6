"""What is said: progress, the end of a run, the summary, the dry run, answers at a terminal, and lines on stderr."""

import io
import json
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from output_rows import FAILED, ROW

from llava_mini_cli import __version__
from llava_mini_cli.commands import dry_run, reporter, stderr, summary
from llava_mini_cli.commands.archive_reporter import ArchiveReporter
from llava_mini_cli.commands.reporter import Reporter, shortened
from llava_mini_cli.commands.run import exit_code
from llava_mini_cli.commands.summary import SummaryFile
from llava_mini_cli.commands.terminal import BlockWriter, PlainWriter
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.forecast import Forecast, Longest
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import FailedMedium, Tally

CLIP = ClipInfo("in/a.mp4", "video", 64, 48, 4.25, 17, 1.0, "h264")


class Screen(io.TextIOWrapper):
    """A terminal that remembers what was written to it."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding, write_through=True, newline="")

    def isatty(self) -> bool:
        return True

    def getvalue(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


class BarLog:
    """A bar that remembers what it was told."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.told: list[object] = []

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        self.told.append((text, refresh))

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.told.append((text, refresh))

    def update(self, count: int = 1) -> None:
        self.told.append((count, self.total))

    def close(self) -> None:
        self.told.append("closed")


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(reporter.time, "monotonic", made)
    return made


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> BarLog:
    made = BarLog()
    monkeypatch.setattr(reporter, "_bar", lambda total, *, by_frame: made)
    return made


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# Progress


@pytest.mark.parametrize(
    ("terminal", "quiet", "drawn"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_there_is_a_bar_on_a_terminal_unless_all_is_quiet(
    terminal: bool, quiet: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with Reporter(Tally(), 3, quiet=quiet, verbose=False):
        pass
    assert ("0/3" in screen.getvalue()) == drawn


@pytest.mark.parametrize(("total", "shown"), [(3, "0/3 [00:00<?, ? media/s]"), (1, "0 frames [00:00, ? frames/s]")])
def test_a_bar_counts_media_or_the_frames_of_one(total: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("ascii")
    monkeypatch.setattr(sys, "stderr", screen)
    with Reporter(Tally(), total, quiet=False, verbose=False):
        assert shown in screen.getvalue()
        assert screen.getvalue().isascii()
    assert screen.getvalue().endswith("\r")  # nothing of it stays


@pytest.mark.parametrize(("encoding", "plain"), [("utf-8", False), ("UTF-16", False), ("ascii", True)])
def test_a_bar_is_drawn_with_signs_that_the_terminal_has(
    encoding: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Screen(encoding))
    bar = reporter._bar(3, by_frame=False)  # pyright: ignore[reportPrivateUsage]
    assert (bar.ascii, bar.dynamic_ncols is not False) == (plain, True)


def test_a_bar_over_many_media(bar: BarLog, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    tally = Tally(media=1, media_skipped=2, media_failed=1, frames=30)
    with Reporter(tally, 6, quiet=False, verbose=False) as shown:
        shown.loading("m")
        shown.opened(CLIP)
        shown.frames(5)
        clock.now += 20
        shown.item_done()
    assert bar.told == [
        ("loading m", True), ("in/a.mp4", False), ("1.5 frames/s, 1 failed", False), (1, 4), "closed",
    ]  # fmt: skip
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]  no plain lines beside a bar


def test_a_bar_over_one_medium_counts_its_frames(bar: BarLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with Reporter(Tally(), 1, quiet=False, verbose=False) as shown:
        shown.opened(CLIP)
        shown.frames(5)
        shown.item_done()
    assert bar.told == [("in/a.mp4", False), (5, 17), "closed"]


def test_lines_in_place_of_a_bar_come_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(media=1, answered=2, failed=1, frames=30, media_skipped=1)
    with Reporter(tally, 5, quiet=False, verbose=False) as shown:
        clock.now += 9.9
        shown.frames(1)
        assert said(capsys) == []
        clock.now += 0.1
        shown.item_done()
        shown.frames(1)
        line = "llava-mini: 1/4 media, 30 frames, 2 answers, 1 failed, 0.1 media/s, 3.0 frames/s, 00:30 left"
        assert said(capsys) == [line]
        clock.now += 10
        tally.media = 0
        shown.frames(1)
        assert said(capsys) == ["llava-mini: 0/4 media, 30 frames, 2 answers, 1 failed, 0.0 media/s, 1.5 frames/s"]
    with Reporter(Tally(media=2), None, quiet=False, verbose=False) as shown:
        clock.now += 20
        shown.frames(1)
        assert said(capsys) == ["llava-mini: 2 media, 0 frames, 0 answers, 0 failed, 0.1 media/s, 0.0 frames/s"]
    with Reporter(Tally(), 5, quiet=True, verbose=False) as shown:
        clock.now += 20
        shown.frames(1)
        assert said(capsys) == []


def join_counters() -> int:
    """Waits for the threads that count, none of which keeps the process; says how many there were."""
    counters = [thread for thread in threading.enumerate() if thread.name == "count"]
    for thread in counters:
        assert thread.daemon
        thread.join()
    return len(counters)


def test_media_that_nobody_counted_are_counted_once_there_is_work(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[str] = []

    asked_for = threading.Event()

    def jobs() -> Any:
        counted.append("counted")
        assert asked_for.wait(30)
        return iter(range(7))

    shown = Reporter(Tally(media=1), None, quiet=False, verbose=False)
    shown.count_from(jobs)
    assert counted == []
    shown.loading("m")
    threading.Timer(0.1, asked_for.set).start()
    assert join_counters() == 1
    clock.now += 10
    shown.frames(1)
    assert said(capsys)[0].startswith("llava-mini: 1/7 media, ")
    for total, quiet in ((3, False), (None, True)):
        other = Reporter(Tally(), total, quiet=quiet, verbose=False)
        other.count_from(jobs)
        other.loading("m")
        assert join_counters() == 0
    assert counted == ["counted"]


def test_what_is_told_with_v(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (True, False):
        with Reporter(Tally(), 2, quiet=False, verbose=verbose) as shown:
            shown.loading("m")
            shown.opened(CLIP)
            shown.opened(replace(CLIP, kind="image", duration_s=None, codec=None))
            shown.row(FAILED)
            shown.row(FAILED)
            shown.row(replace(FAILED, id="other"))
            shown.row(ROW)
        assert said(capsys) == [
            "llava-mini: loading m",
            "in/a.mp4: video, 64x48, 4.2 s, h264",
            "in/a.mp4: image, 64x48, codec unknown",
            "in/a.mp4: failed: cut short",
            "other: failed: cut short",
        ] * verbose  # fmt: skip


def test_warnings_are_told_once_a_medium_and_counted_beyond_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    odd = [replace(ROW, id=str(number), warning="odd") for number in range(22) for _ in range(2)]
    for verbose, quiet, lines in ((False, False, 21), (True, False, 22), (False, True, 0)):
        with Reporter(Tally(), 2, quiet=quiet, verbose=verbose) as shown:
            for row in odd:
                shown.row(row)
        told = said(capsys)
        assert told[:20] == [f"llava-mini: warning: {number}: odd" for number in range(20)][:lines]
        assert len(told) == lines
        assert told[-1:] == {
            21: ["llava-mini: warning: and 2 more warnings; they stand in their rows"],
            22: ["llava-mini: warning: 21: odd"],
            0: [],
        }[lines]  # fmt: skip


def test_warnings_of_indexing_name_the_medium(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with ArchiveReporter(Tally(), 1, quiet=quiet, verbose=False) as shown:
            shown.warned("a.mp4", "odd")
        assert said(capsys) == ["llava-mini: warning: a.mp4: odd"] * (not quiet)


def test_a_label_is_the_end_of_a_long_name() -> None:
    assert shortened("a" * 32) == "a" * 32
    assert shortened("b" + "a" * 32) == "…" + "a" * 31
    assert shortened("two\nlines") == "two lines"


# The end


def test_words_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(media=3, answered=4, failed=2, frames=7)
    summary.say_counts(tally, 1.25, None)
    tally.skipped, tally.errors_skipped, tally.stopped_by = 5, 1, "max_failures"
    summary.say_counts(tally, 61.0, Path("out.jsonl"))
    tally.errors_skipped = 0
    summary.say_counts(tally, 61.0, None)
    there = "5 were there (1 failed; --retry-errors tries them again)"
    counts = "llava-mini: 3 media, 7 frames, 4 answers, 2 failed"
    assert said(capsys) == [
        f"{counts}, 1.2 s",
        f"{counts}, {there}, 61.0 s, stopped by --max-failures, written to out.jsonl",
        f"{counts}, 5 were there, 61.0 s, stopped by --max-failures",
    ]


def test_failed_media_are_listed_and_the_others_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [FailedMedium("a\nb.mp4", "timeout", "too\nslow"), FailedMedium("c.mp4", "corrupt", "bad")]
    summary.say_failures(Tally(media_failed=2, listed=listed))
    assert said(capsys) == ["llava-mini: error: a b.mp4: too slow", "llava-mini: error: c.mp4: bad"]
    summary.say_failures(Tally(media_failed=5, listed=listed[1:]))
    assert said(capsys) == ["llava-mini: error: c.mp4: bad", "llava-mini: error: and 4 more failed"]
    monkeypatch.setattr(sys, "stderr", Screen())
    summary.say_failures(Tally(media_failed=1, listed=listed[1:]))
    assert sys.stderr.getvalue() == "llava-mini: error: c.mp4: bad\n"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", Screen())
    summary.say_failures(Tally(media_failed=2, listed=listed))
    table = [line.split() for line in sys.stderr.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert table == [["failed", "why"], ["a", "b.mp4", "timeout", "too", "slow"], ["c.mp4", "corrupt", "bad"]]


@pytest.mark.parametrize(
    ("tally", "codes"),
    [
        (Tally(), (0, 0, 0)),
        (Tally(answered=1), (0, 0, 0)),
        (Tally(answered=1, failed=1), (3, 0, 0)),
        (Tally(failed=1), (3, 3, 0)),
        (Tally(skipped=2, errors_skipped=2), (3, 3, 0)),
        (Tally(skipped=2, errors_skipped=1), (3, 0, 0)),
        (Tally(answered=1, damaged=1), (3, 0, 0)),
        (Tally(damaged=1), (3, 3, 0)),
        (Tally(answered=1, stopped_by="limit"), (101, 101, 101)),
    ],
)
def test_the_exit_code(tally: Tally, codes: tuple[int, int, int]) -> None:
    assert (exit_code(tally, "any"), exit_code(tally, "all"), exit_code(tally, "never")) == codes


# The summary


OPTIONS = RunOptions(ModelOptions("m"), SamplingOptions(), GenerationOptions(), RunLimits(media=2))


def test_the_summary_of_a_run() -> None:
    tally = Tally(
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        1.23456,
        Counter(corrupt=1, timeout=4),
        [FailedMedium("a", "timeout", "slow")],
        0,
        "limit",
    )
    began = datetime.now(UTC) - timedelta(seconds=5)
    told = summary.summary(tally, OPTIONS, Path("out"), began, exit_code=101, error="two\nlines")
    assert 5 <= told.pop("seconds") < 60
    settings = told.pop("settings")
    assert told == {
        "version": __version__, "exit_code": 101, "error": "two lines", "stopped_by": "limit",
        "began_at": began.isoformat(timespec="seconds"), "media": 1, "media_failed": 2, "media_skipped": 3,
        "rows_answered": 4, "rows_failed": 5, "rows_skipped": 6, "errors_skipped": 7, "frames": 8,
        "video_seconds": 1.235, "failures": {"timeout": 4, "corrupt": 1},
        "failed": [{"id": "a", "error_type": "timeout", "error": "slow"}], "output": "out",
    }  # fmt: skip
    assert list(told["failures"]) == ["timeout", "corrupt"]
    assert settings["limits"] == {"media": 2, "failures": None}
    assert (settings["model"]["model"], settings["frames"]["fps"], settings["answer"]["seed"]) == ("m", 1.0, 0)
    nothing = summary.summary(Tally(), OPTIONS, None, began, exit_code=0, error=None)
    assert (nothing["output"], nothing["error"], nothing["failed"]) == (None, None, [])


def test_where_a_summary_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    assert SummaryFile.parse(None, rows_on_stdout=True) is None
    assert SummaryFile.parse("-", rows_on_stdout=False) == SummaryFile("-")
    name = str(tmp_path / "s.json")
    assert SummaryFile.parse(name, rows_on_stdout=True) == SummaryFile(name)
    for target, message in {
        "-": "--summary-json -: standard output holds the rows; name a file, or give -o FILE",
        str(tmp_path): f"--summary-json '{tmp_path}' is a folder; name a file",
        f"{tmp_path}/gone/s": f"--summary-json '{tmp_path}/gone/s': its folder cannot be written to",
    }.items():
        with pytest.raises(UsageError) as refused:
            SummaryFile.parse(target, rows_on_stdout=True)
        assert str(refused.value) == message


def test_a_pipe_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert SummaryFile.parse(str(tmp_path / "pipe"), rows_on_stdout=True) == SummaryFile(str(tmp_path / "pipe"))
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) != (str(tmp_path / "pipe"), os.W_OK))
    with pytest.raises(UsageError, match=r"pipe' cannot be written to$"):
        SummaryFile.parse(str(tmp_path / "pipe"), rows_on_stdout=True)


def test_a_summary_is_written_whole_behind_a_link_and_into_a_descriptor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '{\n  "a": "é \\\\xff"\n}\n'
    told = {"a": "é \udcff"}
    (tmp_path / "real").write_text("old and long" * 9)
    (tmp_path / "link").symlink_to("real")
    SummaryFile(str(tmp_path / "link")).write(told)
    assert (tmp_path / "real").read_text() == text
    assert (tmp_path / "link").is_symlink()
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"before\n")
        SummaryFile(f"/proc/self/fd/{log.fileno()}").write(told)
    assert (tmp_path / "log").read_text() == f"before\n{text}"
    SummaryFile("-").write(told)
    assert capsys.readouterr() == (text, "")
    with pytest.raises(OutputError, match="gone"):
        SummaryFile(str(tmp_path / "gone" / "s")).write(told)


# The dry run


FOUND = Forecast(
    media=1200, images=3, videos=1100, not_looked_at=97, unknown_length=2, unreadable=Counter(corrupt=1, timeout=2000),
    too_long=4, video_s=9000.12345, frames=5000, vision_tokens=6000, weights_bytes=3 << 29, rows=7000, rows_done=8000,
    longest=Longest("a.mp4", 4000, 4100, 5 << 19),
)  # fmt: skip


def test_the_forecast_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run.show(FOUND)
    assert json.loads(capsys.readouterr().out) == {
        "media": 1200, "images": 3, "videos": 1100, "not_looked_at": 97, "unknown_length": 2,
        "unreadable": {"timeout": 2000, "corrupt": 1}, "too_long": 4, "video_s": 9000.123, "frames": 5000,
        "vision_tokens": 6000, "weights_bytes": 1610612736, "rows": 7000, "rows_done": 8000,
        "longest": {"path": "a.mp4", "frames": 4000, "vision_tokens": 4100, "memory_bytes": 2621440},
    }  # fmt: skip
    assert dry_run.as_json(Forecast())["longest"] is None


def table(found: Forecast, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the table at a terminal."""
    monkeypatch.setattr(sys, "stdout", Screen())
    dry_run.show(found)
    return sys.stdout.getvalue().split()  # type: ignore[attr-defined]


def words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


def test_the_forecast_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(FOUND, monkeypatch) == words(
        [
            "media 1,200 (3 images, 1,100 videos, 97 remote, not looked at)",
            "rows to do 7,000",
            "rows already done 8,000",
            "hours of video 2.50, and 2 videos of unknown length",
            "frames 5,000",
            "vision tokens 6,000",
            "memory of the model 1.5 GiB",
            "memory of the longest 2.5 MiB (frames: 4,000, a.mp4)",
            "too long 4 media exceed the model's context; --max-frames or --fps help",
            "unreadable 2,000 timeout, 1 corrupt",
        ]
    )
    assert table(Forecast(media=1, images=1, rows=1, longest=Longest("a", 1, None, None)), monkeypatch) == words([
        "media 1 (1 images, 0 videos)", "rows to do 1", "rows already done 0", "hours of video 0.00", "frames 0",
        "vision tokens the model is not here",
    ])  # fmt: skip
    assert table(Forecast(weights_bytes=1 << 30), monkeypatch)[-6:] == ["memory", "of", "the", "model", "1.0", "GiB"]


def test_tables_do_not_colour_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "stderr", Screen())
    dry_run.show(Forecast(media=1))
    summary.say_failures(Tally(media_failed=2, listed=[FailedMedium("1.mp4", "", "2")] * 2))
    assert "1 (0 images" in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "1.mp4" in sys.stderr.getvalue()  # type: ignore[attr-defined]


# Answers at a terminal


def test_an_answer_says_how_likely_yes_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 1, quiet=False, verbose=False) as progress, PlainWriter(progress) as writer:
        assert len(writer.done) == 0
        writer.write(replace(ROW, text="Yes.", p_yes=0.875))
        writer.write(replace(ROW, text=None))
        writer.write(FAILED)
        writer.release()
    assert capsys.readouterr().out == "Yes. (yes: 0.88)\n\n"


def test_blocks_of_one_question_need_no_question(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 2, quiet=False, verbose=False) as progress, BlockWriter(progress, 1) as writer:
        for name, text in (("a", "one\ntwo"), ("a", ""), ("b", "three")):
            writer.write(replace(ROW, id=name, text=text))
        writer.write(FAILED)
        writer.release()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == ["a", "  one", "  two", "", "", "b", "  three"]


def test_blocks_of_several_questions_name_each(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 1, quiet=False, verbose=False) as progress, BlockWriter(progress, 2) as writer:
        writer.write(replace(ROW, id="a", prompt="Who?", prompt_name="who", text="Ann"))
        writer.write(replace(ROW, id="a", prompt="Why?", prompt_name=None, text="so"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == ["a", "  who", "    Ann", "  Why?", "    so"]


# Lines on stderr


def test_lines_hold_no_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    stderr.say_warning("https://user:secret@host/a  b")
    stderr.say_error("plain")
    assert said(capsys) == ["llava-mini: warning: https://host/a b", "llava-mini: error: plain"]


def test_libraries_are_hushed_unless_v_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "HF_HUB_VERBOSITY",
        "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM",
    )  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "mine")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "mine")
    root, noisy = logging.getLogger(), logging.getLogger("torch.utils._pytree")
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(noisy, "level", logging.NOTSET)
    monkeypatch.setattr(sys, "warnoptions", [])
    before = len(root.handlers)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        stderr.hush_libraries(verbose=True)
        assert (len(root.handlers), noisy.level, warnings.filters) == (before, logging.NOTSET, [])
        assert [os.environ.get(name) for name in names] == [None, None, "mine", None, None]
        monkeypatch.setattr(sys, "warnoptions", ["error"])
        stderr.hush_libraries(verbose=False)
        assert warnings.filters == []
        monkeypatch.setattr(sys, "warnoptions", [])
        stderr.hush_libraries(verbose=False)
        assert [each[0] for each in warnings.filters] == ["ignore"]
    assert [os.environ.get(name) for name in names] == ["error", "1", "mine", "1", "false"]
    assert noisy.level == logging.ERROR
    assert isinstance(root.handlers[-1], logging.NullHandler)
