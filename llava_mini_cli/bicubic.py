"""Pillow's antialiased bicubic resize as integer arithmetic, bit for bit, for parts of a result.

For pictures so long and thin that the whole result, or the square around the picture, would not fit the memory. Tests
hold it equal to Pillow's. Knows neither torch nor files.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIXED_POINT_BITS = 22  # of Pillow's 8-bit resampling coefficients


@dataclass(frozen=True)
class Line:
    """One axis of a resize of which a part is made."""

    source: int  # positions of the whole before resizing
    size: int  # and after it
    wanted: range  # of those after it
    start: int = 0  # where the pixels that are there begin among those before; around them is one colour


def needed(source: int, size: int, wanted: range) -> range:
    """The source positions that some outputs of an axis read."""
    first, last = reach(source, size, np.array([wanted[0], wanted[-1]]))
    return range(int(first[0]), int(last[1]))


def touched(source: int, size: int, start: int, length: int) -> range:
    """The outputs of an axis that read one of `length` positions from `start` on."""
    first, last = reach(source, size, np.arange(size))
    where = np.flatnonzero((first < start + length) & (last > start))
    return range(int(where[0]), int(where[-1]) + 1)


def resample_part(
    pixels: NDArray[np.uint8], axis: int, line: Line, colour: tuple[int, ...] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """One pass along an axis, output by output, so that little is held beside the result.

    Args:
        pixels: `[height, width, 3]`; along `axis` they are those of `line` from its `start` on.
        colour: of the positions that are not among the pixels.
    """
    around = np.array(colour, np.int32)
    return np.stack([_one_output(pixels, axis, line, output, around) for output in line.wanted], axis)


def _one_output(
    pixels: NDArray[np.uint8], axis: int, line: Line, output: int, around: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """One row or column of a pass, without its axis."""
    at, weights = (each[:, 0] for each in taps(line.source, line.size, np.array([output])))
    begin, end = max(int(at[0]), line.start), min(int(at[-1]) + 1, line.start + pixels.shape[axis])
    inside = weights[begin - int(at[0]) : end - int(at[0])]
    part = (
        pixels[begin - line.start : end - line.start] if axis == 0 else pixels[:, begin - line.start : end - line.start]
    )
    total = np.tensordot(inside, part.astype(np.int32), (0, axis))
    total = total + around * np.int32(weights.sum() - inside.sum()) + np.int32(1 << (FIXED_POINT_BITS - 1))
    return np.clip(total >> FIXED_POINT_BITS, 0, 255).astype(np.uint8)


def reach(source: int, size: int, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first source position that each of some outputs reads, and the one behind its last, both `[n]`."""
    scale = source / size
    support = 2.0 * max(scale, 1.0)
    centre = (outputs + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    return first, np.minimum((centre + support + 0.5).astype(np.int64), source)


def taps(source: int, size: int, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Source position and fixed-point weight of each tap of some outputs, both `[taps, n]`."""
    scale = source / size
    centre = (outputs + 0.5) * scale
    first, last = reach(source, size, outputs)
    at = first + np.arange(int((last - first).max()))[:, None]
    weight = np.where(at < last, _cubic((at - centre + 0.5) * (1.0 / max(scale, 1.0))), 0.0)
    total = weight.cumsum(axis=0)[-1]  # added one after the other, as Pillow does; `sum` need not
    fixed = weight / total * (1 << FIXED_POINT_BITS)
    rounded = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(at, source - 1), rounded


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
