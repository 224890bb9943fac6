"""Sequences that lie packed one behind the other, brought to a row each and back, so that each attends to itself.

Knows nothing of what the sequences are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llava_mini_cli.engine.attention import Part, attend_own


@dataclass(frozen=True)
class PackedRows:
    """Where up to R sequences of up to S positions lie among T packed ones: in each of B packs, or in all alike."""

    gather: torch.Tensor  # int64 [B or 1, R * S], the packed place of each row's positions
    scatter: torch.Tensor  # int64 [B or 1, T], where the rows hold each packed position
    count: int  # R

    @classmethod
    def of(cls, spans: Sequence[Sequence[tuple[int, int]]], packed: int, device: torch.device) -> "PackedRows":
        """From where the sequences of each pack begin and end, of `packed` positions.

        What no sequence holds takes part for the sake of the shape: what comes out for it has no meaning.
        """
        rows = max([1, *map(len, spans)])
        longest = max([1, *(stop - start for own in spans for start, stop in own)])
        gather, scatter = np.zeros((len(spans), rows, longest), np.int64), np.zeros((len(spans), packed), np.int64)
        for number, own in enumerate(spans):
            for row, (start, stop) in enumerate(own):
                gather[number, row, : stop - start] = np.arange(start, stop)
                scatter[number, start:stop] = row * longest + np.arange(stop - start)
        made = (torch.from_numpy(array.reshape(len(spans), -1)).to(device) for array in (gather, scatter))
        return cls(*made, count=rows)

    def by_row(self, states: torch.Tensor) -> torch.Tensor:
        """Packed states `[B, h, T, d]` with a row each, `[B * R, h, S, d]`."""
        return _taken(states, self.gather).unflatten(2, (self.count, -1)).transpose(1, 2).flatten(0, 1)

    def attend_own(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Part:
        """Causal attention of each sequence to itself: rows, `[B * R, h, S, d]`, to a packed part, `[B, h, T, d]`."""
        part = attend_own(queries, keys, values)
        return Part(self._packed(part.out), self._packed(part.log_sum[..., None])[..., 0])

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Part:
        """The same of packed states."""
        return self.attend_own(self.by_row(queries), self.by_row(keys), self.by_row(values))

    def _packed(self, states: torch.Tensor) -> torch.Tensor:
        return _taken(states.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3), self.scatter)


def _taken(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if len(index) == 1:
        return states.index_select(2, index[0])
    return torch.take_along_dim(states, index[:, None, :, None], dim=2)
