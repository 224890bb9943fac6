"""How a child ended: which signal it was, whose doing that is, and that a killed one is tried once more."""

import errno
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import endings
from llava_mini_cli.media.child import Child, Command, StalledError
from llava_mini_cli.media.endings import SignalledError, ended, started, twice


class Ended:
    """A child that has ended so and said this."""

    def __init__(self, status: int, *said: str) -> None:
        self.status = status
        self.said = list(said)

    def finish(self) -> int:
        return self.status


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(endings.time, "sleep", made.append)
    return made


@pytest.mark.parametrize(
    ("status", "said", "name"),
    [
        (-9, (), "SIGKILL"),
        (-signal.SIGSEGV, (), "SIGSEGV"),
        (-50, (), "signal 50"),
        (137, (), "SIGKILL"),  # by a shell that ran the program
        (137, ("Killed",), "SIGKILL"),
        (128 + signal.SIGSEGV, ("[error] bad frame",), "SIGSEGV"),
        (255, (), "SIGTERM"),  # ffmpeg, told to end while it says errors only
        (255, ("[error] bad frame",), "SIGTERM"),
        (255, ("[info] Exiting normally, received signal 15.",), "SIGTERM"),
        (255, ("[info] Exiting normally, received signal 2.",), "SIGINT"),
    ],
)
def test_an_end_by_a_signal(status: int, said: tuple[str, ...], name: str) -> None:
    child: Any = Ended(status, *said)
    with pytest.raises(SignalledError) as caught:
        ended(child)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, ()),
        (0, ("[info] Exiting normally, received signal 15.",)),
        (1, ()),
        (128, ()),
        (183, ("[error] Invalid data found when processing input",)),  # what ffmpeg makes of its own errors
        (234, ("[error] Invalid argument",)),
        (255, ("[fatal] Operation not permitted",)),
        (256 - errno.EUCLEAN, (f"[error] {os.strerror(errno.EUCLEAN)}",)),  # as much as 128 + SIGSEGV
    ],
)
def test_an_end_of_its_own(status: int, said: tuple[str, ...]) -> None:
    child: Any = Ended(status, *said)
    assert ended(child) == status


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1"])
def test_what_lies_in_the_moment(name: str) -> None:
    error = SignalledError(name).as_media_error()
    assert (error.kind, str(error)) == ("decoder_killed", f"the decoder was ended from outside ({name})")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS", "SIGSYS", "SIGTRAP", "SIGXFSZ"])
def test_what_the_file_did(name: str) -> None:
    error = SignalledError(name).as_media_error()
    assert (error.kind, str(error)) == ("corrupt", f"the decoder crashed ({name})")


class Runs:
    """A run that ends in these ways, one after the other."""

    def __init__(self, *ends: Exception | int) -> None:
        self.ends = list(ends)

    def __call__(self) -> int:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def test_a_killed_run_is_tried_once_more_after_a_pause(pauses: list[float]) -> None:
    assert twice(Runs(1)) == 1
    assert pauses == []
    assert twice(Runs(SignalledError("SIGKILL"), 2)) == 2
    assert pauses == [0.5]
    runs = Runs(SignalledError("SIGSEGV"), SignalledError("SIGKILL"), 3)
    with pytest.raises(MediaError) as caught:
        twice(runs)
    assert caught.value.kind == "decoder_killed"
    assert runs.ends == [3]


def test_other_failures_are_not_tried_again(pauses: list[float]) -> None:
    for error in (StalledError(), MediaError("empty", "nothing")):
        with pytest.raises(type(error)):
            twice(Runs(error, 1))
        with pytest.raises(type(error)):
            twice(Runs(SignalledError("SIGKILL"), error, 1))
    assert pauses == [0.5, 0.5]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EMFILE, "no_resources"), (errno.EAGAIN, "no_resources"), (errno.ENOMEM, "out_of_memory")],
)
def test_a_system_that_has_no_room_for_a_child(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    def full(*_: object) -> Child:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(endings, "Child", full)
    with pytest.raises(MediaError) as caught:
        started(Command(["/bin/true"]), 20)
    assert caught.value.kind == kind
    assert str(caught.value) == f"no decoder could be started ({os.strerror(number).lower()})"


def test_a_mistake_of_ours_is_none_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object) -> Child:
        raise OSError(errno.EINVAL, "odd")

    monkeypatch.setattr(endings, "Child", odd)
    with pytest.raises(OSError, match="odd"):
        started(Command(["/bin/true"]), 20)


@pytest.mark.parametrize(("name", "status"), [("KILL", -9), ("SEGV", -11), ("TERM", -15)])
def test_a_process_that_ends_itself(name: str, status: int) -> None:
    with closing(started(Command(["/bin/sh", "-c", f"kill -{name} $$"]), 20)) as child:
        with pytest.raises(SignalledError) as caught:
            ended(child)
        assert caught.value.name == f"SIG{name}"
        assert child.finish() == status


def test_nobody_else_waits_for_the_end_of_a_decoder() -> None:
    """The rule stands in one place."""
    folder = Path(endings.__file__).parent
    callers = {path.name for path in folder.glob("*.py") if ".finish()" in path.read_text()}
    assert callers == {"endings.py"}
