"""Keys and values of the answers in the making: one prefix a medium, shared by all of its questions.

A `RowCache` belongs to one prefill batch of B media with up to R questions each, a row for each. Nothing of the prefix
is copied for a question; a row owns only its tail and what it generated. Knows nothing of tokens or text.
"""

from dataclasses import dataclass, field

import torch

GROWTH = 64  # positions by which the rows' own part grows


@dataclass(eq=False)
class RowCache:
    """Keys and values of B media and B * R rows, layer by layer."""

    prefix_lengths: torch.Tensor  # int64 [B]
    own_lengths: torch.Tensor  # int64 [B, R]
    prefix_keys: list[torch.Tensor] = field(default_factory=list[torch.Tensor])  # each [B, kv heads, P, d]
    prefix_values: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    own_keys: list[torch.Tensor] = field(default_factory=list[torch.Tensor])  # each [B * R, kv heads, S, d]
    own_values: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _unseen: torch.Tensor = field(init=False, repr=False)  # bool [B * R, 1, 1, P + S], of the step being made

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

    def reserve(self) -> None:
        """Makes space for one more position in every row, before the layers of a step `attend`."""
        need = int(self.own_lengths.max()) + 1
        for part in (self.own_keys, self.own_values):
            for layer, tensor in enumerate(part):
                if need > tensor.shape[2]:  # each by itself: memory may have run out between two of them last time
                    part[layer] = torch.nn.functional.pad(tensor, (0, 0, 0, GROWTH))
        device = self.own_lengths.device
        prefix = torch.arange(self.prefix_keys[0].shape[2], device=device) >= self.prefix_lengths[:, None]
        own = torch.arange(need, device=device) > self.own_lengths.flatten()[:, None]
        self._unseen = torch.cat([prefix.repeat_interleave(self.rows_per_medium, 0), own], dim=1)[:, None, None]

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """The position in the sequence of the next token of each row, int64 `[n]`."""
        prefix = self.prefix_lengths[:, None].expand_as(self.own_lengths)
        return (prefix + self.own_lengths).flatten()[rows]

    def attend(
        self, layer: int, rows: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Appends one position to some rows (see `advanced`) and attends from it.

        Args:
            rows: int64 `[n]` into the B * R rows.
            queries: `[n, heads, d]`; keys, values: `[n, kv heads, d]`, rotated.

        Returns:
            `[n, heads, d]`.
        """
        own_k, own_v = self.own_keys[layer], self.own_values[layer]
        place = self.own_lengths.flatten()[rows]
        own_k[rows, :, place] = keys
        own_v[rows, :, place] = values
        used = self._unseen.shape[-1] - self.prefix_keys[layer].shape[2]
        own_k, own_v = own_k[:, :, :used], own_v[:, :, :used]  # what lies behind is space for steps to come
        media, per_medium = self.own_lengths.shape
        kv_heads, dim = keys.shape[1:]
        grouped = queries.new_zeros(media * per_medium, kv_heads, queries.shape[1] // kv_heads, dim)
        grouped[rows] = queries.unflatten(1, (kv_heads, -1))
        # The prefix is read once for all rows of a medium: [B, kv heads, R * group, P].
        by_medium = grouped.unflatten(0, (media, per_medium)).transpose(1, 2).flatten(2, 3)
        shared = by_medium @ self.prefix_keys[layer].transpose(2, 3)
        shared = shared.unflatten(2, (per_medium, -1)).transpose(1, 2).flatten(0, 1)
        scores = torch.cat([shared, grouped @ own_k.transpose(2, 3)], dim=-1).mul_(dim**-0.5)
        weights = scores.masked_fill_(self._unseen, float("-inf")).softmax(-1, dtype=torch.float32).to(queries.dtype)
        from_prefix, from_own = weights.split([shared.shape[-1], used], dim=-1)
        from_prefix = from_prefix.unflatten(0, (media, per_medium)).transpose(1, 2).flatten(2, 3)
        seen = (from_prefix @ self.prefix_values[layer]).unflatten(2, (per_medium, -1)).transpose(1, 2).flatten(0, 1)
        return (seen + from_own @ own_v)[rows].flatten(1, 2)

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
