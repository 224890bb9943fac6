"""Size, orientation and animation of a JPEG XL picture, read from its first bytes: its own decoder decodes all to tell.

ISO/IEC 18181-1 (codestream: SizeHeader, ImageMetadata) and 18181-2 (container). Decodes nothing.
"""

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
CODESTREAM = b"\xff\x0a"

_Ranges = tuple[tuple[int, int], ...]

_ENOUGH = 64  # bytes of the codestream in which all of this stands
_MOST_BOXES = 1000  # until the codestream begins
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_SIDE = ((1, 9), (1, 13), (1, 18), (1, 30))  # the least of a range, and the bits of what is added to it
_EIGHTHS = ((1, 5),)
_PREVIEW = ((1, 6), (65, 8), (321, 10), (1345, 12))
_PREVIEW_EIGHTHS = ((16, 0), (32, 0), (1, 5), (33, 9))


class JxlHeader(NamedTuple):
    """What the first bytes say."""

    width: int  # pixels, as displayed
    height: int
    is_animated: bool


def read_jxl_header(file: IO[bytes]) -> JxlHeader:
    """Reads from the beginning of the file.

    Raises:
        EOFError: the file ends within its header.
        ValueError: the container holds no picture.
    """
    file.seek(0)
    if file.read(len(CODESTREAM)) == CODESTREAM:
        data = file.read(_ENOUGH)
    else:
        data = b"".join(_codestream(file))[: _ENOUGH + len(CODESTREAM)]
        if not data.startswith(CODESTREAM):
            raise ValueError("a JPEG XL container without a picture")
        data = data[len(CODESTREAM) :]
    return _parse(_Bits(data))


def _codestream(file: IO[bytes]) -> Iterator[bytes]:
    """The beginning of the codestream, piece by piece."""
    position, length = len(CONTAINER), 0
    for _ in range(_MOST_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        begin = 16 if size == 1 else 8
        size = struct.unpack(">Q", head[8:].ljust(8, b"\0"))[0] if size == 1 else size
        if kind in (b"jxlc", b"jxlp"):
            begin += 4 if kind == b"jxlp" else 0  # the number of the part
            file.seek(position + begin)
            piece = file.read(min(_ENOUGH, size - begin) if size else _ENOUGH)
            yield piece
            length += len(piece)
        if size < begin or length >= _ENOUGH:
            return
        position += size


class _Bits:
    """Numbers of some bits, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise EOFError("the picture ends within its header")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def one_of(self, choices: "_Ranges") -> int:
        """A number in one of four ranges, or in the only one."""
        base, count = choices[self.take(2 if len(choices) > 1 else 0)]
        return base + self.take(count)


def _parse(bits: _Bits) -> JxlHeader:
    width, height = _size(bits, _SIDE, _EIGHTHS)
    orientation, is_animated = 1, False
    is_default = bits.take(1)
    if not is_default and bits.take(1):
        orientation = 1 + bits.take(3)
        if bits.take(1):  # another size to show it at
            _size(bits, _SIDE, _EIGHTHS)
        if bits.take(1):
            _size(bits, _PREVIEW, _PREVIEW_EIGHTHS)
        is_animated = bool(bits.take(1))
    return JxlHeader(*((height, width) if orientation > 4 else (width, height)), is_animated)


def _size(bits: _Bits, sides: _Ranges, eighths: _Ranges) -> tuple[int, int]:
    """Width and height, each in pixels or in eighths."""
    unit, choices = (8, eighths) if bits.take(1) else (1, sides)
    height = unit * bits.one_of(choices)
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return unit * bits.one_of(choices), height
