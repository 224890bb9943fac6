"""Media that lie inside another file: bytes in a table, members of a tar archive. Written out when their turn comes."""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from llava_mini_cli.errors import FetchError, kind_of
from llava_mini_cli.formats.fetch.new_file import CHUNK, NewFile
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.plain_files import open_plain


@dataclass(frozen=True, eq=False)
class Embedded:
    """A medium whose bytes are in memory, from a cell of a table."""

    name: str
    suffix: str
    data: bytes

    def read_at(self, size: int, offset: int) -> bytes:
        """So many bytes from an offset; fewer at the end."""
        return self.data[offset : offset + size]

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Writes the bytes to a new file. Raises as `Source.write_to` does."""
        options.check_size(0, len(self.data))
        with NewFile(path, options) as target:
            target.write(self.data)


class OpenTar:
    """A file on this disk, open as long as somebody wants a stretch of it, also when its name has gone."""

    def __init__(self, path: str | Path) -> None:
        self.descriptor = open_plain(path)
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True, eq=False)
class Member:
    """A medium that is a stretch of bytes of an archive."""

    name: str
    suffix: str
    archive: OpenTar
    offset: int  # bytes
    size: int

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Copies the stretch to a new file. Raises `FetchError` where the archive ends too early or it is too large."""
        options.check_size(0, self.size)
        done = 0
        with NewFile(path, options) as target:
            while done < self.size:
                done += target.write(self.read_at(min(self.size - done, CHUNK), done))

    def read_at(self, size: int, offset: int) -> bytes:
        """At most so many bytes from an offset in the member. Raises `FetchError` where the archive ends before it."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        try:
            chunk = os.pread(self.archive.descriptor, size, self.offset + offset)
        except OSError as error:
            raise FetchError(kind_of(error), (error.strerror or str(error)).lower()) from None
        if not chunk:
            raise FetchError("truncated", "the archive ends within this member")
        return chunk
