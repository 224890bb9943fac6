"""How a decoder's process ended, and what follows from it: the one place where that is judged.

A process that was ended by a signal which we did not send has told nothing about its file, however much it wrote. It is
tried once more. If that ends in the same way, the signal says whose doing it was: a crash is the file's, anything else
(the kernel short of memory, an administrator) lies in the moment. Knows nothing of what the processes are asked.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from llava_mini_cli.errors import PASSING_KINDS, MediaError, kind_of
from llava_mini_cli.media.child import Child, Command

Result = TypeVar("Result")

PAUSE_S = 0.5  # before a second try: what ended the first may pass, such as a shortage of memory

_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS", "SIGSYS", "SIGTRAP", "SIGXFSZ"})
_OF_SHELL = 128  # what a shell adds to the signal that ended the program it ran
_OF_FFMPEG = 255  # its status when it was told to end by a signal that it heeds
_HEEDED = re.compile(r"received signal (\d+)")


class SignalledError(Exception):
    """A decoder's process was ended by a signal that we did not send."""

    def __init__(self, name: str) -> None:
        super().__init__(f"ended by {name}")
        self.name = name  # such as SIGKILL

    def as_media_error(self) -> MediaError:
        """The error of a medium with which this happened, and is not tried again."""
        if is_crash(self.name):
            return MediaError("corrupt", f"the decoder crashed ({self.name})")
        return MediaError("decoder_killed", f"the decoder was ended from outside ({self.name})")


def started(command: Command, timeout: float) -> Child:
    """A child that runs `command`. Raises `MediaError` where the system has no process, handle or memory for it."""
    try:
        return Child(command, timeout)
    except OSError as error:
        if (kind := kind_of(error)) not in PASSING_KINDS:
            raise
        reason = (error.strerror or str(error)).lower()
        raise MediaError(kind, f"no decoder could be started ({reason})") from None


def ended(child: Child) -> int:
    """The exit status of a child, which is waited for. Raises `SignalledError`; else what `Child.finish` raises."""
    status = child.finish()
    name = _signal(status, child.said)
    if name is not None:
        raise SignalledError(name)
    return status


def twice(run: Callable[[], Result]) -> Result:
    """What `run` gives, called once more if its child was ended by a signal. Raises `MediaError` if that was, too."""
    try:
        return run()
    except SignalledError:
        time.sleep(PAUSE_S)
    try:
        return run()
    except SignalledError as error:
        raise error.as_media_error() from None


def _signal(status: int, said: Sequence[str]) -> str | None:
    """The name of the signal that ended a child, or the program that it ran for us; None where there was none."""
    if status < 0:
        return signal_name(-status)
    if status <= _OF_SHELL or any(os.strerror(256 - status) in line for line in said):
        return None  # ffmpeg ends with the number of the system's error, too, and says its words then
    if status == _OF_FFMPEG:
        heeded = [int(match[1]) for line in said if (match := _HEEDED.search(line))]
        return signal_name(heeded[-1] if heeded else signal.SIGTERM)
    return signal_name(status - _OF_SHELL) if status - _OF_SHELL in set(signal.Signals) else None


def is_crash(name: str) -> bool:
    """True of a signal that a process brings upon itself; others come from outside."""
    return name in _CRASHES


def signal_name(number: int) -> str:
    """The name of a signal, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:  # such as those of real time
        return f"signal {number}"
