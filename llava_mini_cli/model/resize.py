"""Pillow's antialiased bicubic resize, bit for bit, whole or in part.

Whole pictures are resized by Pillow itself on the CPU, and elsewhere by the same fixed-point arithmetic in torch. That
arithmetic also makes parts of a result without the rest, for pictures so long and thin that the whole would not fit
the memory. Tests hold all of them equal. Knows nothing of CLIP.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

FIXED_POINT_BITS = 22  # of Pillow's 8-bit resampling coefficients


def resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes whole pictures.

    Args:
        images: uint8 `[B, H, W, 3]`.

    Returns:
        uint8 `[B, height, width, 3]` on the same device.
    """
    if images.shape[1:3] == (height, width):
        return images
    if images.device.type == "cpu":
        return torch.stack([_resize_pillow(image, height, width) for image in images])
    return resize_bicubic_torch(images, height, width)


def _resize_pillow(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # Columns and rows in two calls: which comes first shows in the last bit, and Pillow 13 chooses by size.
    columns = Image.fromarray(image.numpy()).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    resized = columns.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def resize_bicubic_torch(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`resize_bicubic` in integer torch arithmetic, for any device: columns first, then rows."""
    if images.shape[2] != width:
        images = _resample(images, 2, width)
    return _resample(images, 1, height) if images.shape[1] != height else images


def resize_bicubic_part(images: torch.Tensor, height: int, width: int, rows: range, columns: range) -> torch.Tensor:
    """`resize_bicubic` to `[B, height, width, 3]`, of which only `rows` and `columns` are made.

    Returns:
        uint8 `[B, len(rows), len(columns), 3]`.
    """
    lines: list[_Line] = []
    for axis, size, wanted in ((1, height, rows), (2, width, columns)):
        source = images.shape[axis]
        first, last = _reach(source, size, np.array([wanted[0], wanted[-1]]))
        images = images.narrow(axis, int(first[0]), int(last[1] - first[0]))
        lines.append(_Line(source, size, wanted, int(first[0])))
    return _resample_part(images, lines[0], lines[1], (0, 0, 0))  # which is nowhere: all that is read is there


def resize_bicubic_padded(images: torch.Tensor, size: int, colour: tuple[int, ...]) -> torch.Tensor:
    """Pictures in the middle of a square of one colour, resized, without ever making the square at its own size.

    Args:
        images: uint8 `[B, H, W, 3]`; the square has the longer of both edges.

    Returns:
        uint8 `[B, size, size, 3]`.
    """
    edge = max(images.shape[1:3])
    lines: list[_Line] = []
    for length in images.shape[1:3]:
        start = (edge - length) // 2
        first, last = _reach(edge, size, np.arange(size))
        touched = np.flatnonzero((first < start + length) & (last > start))
        lines.append(_Line(edge, size, range(int(touched[0]), int(touched[-1]) + 1), start))
    rows, columns = (slice(line.wanted.start, line.wanted.stop) for line in lines)
    canvas = torch.tensor(colour, dtype=torch.uint8, device=images.device).expand(len(images), size, size, 3).clone()
    canvas[:, rows, columns] = _resample_part(images, lines[0], lines[1], colour)
    return canvas


@dataclass(frozen=True)
class _Line:
    """One axis of a resize of which a part is made."""

    source: int  # positions of the whole before resizing
    size: int  # and after it
    wanted: range  # of those after it
    start: int  # where the pixels that are there begin among those before; around them is one colour


def _resample_part(images: torch.Tensor, rows: _Line, columns: _Line, colour: tuple[int, ...]) -> torch.Tensor:
    """Both passes, output by output, so that little is held beside the result."""
    around = torch.tensor(colour, dtype=torch.int32, device=images.device)
    for axis, line in ((2, columns), (1, rows)):
        outputs = [_one_output(images, axis, line, output, around) for output in line.wanted]
        images = torch.stack(outputs, axis)
    return images


def _one_output(images: torch.Tensor, axis: int, line: _Line, output: int, around: torch.Tensor) -> torch.Tensor:
    """One row or column of a pass, uint8, without its axis."""
    taps, weights = (each[:, 0] for each in _taps(line.source, line.size, np.array([output])))
    begin, end = max(int(taps[0]), line.start), min(int(taps[-1]) + 1, line.start + images.shape[axis])
    inside = weights[begin - int(taps[0]) : end - int(taps[0])]
    shape = [1] * images.dim()
    shape[axis] = len(inside)
    weight = torch.from_numpy(inside).to(images.device).reshape(shape)
    total = (images.narrow(axis, begin - line.start, end - begin).int() * weight).sum(axis)
    total = total + around * int(weights.sum() - inside.sum()) + (1 << (FIXED_POINT_BITS - 1))
    return (total >> FIXED_POINT_BITS).clamp(0, 255).to(torch.uint8)


def _resample(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """One pass along an axis, tap by tap, in int32 as Pillow does it."""
    taps = _taps(images.shape[axis], size, np.arange(size))
    indices, weights = (torch.from_numpy(a).to(images.device) for a in taps)
    shape = [1] * images.dim()
    shape[axis] = size
    total = torch.full((), 1 << (FIXED_POINT_BITS - 1), dtype=torch.int32, device=images.device)
    for index, weight in zip(indices, weights, strict=True):
        total = total + images.index_select(axis, index).int() * weight.reshape(shape)
    return (total >> FIXED_POINT_BITS).clamp(0, 255).to(torch.uint8)


def _reach(source: int, size: int, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first source position that each of some outputs reads, and the one behind its last, both `[n]`."""
    scale = source / size
    support = 2.0 * max(scale, 1.0)
    centre = (outputs + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    return first, np.minimum((centre + support + 0.5).astype(np.int64), source)


def _taps(source: int, size: int, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Source position and fixed-point weight of each tap of some outputs, both `[taps, n]`."""
    scale = source / size
    centre = (outputs + 0.5) * scale
    first, last = _reach(source, size, outputs)
    taps = first + np.arange(int((last - first).max()))[:, None]
    weight = np.where(taps < last, _cubic((taps - centre + 0.5) * (1.0 / max(scale, 1.0))), 0.0)
    total = weight.cumsum(axis=0)[-1]  # added one after the other, as Pillow does; `sum` need not
    fixed = weight / total * (1 << FIXED_POINT_BITS)
    rounded = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(taps, source - 1), rounded


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
