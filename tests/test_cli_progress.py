"""Progress of a run: when there is a bar, what it shows, the lines in its place, and warnings."""

import io
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from output_rows import FAILED, ROW
from test_cli_words import Screen, said

from llava_mini_cli.commands import reporter
from llava_mini_cli.commands.reporter import Reporter, shortened
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.tally import Tally

CLIP = ClipInfo("in/a.mp4", "video", 64, 48, 4.25, 17, 1.0, "h264")


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
        with Reporter(Tally(), 1, quiet=quiet, verbose=False) as shown:
            shown.warned("a.mp4", "odd")
        assert said(capsys) == ["llava-mini: warning: a.mp4: odd"] * (not quiet)


def test_a_label_is_the_end_of_a_long_name() -> None:
    assert shortened("a" * 32) == "a" * 32
    assert shortened("b" + "a" * 32) == "…" + "a" * 31
    assert shortened("two\nlines") == "two lines"
