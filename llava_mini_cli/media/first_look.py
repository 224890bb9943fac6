"""The bound of a first look at a file, so that a file without end is not looked at for ever.

A decoder that goes on giving is alive, so no deadline stops it. What it can have to give is in proportion to the file.
Knows nothing of what is given.
"""

import stat
import time
from pathlib import Path

from llava_mini_cli.errors import MediaError

_SPARE = 1000  # lines that are no packets, such as those of a head
_UNSIZED = 10_000_000  # packets of a pipe, whose size nobody knows: 46 hours at 60 frames a second
_SPARE_S = 600.0  # for starting, waiting for the disk, files of no size
_SLOWEST = 16 << 10  # bytes a second: a day of video at 1 Mbit/s may take a week
_GROWTH = 64 << 20  # bytes beyond twice its size that a file may get while it is read


class FirstLook:
    """Counts what is told of one file while it is looked at; there is one for each look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = _size_of_file(path)
        self._is_file, self._size = size is not None, size or 0
        # In every container a packet takes bytes of its own, 10 at the least: 26 MB for a day at 30 frames a second.
        # Fewer bytes than packets means that the same are given again and again.
        self._most = _SPARE + (self._size if self._is_file else _UNSIZED)
        self._count = 0
        self._end = time.monotonic() + _SPARE_S + self._size / _SLOWEST

    def goes_on(self, count: int) -> None:
        """Takes note of so many packets or frames more. Raises `MediaError` where the file cannot have so many."""
        self._count += count
        if self._count > self._most:
            raise MediaError("corrupt", f"the video has no end: {self._count:,} frames in {self._size:,} bytes")
        if time.monotonic() > self._end:
            raise MediaError("timeout", "the frames were not counted in the time that a file of its size may take")
        if self._is_file and (_size_of_file(self._path) or 0) > 2 * self._size + _GROWTH:
            raise MediaError("unreadable", "the file grows faster than it can be read")


def _size_of_file(path: Path) -> int | None:
    """Bytes of a regular file; None of a pipe, or where there is nothing, which whoever reads it says."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
