"""Patch features in 8 bits: one scale a channel and frame, so that a loud channel does not drown the others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = np.finfo(np.float32).tiny  # below it float32 loses its precision


def to_int8(
    features: NDArray[np.float16] | NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds `[n, parts, patches, width]` to int8 and float32 scales `[n, parts, width]`; their product is it again."""
    exact = features.astype(np.float32)
    scales = np.abs(exact).max(axis=2) / 127
    scales[scales < SMALLEST] = 1.0  # all zeros, or numbers too small for a float32 scale of their own
    return np.rint(exact / scales[:, :, None]).astype(np.int8), scales.astype(np.float32)


def from_int8(quantized: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The features that `to_int8` rounded, as float32 `[n, parts, patches, width]`."""
    return quantized.astype(np.float32) * scales[:, :, None]


def numbers_of(column: Any, kind: Any) -> NDArray[Any]:
    """The plain numbers in a column of fixed-size blobs."""
    data = column.buffers()[1]
    width = column.type.byte_width
    return np.frombuffer(data, kind, len(column) * width // np.dtype(kind).itemsize, column.offset * width)
