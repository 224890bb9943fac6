"""Keys and values of the answers in the making: one prefix a medium, shared by all of its questions.

A `RowCache` belongs to B media with up to R questions each, a row for each. Nothing of the prefix is copied for a
question; a row owns only its tail and what it generated. Where each medium has one question, there is no prefix, and a
row owns all. Caches of media that are alike are joined, so that a step attends once for all of them. Knows nothing of
tokens or text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llava_mini_cli.engine.attention import Part, Seen, attend, merged

GROWTH = 64  # positions by which the rows' own part grows
MOST_PADDING = 0.25  # of the positions of caches, those that may be added where they are joined


@dataclass(frozen=True)
class _Step:
    """What all layers of a decoding step have in common."""

    rows: torch.Tensor | None  # int64 [n]; None: all rows in their order
    place: torch.Tensor  # int64 [n], where each row's new position is
    used: int  # positions of the longest row, the new one included
    prefix: Seen
    own: Seen


@dataclass(eq=False)
class RowCache:
    """Keys and values of B media and B * R rows, layer by layer."""

    prefix_lengths: torch.Tensor  # int64 [B]
    own_lengths: torch.Tensor  # int64 [B, R]
    prefix_keys: list[torch.Tensor] = field(default_factory=list[torch.Tensor])  # each [B, kv heads, P, d]
    prefix_values: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    own_keys: list[torch.Tensor] = field(default_factory=list[torch.Tensor])  # each [B * R, kv heads, S, d]
    own_values: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    is_apart: bool = False  # not to be joined with others: memory ran out
    _step: _Step = field(init=False, repr=False)  # the one being made

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        parts = (self.prefix_keys, self.prefix_values, self.own_keys, self.own_values)
        return sum(tensor.nbytes for part in parts for tensor in part)

    @property
    def rows_per_medium(self) -> int:
        """R."""
        return self.own_lengths.shape[1]

    @property
    def growth(self) -> int:
        """Positions, of all rows together, for which `reserve` will make space."""
        space = min(tensor.shape[2] for tensor in self.own_keys)
        return self.own_lengths.numel() * GROWTH if int(self.own_lengths.max()) >= space else 0

    @property
    def widest(self) -> tuple[int, int]:
        """Positions of the prefix and of the rows' own part that there is space for."""
        return self.prefix_keys[0].shape[2], self.own_keys[0].shape[2]

    def reserve(self, rows: torch.Tensor) -> None:
        """Makes space for one more position in every row, before the layers of a step `attend` from some, `[n]`."""
        lengths = self.own_lengths.flatten()
        told = lengths.tolist()
        used = max(told) + 1
        for part in (self.own_keys, self.own_values):
            for layer, tensor in enumerate(part):
                if used > tensor.shape[2]:  # each by itself: memory may have run out between two of them last time
                    part[layer] = torch.nn.functional.pad(tensor, (0, 0, 0, GROWTH))
        is_all = rows.tolist() == list(range(len(told)))
        prefix = Seen.of(self.prefix_lengths.tolist(), self.prefix_keys[0].shape[2], self.prefix_keys[0])
        own = Seen.of([length + 1 for length in told], used, self.own_keys[0])
        self._step = _Step(None if is_all else rows, lengths[rows], used, prefix, own)

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """The position in the sequence of the next token of each row, int64 `[n]`."""
        prefix = self.prefix_lengths[:, None].expand_as(self.own_lengths)
        return (prefix + self.own_lengths).flatten()[rows]

    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Appends one position to the rows of the step (see `advanced`) and attends from it.

        Args:
            queries: `[n, heads, d]`; keys, values: `[n, kv heads, d]`, rotated.

        Returns:
            `[n, heads, d]`.
        """
        own_k, own_v = self.own_keys[layer], self.own_values[layer]
        step = self._step
        index = torch.arange(len(own_k), device=own_k.device) if step.rows is None else step.rows
        own_k[index, :, step.place] = keys
        own_v[index, :, step.place] = values
        if step.rows is not None:
            queries = queries.new_zeros(len(own_k), *queries.shape[1:]).index_copy_(0, index, queries)
        # What lies behind the used positions is space for steps to come.
        own = attend(queries[:, :, None], own_k[:, :, : step.used], own_v[:, :, : step.used], step.own)
        out = own.out[:, :, 0]
        if self.prefix_keys[layer].shape[2]:
            # The prefix is read once for all rows of a medium: [B, heads, R, d].
            by_medium = queries.unflatten(0, self.own_lengths.shape).transpose(1, 2)
            seen = attend(by_medium, self.prefix_keys[layer], self.prefix_values[layer], step.prefix)
            shared = Part(*(part.transpose(1, 2).flatten(0, 1).unsqueeze(2) for part in seen))
            out = merged(shared, own)[:, :, 0]
        return out if step.rows is None else out[index]

    def advanced(self, rows: torch.Tensor) -> torch.Tensor:
        """`own_lengths` with the position that `attend` appended to each of these rows; the caller puts it there."""
        ones = torch.ones_like(rows)
        return self.own_lengths.flatten().index_add(0, rows, ones).view_as(self.own_lengths)

    def part(self, media: slice, slots: slice = slice(None)) -> "RowCache":
        """A cache of some media; of a single one, also of some of its rows. It shares these tensors until it grows."""
        per_medium = self.rows_per_medium
        rows = slice(media.start * per_medium, media.stop * per_medium)
        return RowCache(
            self.prefix_lengths[media],
            self.own_lengths[media, slots],
            [tensor[media] for tensor in self.prefix_keys],
            [tensor[media] for tensor in self.prefix_values],
            [tensor[rows][slots] if media.stop - media.start == 1 else tensor[rows] for tensor in self.own_keys],
            [tensor[rows][slots] if media.stop - media.start == 1 else tensor[rows] for tensor in self.own_values],
            is_apart=True,
        )

    def keep_media(self, media: torch.Tensor) -> None:
        """Drops the keys and values of every medium not in `media`, int64 `[m]`, and puts those in that order.

        Whatever is kept either stays in its place or comes from behind the first m, so nothing that is kept is written
        over: where memory runs out on the way, everything still is where it was.
        """
        slots = torch.arange(self.rows_per_medium, device=media.device)
        rows = (media[:, None] * len(slots) + slots).flatten()
        prefix_lengths, own_lengths = self.prefix_lengths[media], self.own_lengths[media]
        parts = (self.prefix_keys, media), (self.prefix_values, media), (self.own_keys, rows), (self.own_values, rows)
        for part, index in parts:
            moved = [(to, here) for to, here in enumerate(index.tolist()) if to != here]
            to, here = torch.tensor(moved, dtype=torch.int64, device=index.device).reshape(-1, 2).unbind(1)
            for tensor in part:
                tensor[to] = tensor[here]
        kept = [[tensor[: len(index)] for tensor in part] for part, index in parts]
        self.prefix_lengths, self.own_lengths = prefix_lengths, own_lengths
        self.prefix_keys, self.prefix_values, self.own_keys, self.own_values = kept

    def let_go(self) -> None:
        """Frees what `keep_media` dropped, tensor by tensor; may be done in part and again."""
        for part in (self.prefix_keys, self.prefix_values, self.own_keys, self.own_values):
            for layer, tensor in enumerate(part):
                if tensor.untyped_storage().nbytes() > tensor.nbytes:
                    part[layer] = tensor.clone()


def alike(caches: Sequence[RowCache]) -> list[RowCache]:
    """Some of the caches that may be joined: of as many rows a medium, without much padding, and none that is apart."""
    left = [one for one in caches if not one.is_apart]
    for number, first in enumerate(left):
        found = [first]
        for cache in left[number + 1 :]:
            several = [*found, cache]
            if cache.rows_per_medium == first.rows_per_medium and _padding(several) <= MOST_PADDING * _size(several):
                found = several
        if len(found) > 1:
            return found
    return []


def room_to_join(caches: Sequence[RowCache]) -> int:
    """Positions of keys and values that joining takes beside the caches: padding, and one layer that is there twice."""
    padding = _padding(caches)
    return padding + -(-(_size(caches) + padding) // len(caches[0].own_keys))


def _size(caches: Sequence[RowCache]) -> int:
    """Positions of all caches, padding of their own included."""
    return sum(one.own_lengths.shape[0] * one.widest[0] + one.own_lengths.numel() * one.widest[1] for one in caches)


def _padding(caches: Sequence[RowCache]) -> int:
    """Positions that would be added where they are joined."""
    prefix, own = (max(one.widest[part] for one in caches) for part in range(2))
    joined = sum(one.own_lengths.shape[0] * prefix + one.own_lengths.numel() * own for one in caches)
    return joined - _size(caches)


def join(caches: Sequence[RowCache]) -> RowCache:
    """One cache of the media of several, one behind the other, which have as many rows a medium.

    Each becomes a part of it layer by layer. So where memory runs out on the way, all of them still are what they were.
    """
    whole: list[list[torch.Tensor]] = []
    for part in ("prefix_keys", "prefix_values", "own_keys", "own_values"):
        of_caches: list[list[torch.Tensor]] = [getattr(one, part) for one in caches]
        whole.append([])
        for layer in range(len(of_caches[0])):
            tensors = [tensors[layer] for tensors in of_caches]
            widest = max(tensor.shape[2] for tensor in tensors)
            padded = [torch.nn.functional.pad(one, (0, 0, 0, widest - one.shape[2])) for one in tensors]
            joined = torch.cat(padded)
            for to, piece in zip(of_caches, joined.split([len(one) for one in tensors]), strict=True):
                to[layer] = piece
            whole[-1].append(joined)
    prefix_lengths = torch.cat([one.prefix_lengths for one in caches])
    prefix_keys, prefix_values, own_keys, own_values = whole
    own_lengths = torch.cat([one.own_lengths for one in caches])
    return RowCache(prefix_lengths, own_lengths, prefix_keys, prefix_values, own_keys, own_values)
