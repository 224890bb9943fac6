"""A child process: what it is given, what it says, its deadline, and that it ends with all it started."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from llava_mini_cli.media import child as module
from llava_mini_cli.media.child import NOTES, Child, Command, KilledError, StalledError, python_command

LAUNCH = Path(module.__file__).with_name("launch.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


class Clock:
    """Time that passes when a test says so, in place of the module's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def shell(script: str, *arguments: str, stdin: bytes = b"", timeout: float = 20.0) -> "closing[Child]":
    return closing(Child(Command(["/bin/sh", "-c", script, *arguments], stdin), timeout))


def everything(child: Child) -> bytes:
    return b"".join(iter(child.read_some, b""))


def test_what_it_finds_on_stdin_and_writes_to_stdout() -> None:
    with shell("cat; cat", stdin=b"words" * 10_000) as child:
        assert everything(child) == b"words" * 10_000
        assert child.finish() == 0


def test_a_buffer_is_filled_across_several_writes_and_short_only_at_the_end() -> None:
    buffer = bytearray(6)
    with shell("printf ab; sleep 0.05; printf cdefgh") as child:
        assert child.read_into(memoryview(buffer)) == 6
        assert buffer == b"abcdef"
        assert child.read_into(memoryview(buffer)) == 2
        assert buffer[:2] == b"gh"
        assert child.read_into(memoryview(buffer)) == 0


def test_notes_come_line_by_line_beside_stdout() -> None:
    script = "printf '10\\n2' > /dev/fd/${0#pipe:}; printf pixels; sleep 0.05; printf '0\\n30' > /dev/fd/${0#pipe:}"
    with shell(script, NOTES) as child:
        assert [child.read_note() for _ in range(3)] == ["10", "20", None]  # a line that is cut short is none
        assert everything(child) == b"pixels"


def test_what_it_says_is_kept_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_LINES", 3)
    long = "x" * 600
    with shell(f"printf ' one \\n\\n{long}\\n\\303\\ntwo\\n\\nthree\\nlast' >&2; exit 3") as child:
        assert child.finish() == 3
        assert child.said == ["one", "x" * 500, "\ufffd"]
        assert child.unsaid == 3


def test_the_signal_that_ended_it() -> None:
    with shell("kill -9 $$") as child:
        assert child.finish() == -signal.SIGKILL


def test_stderr_is_emptied_while_stdout_is_read() -> None:
    with shell("head -c 300000 /dev/zero | tr '\\0' 'e' >&2; echo done") as child:
        assert everything(child) == b"done\n"
        assert child.finish() == 0
        assert child.said == ["e" * 500]


def test_a_deadline_ends_the_waiting_and_can_begin_anew(clock: Clock) -> None:
    with shell("read line; echo $line", stdin=b"late\n", timeout=100) as child:
        clock.now += 99
        child.expect()
        clock.now += 99  # 198 in all
        assert everything(child) == b"late\n"
    with shell("exec sleep 60", timeout=100) as child:
        clock.now += 101
        for read in (child.read_some, child.read_note, child.finish, lambda: child.read_into(memoryview(bytearray(1)))):
            with pytest.raises(StalledError):
                read()


def test_what_is_there_can_be_read_after_the_deadline(clock: Clock) -> None:
    with shell("echo there", timeout=100) as child:
        while child.finish() != 0:
            pass
        clock.now += 101
        assert child.read_some() == b"there\n"


def test_one_that_closed_its_pipes_and_does_not_end_is_stalled() -> None:
    with shell("exec >&- 2>&-; exec sleep 60", timeout=0.3) as child, pytest.raises(StalledError):
        child.finish()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_closing_ends_it_and_what_it_started() -> None:
    with shell("sleep 60 & echo $!; wait") as child:
        started = int(child.read_some())
        assert alive(started)
    wait_for(lambda: not alive(started))
    child.close()  # may be called again
    child.kill()


def test_killing_from_another_thread_ends_the_reading() -> None:
    with shell("exec sleep 60") as child:
        threading.Timer(0.1, child.kill).start()
        with pytest.raises(KilledError):
            child.read_some()  # the end, or that it was killed
            child.finish()


def test_one_that_was_killed_gives_no_status() -> None:
    with shell("echo there") as child:
        assert everything(child) == b"there\n"
        while child.finish() != 0:
            pass
        child.kill()
        with pytest.raises(KilledError):
            child.finish()


def test_it_leads_a_session_of_its_own() -> None:
    code = "import os; print(os.getsid(0) == os.getpid() == os.getpgrp())"
    with closing(Child(Command([sys.executable, "-c", code]), 20)) as child:
        assert everything(child) == b"True\n"


@linux
def test_its_stdout_is_a_pipe_of_a_mebibyte() -> None:
    code = "import fcntl; print(fcntl.fcntl(1, fcntl.F_GETPIPE_SZ))"
    with closing(Child(Command([sys.executable, "-c", code]), 20)) as child:
        assert everything(child) == b"1048576\n"


def open_files() -> int:
    gc.collect()  # what earlier tests left behind
    return psutil.Process().num_fds()


@pytest.fixture
def no_file_left_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


@pytest.mark.usefixtures("no_file_left_open")
def test_no_pipe_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with shell("echo there") as child:
        everything(child)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(OSError, match="no more processes"):
        shell("echo there")


def test_a_module_of_the_package_is_found_wherever_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = python_command("llava_mini_cli.media.x", "a", stdin=b"b")
    assert command.argv == (sys.executable, "-P", "-m", "llava_mini_cli.media.x", "a")
    assert command.stdin == b"b"
    assert command.alone
    assert command.pythonpath is not None
    assert (Path(command.pythonpath) / "llava_mini_cli" / "media" / "child.py").is_file()
    for inherited, expected in ((None, "first"), ("second", f"first{os.pathsep}second")):
        monkeypatch.setenv("PYTHONPATH", inherited) if inherited else monkeypatch.delenv("PYTHONPATH", raising=False)
        echo = Command(["/bin/sh", "-c", "printf %s $PYTHONPATH"], pythonpath="first")
        with closing(Child(echo, 20)) as child:
            assert everything(child).decode() == expected


@linux
def test_one_whose_parent_is_gone_does_not_begin() -> None:
    run, echo = [sys.executable, "-I", "-S", str(LAUNCH)], ["0", "--", "/bin/echo", "begun"]
    orphan = subprocess.run([*run, str(os.getpid() + 1), *echo], capture_output=True, check=False)
    assert (orphan.returncode, orphan.stdout) == (1, b"")
    ours = subprocess.run([*run, str(os.getpid()), *echo], capture_output=True, check=False)
    assert (ours.returncode, ours.stdout) == (0, b"begun\n")
