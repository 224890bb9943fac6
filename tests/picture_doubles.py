"""Processes that decode pictures, changed: a package is missing in them, or a decoder misbehaves."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from llava_mini_cli.media.child import Command
from llava_mini_cli.media.picture_pool import POOL
from llava_mini_cli.media.picture_process import worker_command

# What happens to a picture of this width, in the process, when it is loaded.
_AT_LOAD = """
import os, signal, time
from PIL import ImageFile
_load = ImageFile.ImageFile.load
def load(picture):
    act = {acts!r}.get(picture.width)
    if act is not None:
        exec(act, globals())
    return _load(picture)
ImageFile.ImageFile.load = load
"""
CRASH = "os.kill(os.getpid(), signal.SIGSEGV)"
HANG = "time.sleep(600)"
GROW = "grown = []\nwhile True: grown.append(bytearray(1 << 20))"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def changed_worker(begin: str) -> Callable[[int], Command]:
    """The command of a process that first runs some Python."""

    def command_of(channel: int) -> Command:
        command = worker_command(channel)
        code = f"{begin}\nfrom llava_mini_cli.media.picture_worker import main\nmain()"
        return replace(command, argv=(sys.executable, "-P", "-c", code, str(channel)))

    return command_of


def acting_worker(acts: dict[int, str]) -> Callable[[int], Command]:
    """A process in which loading a picture of some width runs some Python."""
    return changed_worker(_AT_LOAD.format(acts=acts))


@contextmanager
def decoded_by(command_of: Callable[[int], Command]) -> Iterator[None]:
    """Pictures are decoded by such processes."""
    before = POOL.command_of
    POOL.close()
    POOL.command_of = command_of
    try:
        yield
    finally:
        POOL.command_of = before
        POOL.close()
