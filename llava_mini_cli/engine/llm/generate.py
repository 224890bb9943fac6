"""The language model over embeddings: prefill of a batch of media, and one decoding step for any rows.

Knows nothing of pixels, text or stopping.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.attention import Seen, attend, attend_causally, merged
from llava_mini_cli.engine.dense import EAGER, Dense, Projected, finish, normalised, project
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.kv_cache import GROWTH, RowCache
from llava_mini_cli.engine.packed_rows import PackedRows
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration, LlavaMiniModel

PREFILL_POSITIONS = 2048  # positions that go through the layers at once

Made = TypeVar("Made")


@torch.inference_mode()
def prefill(model: LlavaMiniForConditionalGeneration, items: Sequence[PrefillItem]) -> tuple[RowCache, torch.Tensor]:
    """Runs a batch of media through the LLM: the prefix once each, and all tails at once with the end of it.

    Where each medium has a single question, nobody shares its prefix, and all of it is the row's own.

    Returns:
        The cache of the batch and the logits behind each tail, `[B * R, vocab]` (rows that a medium with
        fewer questions does not have hold nothing of meaning).
    """
    trunk = model.model
    has_several = any(len(one.tails) > 1 for one in items)
    cache, ends = (_prefill_shared if has_several else _prefill_rows)(trunk, items)
    return cache, model.lm_head(normalised(trunk.norm, ends))


def _prefill_rows(trunk: LlavaMiniModel, items: Sequence[PrefillItem]) -> tuple[RowCache, torch.Tensor]:
    """Media with one question each; the last layer's output at the end of each, `[B, hidden]`."""
    hidden = torch.nn.utils.rnn.pad_sequence([torch.cat([one.prefix, *one.tails]) for one in items], batch_first=True)
    lengths = torch.tensor([one.prefix.shape[0] + one.tails[0].shape[0] for one in items], device=hidden.device)
    whole, nothing = hidden.shape[1], lengths.new_zeros(len(items))
    keys, values = (_space(trunk, hidden, whole + GROWTH) for _ in range(2))
    cache = RowCache(nothing, lengths[:, None], _space(trunk, hidden, 0), _space(trunk, hidden, 0), keys, values)
    ends = hidden.new_empty(len(items), hidden.shape[2])
    for start in range(0, whole, PREFILL_POSITIONS):
        stop = min(start + PREFILL_POSITIONS, whole)
        out = _prefill_stretch(trunk, keys, values, hidden[:, start:stop], start)
        here = (lengths - 1).clamp(start, stop - 1) - start  # each end is right in the stretch that it is in
        ends = torch.where((lengths > start)[:, None], torch.take_along_dim(out, here[:, None, None], 1)[:, 0], ends)
    return cache, ends


def _prefill_shared(trunk: LlavaMiniModel, items: Sequence[PrefillItem]) -> tuple[RowCache, torch.Tensor]:
    """Media with several questions; the last layer's output at the end of each tail, `[B * R, hidden]`."""
    prefix = torch.nn.utils.rnn.pad_sequence([item.prefix for item in items], batch_first=True)
    tails = torch.nn.utils.rnn.pad_sequence([torch.cat(item.tails) for item in items], batch_first=True)
    lengths = torch.tensor([item.prefix.shape[0] for item in items], device=prefix.device)
    keys, values = (_space(trunk, prefix, prefix.shape[1]) for _ in range(2))
    cache = RowCache(lengths, lengths.new_zeros(len(items), 1), keys, values)
    last = max(0, prefix.shape[1] - max(0, PREFILL_POSITIONS - tails.shape[1]))
    for start in range(0, last, PREFILL_POSITIONS):
        _prefill_stretch(trunk, keys, values, prefix[:, start : min(start + PREFILL_POSITIONS, last)], start)
    layout = _TailLayout.of(items, tails)
    return cache, _prefill_end(trunk, cache, prefix[:, last:], tails, layout)


def _space(trunk: LlavaMiniModel, like: torch.Tensor, positions: int) -> list[torch.Tensor]:
    """Keys or values of every layer, for sequences of so many positions."""
    config = trunk.config
    heads = config.num_key_value_heads or config.num_attention_heads
    dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return [like.new_zeros(like.shape[0], heads, positions, dim) for _ in range(config.num_hidden_layers)]


def _prefill_stretch(
    trunk: LlavaMiniModel,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    hidden: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """One stretch of sequences, `[B, L, hidden]`, through every layer; it sees the stretches before it.

    Args:
        keys, values: of each layer, `[B, kv heads, P, d]`; those of the stretch are put there.
    """
    stop = start + hidden.shape[1]
    rotary = trunk.rotary_emb(hidden, torch.arange(start, stop, device=hidden.device)[None])
    for number, layer in enumerate(_layers(trunk)):
        projected = project(layer, normalised(layer.input_layernorm, hidden), rotary)
        attended = _attend_stretch(keys[number], values[number], start, projected)
        hidden = finish(layer, hidden, attended.transpose(1, 2).flatten(2))
    return hidden


def _attend_stretch(keys: torch.Tensor, values: torch.Tensor, start: int, projected: Projected) -> torch.Tensor:
    """Puts a stretch's keys and values in place, from `start` on, and attends from it: `[B, heads, L, d]`."""
    queries, new_keys, new_values = projected
    stop = start + queries.shape[2]
    keys[:, :, start:stop] = new_keys
    values[:, :, start:stop] = new_values
    return attend_causally(queries, keys[:, :, :stop], values[:, :, :stop])


def _prefill_end(
    trunk: LlavaMiniModel, cache: RowCache, prefix: torch.Tensor, tails: torch.Tensor, layout: "_TailLayout"
) -> torch.Tensor:
    """The last stretch of the prefix and all tails, packed medium by medium; fills the rows' own part.

    Both go through the dense parts together: where they are few, reading the weights is what takes time.

    Args:
        prefix: `[B, L, hidden]`, L may be 0.
        tails: `[B, T, hidden]`.

    Returns:
        `[B * R, hidden]`, the last layer's output at the end of each tail.
    """
    length, whole = prefix.shape[1], cache.prefix_keys[0].shape[2]
    places = torch.arange(whole - length, whole, device=tails.device).expand(len(prefix), -1)
    hidden = torch.cat([prefix, tails], dim=1)
    rotary = trunk.rotary_emb(hidden, torch.cat([places, layout.positions], dim=1))
    for number, layer in enumerate(_layers(trunk)):
        states = project(layer, normalised(layer.input_layernorm, hidden), rotary)
        stretch = states[0][:, :, :length], states[1][:, :, :length], states[2][:, :, :length]
        queries, keys, values = (part[:, :, length:] for part in states)
        prefix_keys, prefix_values = cache.prefix_keys[number], cache.prefix_values[number]
        seen = stretch[0]
        if length:
            seen = _attend_stretch(prefix_keys, prefix_values, whole - length, stretch)
        own_keys, own_values = layout.rows.by_row(keys), layout.rows.by_row(values)
        own = layout.rows.attend_own(layout.rows.by_row(queries), own_keys, own_values)
        out = merged(attend(queries, prefix_keys, prefix_values, layout.seen), own) if whole else own.out
        for part, rows in ((cache.own_keys, own_keys), (cache.own_values, own_values)):
            part.append(functional.pad(rows, (0, 0, 0, GROWTH)))
        hidden = finish(layer, hidden, torch.cat([seen, out], dim=2).transpose(1, 2).flatten(2))
    cache.own_lengths = layout.lengths
    ends = (length + layout.ends)[..., None].expand(-1, -1, hidden.shape[-1])
    return torch.take_along_dim(hidden, ends, dim=1).flatten(0, 1)


@dataclass(frozen=True)
class _TailLayout:
    """Where each tail lies in its medium's packed tails, and what it may see of the prefix."""

    lengths: torch.Tensor  # int64 [B, R]
    positions: torch.Tensor  # int64 [B, T], in the sequence
    seen: Seen  # of the prefix
    rows: PackedRows  # the tails
    ends: torch.Tensor  # int64 [B, R], packed index of each tail's last position

    @classmethod
    def of(cls, items: Sequence[PrefillItem], tails: torch.Tensor) -> "_TailLayout":
        """Of tails that are packed as `[B, T, hidden]`."""
        media, packed = tails.shape[:2]
        lengths, ends = (np.zeros((media, max(len(item.tails) for item in items)), np.int64) for _ in range(2))
        positions = np.zeros((media, packed), np.int64)
        spans: list[list[tuple[int, int]]] = []
        for medium, item in enumerate(items):
            stops = list(accumulate(map(len, item.tails)))
            spans.append(list(zip([0, *stops[:-1]], stops, strict=True)))
            for row, (start, stop) in enumerate(spans[-1]):
                lengths[medium, row], ends[medium, row] = stop - start, stop - 1
                positions[medium, start:stop] = len(item.prefix) + np.arange(stop - start)
        prefixes = [len(item.prefix) for item in items]
        of_rows, of_tails, last = (torch.from_numpy(a).to(tails.device) for a in (lengths, positions, ends))
        seen, rows = Seen.of(prefixes, max(prefixes), tails), PackedRows.of(spans, packed, tails.device)
        return cls(of_rows, of_tails, seen, rows, last)


def _itself(logits: torch.Tensor) -> Any:
    return logits


@dataclass(frozen=True)
class DecodeBatch:
    """Rows of one cache that take part in a decoding step."""

    cache: RowCache
    rows: torch.Tensor  # int64 [n]


@torch.inference_mode()
def decode(
    model: LlavaMiniForConditionalGeneration,
    batches: Sequence[DecodeBatch],
    tokens: torch.Tensor,
    dense: Dense = EAGER,
    then: Callable[[torch.Tensor], Made] = _itself,
) -> Made:
    """One token for every row of every batch, in one pass; attention alone goes cache by cache.

    Args:
        tokens: int64 `[n]`, the last token of each row, batch after batch.
        dense: how the layers' dense parts are computed, compiled or not.
        then: makes of the logits `[n, vocab]` what is wanted, before the caches hold the tokens.

    Returns:
        What `then` made; the logits where it is not given.
    """
    trunk = model.model
    sizes = [len(batch.rows) for batch in batches]
    hidden = trunk.embed_tokens(tokens)
    positions = torch.cat([batch.cache.positions(batch.rows) for batch in batches])
    rotary = trunk.rotary_emb(hidden, positions[:, None])
    for batch in batches:
        batch.cache.reserve(batch.rows)
    for number, layer in enumerate(_layers(trunk)):
        projected = dense.project(layer, normalised(layer.input_layernorm, hidden)[:, None], rotary)
        split = [states.squeeze(2).split(sizes) for states in projected]
        out = [
            batch.cache.attend(number, queries, keys, values)
            for batch, queries, keys, values in zip(batches, *split, strict=True)
        ]
        hidden = dense.finish(layer, hidden, torch.cat(out).flatten(1))
    logits = model.lm_head(normalised(trunk.norm, hidden))
    # Last, and all at once: where memory runs out before, the step can be made again.
    made, lengths = then(logits), [batch.cache.advanced(batch.rows) for batch in batches]
    for batch, own_lengths in zip(batches, lengths, strict=True):
        batch.cache.own_lengths = own_lengths
    return made


def _layers(trunk: LlavaMiniModel) -> list[LlamaDecoderLayer]:
    return [cast(LlamaDecoderLayer, layer) for layer in trunk.layers]
