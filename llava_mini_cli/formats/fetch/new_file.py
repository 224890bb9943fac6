"""A file of the cache while it is written: its bytes are counted before each of them is there."""

import io
import os
from pathlib import Path

from llava_mini_cli.formats.source import FetchOptions

CHUNK = 1 << 20  # bytes that are read and written at a time


class NewFile(io.FileIO):
    """A new file for its user alone. What it must not hold is never written: `write` raises first."""

    def __init__(self, path: Path, options: FetchOptions) -> None:
        self._options = options
        self._size = 0
        super().__init__(path, "wb", opener=_open_own)

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes all of the bytes. Raises as `FetchOptions.check_size` does, and `OSError`."""
        self._options.check_size(self._size + len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        self._size += len(data)
        return len(data)


def _open_own(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
