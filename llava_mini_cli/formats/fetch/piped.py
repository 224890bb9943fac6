"""A medium that comes through an open descriptor, such as `/dev/stdin` or `/dev/fd/63` of a shell's `<(...)`.

It can be read once, by this process alone, and a decoder looks at a file twice: so it is copied to a file first.
"""

import os
import re
import select
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from llava_mini_cli.errors import FetchError, kind_of
from llava_mini_cli.formats.fetch.new_file import CHUNK, NewFile
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.formats.source import FetchOptions

_DESCRIPTOR = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/self/fd/\d+")
_POLL = 0.1  # seconds between looks at whether the run has stopped


def is_descriptor(path: str) -> bool:
    """True for a path that stands for what this process has open."""
    return _DESCRIPTOR.fullmatch(path) is not None


@dataclass(frozen=True, eq=False)
class Piped:
    """The bytes behind a descriptor, up to their end."""

    name: str  # the path as given
    suffix: str = ""

    @property
    def item(self) -> ItemIdentity:
        """The path and the time of asking: what comes through it the next time is another medium."""
        return self.name, None, time.time_ns()

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Copies the bytes to a new file.

        Raises:
            FetchError: there is no such descriptor, no byte came for `options.timeout` seconds, the run has stopped, or
                there are more bytes than the cache may hold.
        """
        try:
            source = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise FetchError(kind_of(error), (error.strerror or str(error)).lower()) from None
        try:
            with NewFile(path, options) as target:
                while chunk := self._next(source, options.timeout, stopped):
                    target.write(chunk)
        finally:
            os.close(source)

    def _next(self, source: int, timeout: float, stopped: Event) -> bytes:
        """The next bytes, none at the end."""
        end = time.monotonic() + timeout
        while not stopped.is_set() and time.monotonic() < end:
            if select.select([source], [], [], _POLL)[0]:
                try:
                    return os.read(source, CHUNK)
                except OSError as error:
                    raise FetchError(kind_of(error), (error.strerror or str(error)).lower()) from None
        raise FetchError("timeout", "the run has stopped" if stopped.is_set() else f"no byte came for {timeout:g} s")
