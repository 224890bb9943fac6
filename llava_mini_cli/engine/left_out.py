"""Parts of a medium that are left out in turn: the sums of a window piece by piece, and the blocks of a picture.

Arithmetic only; knows nothing of the language model.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.request import Box
from llava_mini_cli.pieces import PieceLayout, spans

BLOCKS = 3  # of a picture, along each edge


@dataclass(frozen=True)
class PieceSums:
    """The fused text of a window's frames, summed for each of its pieces."""

    cuts: tuple[float, ...]  # seconds; piece i holds the frames between cuts i and i + 1, the last one all behind it
    totals: tuple[torch.Tensor | None, ...]  # float32 [T, hidden] each; None: no frame lies in it
    counts: tuple[int, ...]  # frames

    @classmethod
    def of(cls, cuts: tuple[float, ...]) -> Self | None:
        """Pieces without a frame yet; None where there are no cuts."""
        return cls((), (), ()).cut_at(cuts)

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return sum(total.nbytes for total in self.totals if total is not None)

    @property
    def filled(self) -> list[int]:
        """The pieces that hold frames, by their number."""
        return [number for number, count in enumerate(self.counts) if count]

    def cut_at(self, cuts: tuple[float, ...]) -> Self | None:
        """The same sums where more is known of the cuts behind the last frame; None where there are none any more."""
        count = len(cuts) - 1
        if count < 1:
            return None
        more = max(0, count - len(self.counts))
        totals, counts = (*self.totals, *((None,) * more)), (*self.counts, *((0,) * more))
        assert not any(counts[count:])
        return type(self)(cuts, totals[:count], counts[:count])

    def more(self, fused: torch.Tensor, times: NDArray[np.float64]) -> Self:
        """With the fused text `[n, T, hidden]` of some more frames."""
        last = len(self.counts) - 1
        numbers = np.array([min(max(bisect_right(self.cuts, time) - 1, 0), last) for time in times])
        totals, counts = list(self.totals), list(self.counts)
        for number in map(int, np.unique(numbers)):
            here = torch.from_numpy(np.flatnonzero(numbers == number)).to(fused.device)
            part, before = fused[here].sum(0, dtype=torch.float32), totals[number]
            totals[number] = part if before is None else part.add_(before)
            counts[number] += len(here)
        return type(self)(self.cuts, tuple(totals), tuple(counts))

    def rows(self, rows: Sequence[int]) -> Self:
        """With some of the text positions alone."""
        kept = [None if one is None else one[torch.tensor(rows, device=one.device)] for one in self.totals]
        return type(self)(self.cuts, tuple(kept), self.counts)

    def mean_without(self, piece: int) -> torch.Tensor:
        """The mean fused text of all other frames, float32 `[T, hidden]`: of their sum, so that nothing cancels."""
        others = [one for number, one in enumerate(self.totals) if one is not None and number != piece]
        return torch.stack(others).sum(0) / (sum(self.counts) - self.counts[piece])

    def tokens_without(self, piece: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens of all other frames, of those of all frames `[F * C * C, hidden]`."""
        each = len(tokens) // sum(self.counts)
        start = sum(self.counts[:piece])
        return torch.cat([tokens[: start * each], tokens[(start + self.counts[piece]) * each :]])


def patch_centres(layout: PieceLayout, size: tuple[int, int], grid: int) -> NDArray[np.float64]:
    """The pixel of the upright picture, which may lie beyond its edge, where each patch has its middle.

    Args:
        size: the picture's width and height.
        grid: patches along each edge of what CLIP sees at once.

    Returns:
        `[P, 2]`, across and down, in the order in which pre-fusion reads patches: the raster of the pieces row by row
        where the picture is cut into pieces, then the whole.
    """
    n = layout.splits
    axes = [_centres(layout, size, axis, None, grid) for axis in (0, 1)]
    rasters = [axes]
    if n > 1:
        cut = [np.concatenate([_centres(layout, size, axis, part, grid) for part in range(n)]) for axis in (0, 1)]
        rasters = [cut, axes]
    found = [np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2) for across, down in rasters]
    return np.concatenate(found)


def _centres(layout: PieceLayout, size: tuple[int, int], axis: int, part: int | None, grid: int) -> NDArray[np.float64]:
    """Along one axis, of one of the pieces that the axis is cut into, or of the whole."""
    cut = [
        range(size[one]) if part is None else spans(size[one], layout.splits)[part if one == axis else 0]
        for one in (0, 1)
    ]
    edges = [len(one) for one in cut]
    crop, short = layout.crop[1 - axis], max(edges) if layout.pad else min(edges)
    seen = crop * short / layout.shortest_edge  # pixels of the picture
    start = cut[axis].start + (edges[axis] - seen) / 2
    return start + (np.arange(grid) + 0.5) * seen / grid


def picture_blocks(layout: PieceLayout, size: tuple[int, int], grid: int) -> tuple[NDArray[np.int64], tuple[Box, ...]]:
    """3 x 3 blocks, row by row, of what the model sees of a picture.

    Returns:
        The block of each patch, `[P]`, and the box of each block.
    """
    centres = patch_centres(layout, size, grid)
    seen: list[tuple[float, float]] = []
    for axis in (0, 1):
        own = np.unique(centres[:, axis])
        reach = float(np.diff(own).max()) / 2 if len(own) > 1 else 0.5
        seen.append((max(0.0, own[0] - reach), min(float(size[axis]), own[-1] + reach)))
    edges = [np.linspace(low, high, BLOCKS + 1) for low, high in seen]
    across, down = (
        np.clip(np.searchsorted(edges[axis], centres[:, axis], side="right") - 1, 0, BLOCKS - 1) for axis in (0, 1)
    )
    shown = [[round(float(edge)) for edge in line] for line in edges]
    boxes = tuple(
        (shown[0][column], shown[1][row], shown[0][column + 1], shown[1][row + 1])
        for row in range(BLOCKS)
        for column in range(BLOCKS)
    )
    return (down * BLOCKS + across).astype(np.int64), boxes
