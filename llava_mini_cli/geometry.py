"""Index arithmetic shared by decoding and preprocessing: which pixels and which frames are taken.

Knows neither torch nor any decoder, so that a decoder's child process can use it cheaply.
"""

import numpy as np
from numpy.typing import NDArray


def nearest_index(source: int, target: int) -> NDArray[np.int64]:
    """Source index of each of `target` positions along an edge of `source` pixels, nearest-neighbour.

    The rule of `torch.nn.functional.interpolate(mode="nearest")`, with its float32 rounding, which
    differs from integer arithmetic at a few positions of common edges (540, 720, 1080, ...).

    Returns:
        int64 `[target]`, each in `[0, source)`.
    """
    scale = np.float32(source) / np.float32(target)
    index = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(index, source - 1)


def segment_middles(total: int, count: int) -> NDArray[np.int64]:
    """The middle frame of each of `count` equal segments of `total` frames (the reference's rule).

    index = (round(s*i) + round(s*(i+1))) // 2 with s = (total - 1) / count and round-half-even.

    Returns:
        int64 `[count]`, non-decreasing, each in `[0, total)`; repeats where count nears total.
    """
    edges = np.rint(np.arange(count + 1) * ((total - 1) / count)).astype(np.int64)
    return (edges[:-1] + edges[1:]) // 2
