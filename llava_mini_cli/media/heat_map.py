"""Heat maps: weights of patches as colours over the picture that they are of. Pillow alone."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

EDGE = 448  # pixels of the longer edge of a picture that is shown
STRENGTH = 0.65  # of the colours over the picture, which is grey below them
# Dark to bright, told apart in grey too and by those who see few colours: steps of the scale, black to light yellow.
_SCALE = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)

IN_A_ROW = 8  # frames of a strip
NATS = 0.1  # the least log-likelihood that has the whole height of a bar, or the brightest colour
TEXT = (118, 118, 118)  # told apart from white and from black

Pixels = NDArray[np.uint8]


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which a picture of a size is shown; a small one is enlarged."""
    scale = EDGE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture `[height, width, 3]` at another width and height."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC))


def colours(values: NDArray[np.floating]) -> Pixels:
    """Values from 0 to 1 as colours, uint8 `[..., 3]`."""
    place = np.clip(values, 0, 1) * (len(_SCALE) - 1)
    low = np.minimum(place.astype(int), len(_SCALE) - 2)
    part = (place - low)[..., None]
    return np.round(_SCALE[low] * (1 - part) + _SCALE[low + 1] * part).astype(np.uint8)


def heat_map(
    picture: Pixels, weights: NDArray[np.floating], centres: NDArray[np.float64], size: tuple[int, int], most: float
) -> Pixels:
    """Weights over a picture; what no patch shows of it stays grey.

    Args:
        picture: `[height, width, 3]`, the picture as it is shown.
        weights: `[n * n]`, of a raster of patches row by row.
        centres: `[n * n, 2]`, across and down, the middle of each in pixels of the medium.
        size: width and height of the medium, pixels.
        most: the weight that has the brightest colour.
    """
    grid = round(len(weights) ** 0.5)
    raster = centres.reshape(grid, grid, 2)
    across = _cells(raster[0, :, 0], size[0], picture.shape[1])
    down = _cells(raster[:, 0, 1], size[1], picture.shape[0])
    grey = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"), float)
    heat = colours(weights.reshape(grid, grid) / (most or 1.0))[np.maximum(down, 0)][:, np.maximum(across, 0)]
    is_seen = ((down >= 0)[:, None] & (across >= 0))[..., None]
    return np.where(is_seen, (1 - STRENGTH) * grey + STRENGTH * heat, grey).astype(np.uint8)


def strip(frames: Sequence[Pixels], weights: Sequence[float], captions: Sequence[str]) -> Pixels:
    """Frames beside each other, in rows of 8, below each a bar as high as its weight, and its caption of two lines.

    Bars of negative weights hang below the line.

    Returns:
        `[height, width, 4]`, clear where there is nothing.
    """
    edge, bar, line = 128, 64, 32
    wide = [resized(frame, (edge, max(1, round(edge * frame.shape[0] / frame.shape[1])))) for frame in frames]
    high = max(frame.shape[0] for frame in wide)
    row = high + 2 * bar + line + 12
    size = min(len(wide), IN_A_ROW) * (edge + 4), -(-len(wide) // IN_A_ROW) * row
    canvas = Image.new("RGBA", size, (*TEXT, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    most = max([abs(weight) for weight in weights] + [NATS])
    for number, (frame, weight, caption) in enumerate(zip(wide, weights, captions, strict=True)):
        left, top = number % IN_A_ROW * (edge + 4) + 2, number // IN_A_ROW * row
        base = top + high + 4 + bar
        canvas.paste(Image.fromarray(frame), (left, top))
        reach = round(bar * abs(weight) / most)
        ends = (base - reach, base) if weight >= 0 else (base, base + reach)
        colour = (200, 60, 30) if weight >= 0 else (50, 100, 180)
        pen.rectangle((left, ends[0], left + edge - 1, ends[1]), fill=colour)
        pen.line((left, base, left + edge - 1, base), fill=TEXT)
        pen.text((left, base + bar + 4), caption, fill=TEXT, font=font)
    return np.asarray(canvas)


def as_png(pixels: Pixels) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _cells(middles: NDArray[np.float64], edge: int, shown: int) -> NDArray[np.int64]:
    """The cell of a raster that each pixel of an edge as it is shown lies in; -1 where none does.

    Args:
        middles: `[n]` pixels of the medium's edge, ascending.
    """
    places = (np.arange(shown) + 0.5) * edge / shown
    cells = np.abs(places[:, None] - middles).argmin(1)
    reach = np.median(np.diff(middles)) / 2 if len(middles) > 1 else edge / 2
    return np.where(np.abs(places - middles[cells]) <= reach * 1.001, cells, -1)
