"""PNG files without the bulk of their texts: Pillow calls a picture damaged whose texts or colour profile are large.

Texts and profiles do not change a pixel, so those that are large are left out, and never unpacked beyond a bound.
Decodes no pixel.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_TEXT_BYTES = 1 << 20  # of one packed text or profile, unpacked: Pillow's own bound
MAX_TEXTS_BYTES = 1 << 24  # of all texts of a file, unpacked; Pillow's own bound is four times as much

_MAGIC = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")  # of a chunk: length, type; a checksum of 4 bytes follows its data


class Chunk(NamedTuple):
    """One chunk of a PNG file; where it lies, with its length, its type and its checksum."""

    kind: bytes
    begin: int
    end: int


class Excerpt(io.RawIOBase):
    """The parts of a file that lie between pairs of positions, one after the other, for reading."""

    def __init__(self, file: int, parts: list[tuple[int, int]]) -> None:
        """`file`: a descriptor, which this one does not use up."""
        super().__init__()
        self._file = os.dup(file)
        self._parts = parts
        self._size = sum(end - begin for begin, end in parts)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room, position = memoryview(buffer).cast("B"), self._at
        for begin, end in self._parts:
            if position < end - begin:
                count = os.preadv(self._file, [room[: end - begin - position]], begin + position)
                self._at += count
                return count
            position -= end - begin
        return 0

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._file)


def without_bulk(file: IO[bytes]) -> io.BufferedReader | None:
    """The file without texts and profiles that are large; None where it has none, or is no PNG.

    Raises:
        OSError: the file cannot be read.
    """
    bulk = list(_bulk(file.fileno()))
    if not bulk:
        return None
    size = os.fstat(file.fileno()).st_size
    edges = [0, *(edge for chunk in bulk for edge in (chunk.begin, chunk.end)), size]
    return io.BufferedReader(Excerpt(file.fileno(), list(pairwise(edges))[::2]))


def _chunks(file: int) -> Iterator[Chunk]:
    """The chunks in order, as far as the file has them whole."""
    size = os.fstat(file).st_size
    if os.pread(file, len(_MAGIC), 0) != _MAGIC:
        return
    at = len(_MAGIC)
    while len(head := os.pread(file, _HEAD.size, at)) == _HEAD.size:
        length, kind = _HEAD.unpack(head)
        end = at + _HEAD.size + length + 4
        if end > size:
            return
        yield Chunk(kind, at, end)
        at = end


def _bulk(file: int) -> Iterator[Chunk]:
    room = MAX_TEXTS_BYTES
    for chunk in _chunks(file):
        if chunk.kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            size = _unpacked_size(file, chunk)
            if size is None or size > room:
                yield chunk
            else:
                room -= size


def _unpacked_size(file: int, chunk: Chunk) -> int | None:
    """Bytes of a text or profile, or None where it is too large to be unpacked, or packed in an unknown way."""
    length = chunk.end - chunk.begin - _HEAD.size - 4
    if length > MAX_TEXTS_BYTES:
        return None
    data = os.pread(file, length, chunk.begin + _HEAD.size)
    name, _, rest = data.partition(b"\0")
    if chunk.kind == b"iTXt":
        is_packed, method, packed = rest[:1] > b"\0", rest[1:2], rest[2:].split(b"\0", 2)[-1]
    else:
        is_packed, method, packed = chunk.kind != b"tEXt", rest[:1], rest[1:]
    if not is_packed:
        return length
    if method != b"\0":
        return None
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return length  # which Pillow passes over
    return None if unpacker.unconsumed_tail else len(name) + len(text)
