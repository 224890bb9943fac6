"""How much of a still picture its file really holds: decoders fill what is missing, and many say nothing about it.

libjpeg draws grey where the data of a JPEG ends early, zlib's end is the end of a PNG wherever it comes, and a GIF may
stop at any row. Looks at pictures that are decoded, and decodes a small copy of those that arouse suspicion.
"""

import io
import os
import re
import struct
from random import Random
from typing import IO, Any, NamedTuple, cast

from PIL import Image, ImageChops, ImageFile

_LAST_ROWS = 4  # of a JPEG, which are one plain colour where its data has ended: half of the lowest block
_FILLER = re.sub(b"\xff", b"", Random(0).randbytes(1 << 16))  # put where the data of a JPEG ends; read only if needed
_MOST_BYTES = 64 << 20  # of a JPEG that is looked at
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # that ends the data of a scan: no stuffed byte, no restart
_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_PROGRESSIVE = frozenset({0xC2, 0xCA})
# Of rows that were not written yet, twice: a row may be of the first by chance, but then it is not of the second.
_INKS = (
    {"1": 0, "L": 93, "P": 93, "I;16": 23_901, "I": 23_901, "F": 0.377},
    {"1": 255, "L": 162, "P": 162, "I;16": 41_634, "I": 41_634, "F": 0.623},
)
_COLOURS = (93, 17, 201, 39), (162, 238, 54, 216)


class Marks:
    """Rows of a picture of one tile that are painted before it is decoded, so that it shows what was not written."""

    def __init__(self, picture: Image.Image, whole: bool) -> None:
        """`whole`: every row is painted, not only the one that is written last."""
        self._picture: Any = picture
        self._box = _last_row(picture, whole)
        self._whole = whole
        if self._box is not None:
            prepare = self._picture.load_prepare

            def painted() -> None:
                prepare()
                self._picture.im.paste(self._ink(), self._box)

            self._picture.load_prepare = painted

    def is_missing(self) -> bool:
        """True if the row that is written last was not written."""
        if self._box is None:
            return False
        left, _, right, bottom = self._box
        return _is_plain(self._picture.crop((left, bottom - 1, right, bottom)), self._ink())

    def rows_written(self) -> int | None:
        """The rows before those that were not written, which become black; None where rows come in another order."""
        if self._box is None or self._picture.info.get("interlace"):
            return None
        left, top, right, bottom = self._box
        row = bottom
        while row > top and _is_plain(self._picture.crop((left, row - 1, right, row)), self._ink()):
            row -= 1
        self._picture.im.paste(_blank(self._picture), (left, row, right, bottom))
        return row

    def _ink(self) -> Any:
        ink = _INKS[self._whole].get(self._picture.mode)
        return _COLOURS[self._whole][: len(self._picture.getbands())] if ink is None else ink


def _last_row(picture: Image.Image, whole: bool) -> tuple[int, int, int, int] | None:
    """The box of what is painted: the row that is written last, or all; None where nobody knows which that is."""
    tiles = getattr(picture, "tile", [])
    if len(tiles) != 1 or tiles[0][0] not in ("zip", "gif") or tiles[0][1] is None:
        return None
    left, top, right, bottom = tiles[0][1]
    if picture.info.get("interlace"):
        bottom -= (bottom - top) % 2  # the odd rows come last
    return (left, top if whole else bottom - 1, right, bottom) if bottom > top else None


def _blank(picture: Image.Image) -> Any:
    return 0 if picture.mode in _INKS[0] else (0,) * len(picture.getbands())


def _is_plain(part: Image.Image, ink: Any) -> bool:
    """True if all pixels are of this colour."""
    return part.tobytes() == Image.new(part.mode, part.size, ink).tobytes()  # of every mode


class JpegParts(NamedTuple):
    """The layout of a JPEG."""

    scan_ends: list[int]  # where the data of each scan ends
    end: int  # behind its last marker, or the end of the file
    lacks_scans: bool  # progressive, and not every coefficient came to its last bit
    restarts: bool  # its data has marks at which decoding begins anew


def jpeg_parts(data: bytes) -> JpegParts:
    """Reads the markers of the first picture of a file; damaged ones end it."""
    ends: list[int] = []
    left: dict[tuple[int, int], int] = {}  # component and coefficient -> bits that are still to come
    at, is_progressive, restarts = 2, False, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in (0xFF, _SOI):
            at += 1 if kind == 0xFF else 2
            continue
        if kind == _EOI:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        restarts = restarts or kind == _DRI
        if kind in _PROGRESSIVE and len(body) >= 6:
            is_progressive = True
            left = {(body[place], k): 14 for place in range(6, len(body) - 2, 3) for k in (0, 1, 63)}
        if kind == _SOS:
            _note_scan(body, left)
            found = _MARKER.search(data, at)
            at = len(data) if found is None else found.start()
            ends.append(at)
    return JpegParts(ends, min(at + 2, len(data)), is_progressive and any(left.values()), restarts)


def _note_scan(body: bytes, left: dict[tuple[int, int], int]) -> None:
    """Notes which coefficients a scan brings, and to which bit."""
    if len(body) < 4 + 2 * body[0]:
        return
    first, last, bits = body[-3:]
    for number in range(body[0]):
        for k in (0, 1, 63):
            if first <= k <= last and (body[1 + 2 * number], k) in left:
                left[body[1 + 2 * number], k] = bits & 15


def jpeg_missing(file: IO[bytes], picture: Image.Image) -> str | int | None:
    """What of a decoded JPEG is not in its file: in words, or how many rows are there; None: nothing that shows."""
    width, height = picture.size
    is_suspect = _is_flat(picture.crop((0, max(0, height - _LAST_ROWS), width, height)))
    if not (is_suspect or picture.info.get("progressive")):
        return None
    data = _all_of(file)
    parts = jpeg_parts(data)
    if not parts.scan_ends:
        return None
    rows = _jpeg_rows(data, parts, picture) if is_suspect else height
    if rows < height:
        return rows
    return "the scans that hold its details are missing" if parts.lacks_scans else None


def jpeg_rows(file: IO[bytes], picture: Image.Image) -> int | None:
    """About how many rows of a JPEG that was cut short are there; None where that is not known."""
    data = _all_of(file)
    parts = jpeg_parts(data)
    return _jpeg_rows(data, parts, picture) if parts.scan_ends else None


def _all_of(file: IO[bytes]) -> bytes:
    """A file that is not very large; nothing of another one."""
    if file.seek(0, os.SEEK_END) > _MOST_BYTES:
        return b""
    file.seek(0)
    return file.read()


def _jpeg_rows(data: bytes, parts: JpegParts, picture: Image.Image) -> int:
    """The rows above the first that becomes another one if more data follows, which whole pictures never read."""
    begin, pieces = 0, list[bytes]()
    for end in parts.scan_ends:
        pieces += [data[begin:end], _FILLER]
        begin = end
    filled = _small_copy(b"".join([*pieces, data[begin : parts.end]]))
    scale, top = picture.height / filled.height, _plain_from(filled)
    above = picture.crop((0, int((top - 0.5) * scale), picture.width, max(1, int(top * scale))))
    if not (parts.restarts or (top and _is_flat(above))):
        return picture.height  # it is plain from where it is plain with the filler, too: nothing of that was read
    changed = ImageChops.difference(_small_copy(data[: parts.end]), filled).getbbox()
    return picture.height if changed is None else min(picture.height, changed[1] * picture.height // filled.height)


def _plain_from(picture: Image.Image) -> int:
    """The first of the rows at the bottom that are of one colour, all of them the same."""
    last = cast("tuple[int, int]", picture.crop((0, picture.height - 1, picture.width, picture.height)).getextrema())
    if last[0] != last[1]:
        return picture.height
    others = ImageChops.difference(picture, Image.new("L", picture.size, last[0])).getbbox()
    return 0 if others is None else others[3]


def _small_copy(data: bytes) -> Image.Image:
    """A JPEG in grey at an eighth of its size."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            picture.draft("L", (max(1, picture.width // 8), max(1, picture.height // 8)))
            return picture.convert("L")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _is_flat(part: Image.Image) -> bool:
    """True if all pixels are of one colour."""
    pixel = cast("int | tuple[int, ...]", part.getpixel((0, 0)))
    return _is_plain(part, pixel)
