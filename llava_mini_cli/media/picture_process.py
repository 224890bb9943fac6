"""One process that decodes pictures, as its asker sees it: asked with a deadline, its end told with the true reason.

`picture_pool.py` starts them. Knows the messages' form, and nothing of what they say.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_mini_cli.media.child import Command, KilledError, confined_command, python_command
from llava_mini_cli.media.endings import is_crash, signal_name
from llava_mini_cli.media.picture_messages import BrokenMessageError, receive, send

START_S = 60.0  # that a process may take to start, on a machine that is very busy
MOST_BYTES = 1 << 30  # that decoding one picture may take
PICTURES = 1000  # that one decodes before another takes its place, for what libraries leak
_BASE_BYTES = 256 << 20  # of private memory that Python and all packages may have taken beside a picture
_SLACK_BYTES = 32 << 20  # more than was asked for: a decoder's threads have stacks
_ASKED_UNDER_ONE = 32  # requests under one bound, until what leaked is no longer counted against a picture
_LONGEST_WAIT_S = 3600.0

CommandOf = Callable[[int], Command]  # from the number of the inherited socket to what is run


class SilentError(Exception):
    """It gave no sign of life within the deadline."""


class EndedError(Exception):
    """It ended by itself, or was ended from outside; the text says how."""

    def __init__(self, status: int) -> None:
        how = signal_name(-status) if status < 0 else f"it ended with status {status}"
        self.is_from_outside = status < 0 and not is_crash(how)
        super().__init__(how)


def worker_command(channel: int) -> Command:
    """How a process that decodes pictures is started: it may read no file, and take what one picture may."""
    memory = _BASE_BYTES + MOST_BYTES + _SLACK_BYTES
    module = "llava_mini_cli.media.picture_worker"
    return python_command(module, str(channel), memory=memory, pass_fds=(channel,))


class PictureProcess:
    """A process that decodes one picture after the other. `kill` may be called from any thread, at any time."""

    def __init__(self, command_of: CommandOf = worker_command) -> None:
        """Starts it, without waiting until it is ready. Raises `OSError` where the system gives no process."""
        self.since: float | None = None  # when work on a picture began, or went on; None: it waits
        self.idle_since = time.monotonic()
        self.pictures = 0
        self._had = 0  # bytes of private memory, when it was asked
        self._bounded, self._asked = 0, 0  # bytes more than that it may take, and how often it was asked since
        self._is_ready = False
        self._is_stopped = False
        self._channel, theirs = socket.socketpair()
        try:
            command = command_of(theirs.fileno())
            argv, environment = confined_command(command)
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries complain there about pictures
                pass_fds=command.pass_fds,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def ask(
        self, request: Mapping[str, Any], timeout: float, descriptors: Sequence[int] = (), memory: int | None = None
    ) -> dict[str, Any]:
        """What the process answers.

        Args:
            timeout: seconds without a sign of life. memory: bytes that it may take for this, more than it has.

        Raises:
            SilentError, EndedError, KilledError: there is no answer; afterwards the process is gone.
        """
        if not self._is_ready:
            self._next(START_S)
            self._is_ready = True
        self._asked += 1
        if memory is not None and (memory != self._bounded or self._asked == _ASKED_UNDER_ONE):
            self._bound(memory)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # how it ended is read below
            send(self._channel, {**request, "memory": memory or 0}, descriptors)
        while (reply := self._next(timeout)) == {"alive": True}:
            pass
        return reply

    def tell(self, request: Mapping[str, Any]) -> None:
        """Sends something that matters only if the process lives."""
        with contextlib.suppress(OSError):
            send(self._channel, request)

    def _next(self, timeout: float) -> dict[str, Any]:
        self._channel.settimeout(min(timeout, _LONGEST_WAIT_S))
        deadline = time.monotonic() + timeout
        while True:
            try:
                received = receive(self._channel)
                break
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                self.kill()
                raise SilentError from None
            except (BrokenMessageError, OSError):
                received = None
                break
        if received is None:
            raise self._end()
        message, descriptors = received
        for descriptor in descriptors:  # none are expected
            os.close(descriptor)
        return message

    def _end(self) -> Exception:
        """How the process ended, which is waited for a moment; one that speaks nonsense is ended here."""
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = None
        is_stopped = self._is_stopped
        self.kill()
        if is_stopped:
            return KilledError()
        return EndedError(1 if status is None else status)

    def _bound(self, memory: int) -> None:
        """Bounds the private memory of the process (Linux): what it has, and `memory` bytes more."""
        self._had = self._private_bytes()
        self._bounded, self._asked = memory, 0
        if sys.platform == "linux" and self._had:
            with contextlib.suppress(OSError, ValueError):  # it has just ended, or the user forbids it
                hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)[1]
                soft = self._had + memory + _SLACK_BYTES
                if hard != resource.RLIM_INFINITY:
                    soft = min(soft, hard)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (soft, hard))

    def grown(self) -> int:
        """Bytes of private memory that the process has more than when it was asked last; 0 where nobody tells."""
        return max(0, self._private_bytes() - self._had)

    def _private_bytes(self) -> int:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0
        return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:")), 0)

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return not self._is_stopped and self._process.poll() is None

    def is_quick(self, seconds: float) -> bool:
        """True if it works on a picture, and has not for longer than this."""
        since = self.since
        return since is not None and time.monotonic() - since < seconds

    def kill(self) -> None:
        """Ends the process and whatever it started, and reaps it. Safe more than once."""
        self._is_stopped = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with contextlib.suppress(OSError):  # wakes whoever waits for it
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """`kill`, for whoever alone has it: closes the socket, too."""
        self.kill()
        self._channel.close()

    def forget(self) -> None:
        """Lets go of the process without ending it: in a process that was forked from its asker."""
        self._channel.close()
        self._process.returncode = 0
