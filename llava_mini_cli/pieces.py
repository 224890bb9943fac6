"""Pictures as the 8-bit pieces that CLIP looks at: cut, letterboxed, resized and cropped as the reference does it.

Works on bands of rows, so that beside a decoded picture little is held, and equals the reference's steps on the whole
picture to the last bit. Knows neither torch nor files, so that a decoder's process can use it cheaply.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini_cli.bicubic import Line, needed, resample_part, touched

PAD_COLOUR = (122, 116, 104)  # CLIP's mean, as the reference rounds it
BAND_PIXELS = 1 << 20  # of a picture that are converted and resized together: 4 MB in Pillow
MOST_PIXELS = 1 << 24  # of a picture that is resized and of its square; where it would have more, parts are made

_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class PieceLayout:
    """How a model cuts and resizes pictures."""

    shortest_edge: int
    crop: tuple[int, int]  # height, width
    splits: int = 1  # n of n x n pieces
    pad: bool = False  # letterbox each piece

    @property
    def parts(self) -> int:
        """The number of pieces, the whole picture among them."""
        return 1 if self.splits == 1 else self.splits**2 + 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of all pieces: parts, height, width, 3."""
        return (self.parts, *self.crop, 3)


class Raster(Protocol):
    """An upright picture of which bands are made when they are needed."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def band(self, rows: range, columns: range) -> Image.Image:
        """RGB pixels of some neighbouring rows and columns."""
        ...


class ArrayRaster:
    """A picture that is an array, uint8 `[height, width, 3]`."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def band(self, rows: range, columns: range) -> Image.Image:
        part = self._pixels[rows.start : rows.stop, columns.start : columns.stop]
        return Image.fromarray(np.ascontiguousarray(part))


@dataclass(frozen=True)
class _Part:
    """A rectangle of a raster."""

    whole: Raster
    rows: range
    columns: range

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def height(self) -> int:
        return len(self.rows)

    def band(self, rows: range, columns: range) -> Image.Image:
        return self.whole.band(self.rows[rows.start : rows.stop], self.columns[columns.start : columns.stop])


class _Square:
    """A raster in the middle of a square of one colour."""

    def __init__(self, inner: Raster) -> None:
        self.width = self.height = edge = max(inner.width, inner.height)
        self._inner = inner
        self._top, self._left = (edge - inner.height) // 2, (edge - inner.width) // 2

    def band(self, rows: range, columns: range) -> Image.Image:
        canvas = Image.new("RGB", (len(columns), len(rows)), PAD_COLOUR)
        down = _overlap(rows, self._top, self._inner.height)
        across = _overlap(columns, self._left, self._inner.width)
        if down and across:
            at = across.start + self._left - columns.start, down.start + self._top - rows.start
            canvas.paste(self._inner.band(down, across), at)
        return canvas


def _overlap(wanted: range, start: int, length: int) -> range:
    """The positions of an inner edge, which begins at `start`, that lie in a range of the outer one."""
    return range(max(wanted.start - start, 0), min(wanted.stop - start, length))


def pieces(picture: Raster, layout: PieceLayout) -> NDArray[np.uint8]:
    """All pieces of a picture, uint8 `[parts, height, width, 3]`: n x n row by row, then the whole."""
    shown = [_Part(picture, rows, columns) for rows, columns in _boxes(picture, layout.splits)]
    return np.stack([_piece(part, layout) for part in shown])


def resized(picture: Raster, height: int, width: int) -> NDArray[np.uint8]:
    """The whole picture at another size, uint8 `[height, width, 3]`: columns first, then rows."""
    every, cut = range(picture.width), bands(picture)
    if len(cut) == 1:
        across = picture.band(cut[0], every).resize((width, picture.height), _BICUBIC)
    else:
        across = Image.new("RGB", (width, picture.height))
        for rows in cut:
            across.paste(picture.band(rows, every).resize((width, len(rows)), _BICUBIC), (0, rows.start))
    return np.array(across.resize((width, height), _BICUBIC))


def bands(picture: Raster) -> list[range]:
    """The rows of a picture in groups of about `BAND_PIXELS`."""
    step = max(1, BAND_PIXELS // picture.width)
    return [range(top, min(top + step, picture.height)) for top in range(0, picture.height, step)]


def spans(edge: int, n: int) -> list[range]:
    """n spans of one length; where an edge has fewer than n pixels, each has one, and neighbours may have the same."""
    length = max(1, edge // n)
    starts = [number * length if edge >= n else number * edge // n for number in range(n)]
    return [range(start, start + length) for start in starts]


def _boxes(picture: Raster, n: int) -> list[tuple[range, range]]:
    whole = range(picture.height), range(picture.width)
    if n == 1:
        return [whole]
    return [*((rows, columns) for rows in spans(picture.height, n) for columns in spans(picture.width, n)), whole]


def _piece(part: Raster, layout: PieceLayout) -> NDArray[np.uint8]:
    """One piece, uint8 `[height, width, 3]`."""
    edge = layout.shortest_edge
    if not layout.pad or part.height == part.width:
        return _clip(part, layout)
    if max(part.height, part.width) ** 2 <= max(4 * part.height * part.width, BAND_PIXELS):
        return _clip(_Square(part), layout)
    return _cropped(_padded(part, edge), *layout.crop)  # too much of the square would be of one colour


def _clip(picture: Raster, layout: PieceLayout) -> NDArray[np.uint8]:
    """CLIP's own steps: the shorter edge resized to its size, the middle cut out."""
    short, long = min(picture.height, picture.width), max(picture.height, picture.width)
    reach = int(layout.shortest_edge * long / short)
    size = (layout.shortest_edge, reach) if picture.height <= picture.width else (reach, layout.shortest_edge)
    if max(picture.height * size[1], size[0] * size[1]) <= MOST_PIXELS:
        pixels = resized(picture, *size)
    else:
        wanted = [_middle(*edges) for edges in zip(size, layout.crop, strict=True)]
        down, across = (Line(*edges) for edges in zip((picture.height, picture.width), size, wanted, strict=True))
        pixels = _resized_part(picture, down, across)
    return _cropped(pixels, *layout.crop)


def _resized_part(picture: Raster, down: Line, across: Line, colour: tuple[int, ...] = (0, 0, 0)) -> NDArray[np.uint8]:
    """The wanted rows and columns of a resize, without making the others."""
    rows, columns = (_there(line, edge) for line, edge in ((down, picture.height), (across, picture.width)))
    across = Line(across.source, across.size, across.wanted, across.start + columns.start)
    part = _Part(picture, rows, columns)
    narrow = [resample_part(np.asarray(part.band(each, range(part.width))), 1, across, colour) for each in bands(part)]
    down = Line(down.source, down.size, down.wanted, down.start + rows.start)
    return resample_part(np.concatenate(narrow), 0, down, colour)


def _there(line: Line, length: int) -> range:
    """The positions of a picture's edge, which begins at `line.start`, that the wanted outputs read."""
    return _overlap(needed(line.source, line.size, line.wanted), line.start, length)


def _padded(picture: Raster, size: int) -> NDArray[np.uint8]:
    """A picture in the middle of a square of one colour, resized, without ever making the square at its own size."""
    edge = max(picture.height, picture.width)
    lines: list[Line] = []
    for length in (picture.height, picture.width):
        start = (edge - length) // 2
        lines.append(Line(edge, size, touched(edge, size, start, length), start))
    down, across = lines
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = PAD_COLOUR
    made = _resized_part(picture, down, across, PAD_COLOUR)
    canvas[down.wanted.start : down.wanted.stop, across.wanted.start : across.wanted.stop] = made
    return canvas


def _cropped(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle `[height, width, 3]`, filled with black where the picture is smaller."""
    short = max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)
    if any(short):
        (top, left), (down, across) = ((edge + 1) // 2 for edge in short), short
        pixels = np.pad(pixels, ((top, down - top), (left, across - left), (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _middle(size: int, crop: int) -> range:
    """The positions of an edge that `_cropped` keeps."""
    first = max(0, size - crop) // 2
    return range(first, first + min(size, crop))
