"""One decoder process: started in its own session, confined, read with a deadline, killed with all it started.

A `Child` belongs to the thread that made it: that thread alone reads, and the kernel kills the process when the
thread ends, so a child that shall last is started by a thread that does. `kill` may be called from any thread.
`launch.py` says how a child is confined. Knows nothing of what the bytes mean.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from llava_mini_cli.media.libraries import library_rules, program_rules

NOTES = "pipe:{notes}"
MORE_NOTES = "{more_notes}"

_LAUNCHER = Path(__file__).with_name("launch.py")
_PIPE_BYTES = 1 << 20  # fewer switches between decoder and reader than with the usual 64 KiB
_LONGEST_WAIT_S = 3600.0  # of one look at the pipes: the kernel takes no more than 24.8 days
_KEPT_LINES = 4000  # of what a decoder says, from the beginning (a banner with many chapters is long); more is counted


class StalledError(Exception):
    """The decoder gave nothing within the deadline."""


class KilledError(Exception):
    """The child was killed by `kill` while it was being read."""


@dataclass(frozen=True)
class Command:
    """A program to run: an argument vector with its absolute path, the bytes that it finds on stdin, what it may do.

    The child may write to a second pipe, its "notes"; the argument `NOTES` becomes the address of that. `MORE_NOTES` on
    stdin becomes the number of another descriptor of the same pipe, for a second writer of whole lines. It can write
    to its pipes and descriptors, but not make a file longer: shared memory is given its size before it is handed on.
    """

    argv: Sequence[str]
    stdin: bytes = b""
    pythonpath: str | None = None  # put before the child's own PYTHONPATH
    reads: tuple[Path, ...] = ()  # files that it may open beside libraries, links followed; missing ones are no error
    memory: int | None = None  # bytes of private memory that it may take; None: no bound
    pass_fds: tuple[int, ...] = ()  # descriptors that it inherits under their numbers
    alone: bool = False  # True: it may start threads, but no process; `memory` is then all that it can take


def python_command(
    module: str,
    *arguments: str,
    stdin: bytes = b"",
    reads: tuple[Path, ...] = (),
    memory: int | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Command:
    """A command that runs a module of the package in this Python, and imports nothing from the current directory."""
    argv = (sys.executable, "-P", "-m", module, *arguments)
    return Command(argv, stdin, str(Path(__file__).parents[2]), reads, memory, pass_fds, alone=True)


class Child:
    """A running decoder process with three pipes: stdout, stderr and notes."""

    def __init__(self, command: Command, timeout: float) -> None:
        self.timeout = timeout
        self.memory = command.memory
        self.said: list[str] = []  # the first lines of stderr
        self.unsaid = 0  # lines of stderr beyond those
        self._killed = False
        notes_read, notes_write = os.pipe()
        try:
            self._process = _start(command, notes_write)
        except BaseException:
            os.close(notes_read)
            raise
        finally:
            os.close(notes_write)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._notes = os.fdopen(notes_read, "rb", buffering=0)
        self._stdout: IO[bytes] = self._process.stdout
        self._stderr: IO[bytes] = self._process.stderr
        self._selector = selectors.DefaultSelector()
        for pipe in (self._stdout, self._stderr, self._notes):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._note_bytes = b""
        self._error_bytes = b""
        self._deadline = time.monotonic() + timeout

    def expect(self) -> None:
        """Starts the deadline anew: from now on the child has `timeout` seconds for what is read next."""
        self._deadline = time.monotonic() + self.timeout

    def read_some(self) -> bytes:
        """The bytes that are on stdout by now, at least one; b"" at its end."""
        while True:
            self._wait_for(self._stdout)
            data = _read(self._stdout, 1 << 20)
            if data is not None:
                return data

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` from stdout; gives fewer bytes only at its end."""
        filled = 0
        while filled < len(buffer):
            self._wait_for(self._stdout)
            try:
                count = os.readv(self._stdout.fileno(), [buffer[filled:]])
            except BlockingIOError:
                continue
            if count == 0:
                break
            filled += count
        return filled

    def read_note(self, pause: float = 0.0) -> str | None:
        """The next line of the notes, or None at their end.

        Args:
            pause: seconds to wait first where there is none yet, so that many short ones are read together.
        """
        while b"\n" not in self._note_bytes:
            if pause:
                time.sleep(pause)
            self._wait_for(self._notes)
            data = _read(self._notes, 1 << 16)
            if data == b"":
                return None
            self._note_bytes += data or b""
        line, _, self._note_bytes = self._note_bytes.partition(b"\n")
        return line.decode("ascii", "replace")

    def finish(self) -> int:
        """Reads stderr to its end, reaps the child and gives its exit status (negative: killed by that signal)."""
        while self._stderr in (key.fileobj for key in self._selector.get_map().values()):
            self._wait_for(self._stderr)
            self._drain_stderr()
        remaining = max(0.0, self._deadline - time.monotonic())
        try:
            status = self._process.wait(remaining)
        except subprocess.TimeoutExpired:
            raise StalledError from None
        if self._killed:
            raise KilledError
        return status

    def kill(self) -> None:
        """Ends the child and everything it started. Safe at any time, from any thread, more than once."""
        self._killed = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kills and reaps the child and closes the pipes. Only for the thread that reads."""
        self.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._stdout, self._stderr, self._notes):
            pipe.close()

    def _wait_for(self, pipe: IO[bytes]) -> None:
        """Returns when `pipe` has bytes or has ended; drains stderr meanwhile."""
        while True:
            if self._killed:
                raise KilledError
            remaining = self._deadline - time.monotonic()
            wait = min(max(0.0, remaining), _LONGEST_WAIT_S)
            ready = {key.fileobj for key, _ in self._selector.select(wait)}
            if self._stderr in ready and pipe is not self._stderr:
                self._drain_stderr()
            if pipe in ready:
                return
            if remaining <= 0:
                raise StalledError

    def _drain_stderr(self) -> None:
        data = _read(self._stderr, 1 << 16)
        if data == b"":
            self._selector.unregister(self._stderr)
        *lines, self._error_bytes = (self._error_bytes + (data or b"\n")).split(b"\n")
        for line in lines:
            text = line[:500].decode("utf-8", "replace").strip()
            if text and len(self.said) < _KEPT_LINES:
                self.said.append(text)
            elif text:
                self.unsaid += 1


def confined_command(command: Command) -> tuple[list[str], dict[str, str]]:
    """The argument vector that starts a command through `launch.py`, and its environment."""
    argv = list(command.argv)
    rules = [*library_rules(), *program_rules(argv[0]), *(f"r{path.absolute()}" for path in command.reads)]
    if not command.alone:
        rules.append("p")
    limits = (str(os.getpid()), str(command.memory or 0))
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), *limits, *rules, "--"]
    # With a thread for each processor, numpy would set aside 40 MiB for each; decoders multiply no matrices.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if command.pythonpath is not None:
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (command.pythonpath, inherited)))
    return [*launcher, *argv], environment


def _start(command: Command, notes: int) -> "subprocess.Popen[bytes]":
    argv = [f"pipe:{notes}" if word == NOTES else word for word in command.argv]
    confined, environment = confined_command(replace(command, argv=argv))
    with _unnamed_file() as stdin, os.fdopen(os.dup(notes), "wb", buffering=0) as more:
        stdin.write(command.stdin.replace(MORE_NOTES.encode(), b"%d" % more.fileno()))
        stdin.seek(0)
        process = subprocess.Popen(
            confined,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(notes, more.fileno(), *command.pass_fds),
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
    if sys.platform == "linux" and process.stdout is not None:
        with contextlib.suppress(OSError):  # above the user's limit: the usual size serves too
            fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _unnamed_file() -> IO[bytes]:
    """A file without a name: in memory where the system has that, since no folder need be writable for it."""
    return os.fdopen(os.memfd_create("stdin"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


def _read(pipe: IO[bytes], size: int) -> bytes | None:
    """Up to `size` bytes of a pipe, b"" at its end, None when there are none yet."""
    try:
        return os.read(pipe.fileno(), size)
    except BlockingIOError:
        return None
