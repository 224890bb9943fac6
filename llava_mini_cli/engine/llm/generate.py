"""The language model over embeddings: prefill of a batch of media, and one decoding step for any rows.

Knows nothing of pixels, text or stopping.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.dense import EAGER, Dense, Projected, attend_causally, finish, project
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.kv_cache import GROWTH, RowCache
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration, LlavaMiniModel

PREFILL_POSITIONS = 2048  # positions that go through the layers at once

Made = TypeVar("Made")


@torch.inference_mode()
def prefill(model: LlavaMiniForConditionalGeneration, items: Sequence[PrefillItem]) -> tuple[RowCache, torch.Tensor]:
    """Runs a batch of media through the LLM: the prefix once each, and all tails at once with the end of it.

    Returns:
        The cache of the batch and the logits behind each tail, `[B * R, vocab]` (rows that a medium with
        fewer questions does not have hold nothing of meaning).
    """
    trunk = model.model
    device = items[0].prefix.device
    lengths = torch.tensor([item.prefix.shape[0] for item in items], device=device)
    prefix = torch.nn.utils.rnn.pad_sequence([item.prefix for item in items], batch_first=True)
    tails = torch.nn.utils.rnn.pad_sequence([torch.cat(item.tails) for item in items], batch_first=True)
    cache = _empty_cache(trunk, prefix, lengths)
    last = max(0, prefix.shape[1] - max(0, PREFILL_POSITIONS - tails.shape[1]))
    for start in range(0, last, PREFILL_POSITIONS):
        _prefill_prefix(trunk, cache, prefix[:, start : min(start + PREFILL_POSITIONS, last)], start)
    ends = _prefill_end(trunk, cache, prefix[:, last:], tails, _tail_layout(cache, items, tails.shape[1]))
    return cache, model.lm_head(trunk.norm(ends))


def _empty_cache(trunk: LlavaMiniModel, prefix: torch.Tensor, lengths: torch.Tensor) -> RowCache:
    config = trunk.config
    heads = config.num_key_value_heads or config.num_attention_heads
    dim = config.head_dim or config.hidden_size // config.num_attention_heads
    shape = (prefix.shape[0], heads, prefix.shape[1], dim)
    layers = range(config.num_hidden_layers)
    keys, values = ([prefix.new_empty(shape) for _ in layers] for _ in range(2))
    return RowCache(lengths, lengths.new_zeros(len(lengths), 1), keys, values)


def _prefill_prefix(trunk: LlavaMiniModel, cache: RowCache, hidden: torch.Tensor, start: int) -> None:
    """One stretch of the prefix, `[B, L, hidden]`, through every layer; it sees the stretches before it."""
    stop = start + hidden.shape[1]
    rotary = trunk.rotary_emb(hidden, torch.arange(start, stop, device=hidden.device)[None])
    for number, layer in enumerate(_layers(trunk)):
        attended = _attend_prefix(cache, number, start, project(layer, layer.input_layernorm(hidden), rotary))
        hidden = finish(layer, hidden, attended.transpose(1, 2).flatten(2))


def _attend_prefix(cache: RowCache, layer: int, start: int, projected: Projected) -> torch.Tensor:
    """Puts a stretch's keys and values into the prefix, from `start` on, and attends from it: `[B, heads, L, d]`."""
    queries, keys, values = projected
    stop = start + queries.shape[2]
    prefix_keys, prefix_values = cache.prefix_keys[layer], cache.prefix_values[layer]
    prefix_keys[:, :, start:stop] = keys
    prefix_values[:, :, start:stop] = values
    return attend_causally(queries, prefix_keys[:, :, :stop], prefix_values[:, :, :stop])


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
    device, length = tails.device, prefix.shape[1]
    whole = cache.prefix_keys[0].shape[2]
    places = torch.arange(whole - length, whole, device=device).expand(len(prefix), -1)
    hidden = torch.cat([prefix, tails], dim=1)
    rotary = trunk.rotary_emb(hidden, torch.cat([places, layout.positions], dim=1))
    pick = layout.gather.to(device)  # [B, R * S]
    for number, layer in enumerate(_layers(trunk)):
        queries, keys, values = project(layer, layer.input_layernorm(hidden), rotary)
        stretch = queries[:, :, :length], keys[:, :, :length], values[:, :, :length]
        queries, keys, values = queries[:, :, length:], keys[:, :, length:], values[:, :, length:]
        seen = _attend_prefix(cache, number, whole - length, stretch) if length else stretch[0]
        all_keys = torch.cat([cache.prefix_keys[number], keys], dim=2)
        all_values = torch.cat([cache.prefix_values[number], values], dim=2)
        out = functional.scaled_dot_product_attention(
            queries, all_keys, all_values, attn_mask=layout.mask, enable_gqa=True
        )
        for part, own in ((cache.own_keys, keys), (cache.own_values, values)):
            rows = torch.take_along_dim(own, pick[:, None, :, None], dim=2)  # [B, kv heads, R * S, d]
            rows = rows.unflatten(2, (layout.rows, -1)).transpose(1, 2).flatten(0, 1)
            part.append(functional.pad(rows, (0, 0, 0, GROWTH)))
        hidden = finish(layer, hidden, torch.cat([seen, out], dim=2).transpose(1, 2).flatten(2))
    cache.own_lengths = layout.lengths
    ends = (length + layout.ends.to(device))[..., None].expand(-1, -1, hidden.shape[-1])
    return torch.take_along_dim(hidden, ends, dim=1).flatten(0, 1)


@dataclass(frozen=True)
class _TailLayout:
    """Where each tail lies in its medium's packed tails, and what it may see."""

    rows: int  # R
    lengths: torch.Tensor  # int64 [B, R]
    positions: torch.Tensor  # int64 [B, T], in the sequence
    mask: torch.Tensor  # bool [B, 1, T, P + T]
    gather: torch.Tensor  # int64 [B, R * S], packed index of each row's positions
    ends: torch.Tensor  # int64 [B, R], packed index of each tail's last position


def _tail_layout(cache: RowCache, items: Sequence[PrefillItem], packed: int) -> _TailLayout:
    device = cache.prefix_lengths.device
    prefix = max(item.prefix.shape[0] for item in items)
    media, rows = len(items), max(len(item.tails) for item in items)
    longest = max(tail.shape[0] for item in items for tail in item.tails)
    lengths = torch.zeros(media, rows, dtype=torch.int64)
    positions = torch.zeros(media, packed, dtype=torch.int64)
    gather = torch.zeros(media, rows, longest, dtype=torch.int64)
    own = torch.zeros(media, packed, packed, dtype=torch.bool)
    ends = torch.zeros(media, rows, dtype=torch.int64)
    for medium, item in enumerate(items):
        start = 0
        for row, tail in enumerate(item.tails):
            size = tail.shape[0]
            span = torch.arange(size)
            lengths[medium, row] = size
            positions[medium, start : start + size] = item.prefix.shape[0] + span
            gather[medium, row, :size] = start + span
            own[medium, start : start + size, start : start + size] = torch.ones(size, size, dtype=torch.bool).tril()
            ends[medium, row] = start + size - 1
            start += size
    seen = torch.arange(prefix)[None] < torch.tensor([item.prefix.shape[0] for item in items])[:, None]
    mask = torch.cat([seen[:, None].expand(-1, packed, -1), own], dim=2)[:, None]
    return _TailLayout(rows, lengths.to(device), positions.to(device), mask.to(device), gather.flatten(1), ends)


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
        batch.cache.reserve()
    for number, layer in enumerate(_layers(trunk)):
        projected = dense.project(layer, layer.input_layernorm(hidden)[:, None], rotary)
        split = [states.squeeze(2).split(sizes) for states in projected]
        out = [
            batch.cache.attend(number, batch.rows, queries, keys, values)
            for batch, queries, keys, values in zip(batches, *split, strict=True)
        ]
        hidden = dense.finish(layer, hidden, torch.cat(out).flatten(1))
    logits = model.lm_head(trunk.norm(hidden))
    # Last, and all at once: where memory runs out before, the step can be made again.
    made, lengths = then(logits), [batch.cache.advanced(batch.rows) for batch in batches]
    for batch, own_lengths in zip(batches, lengths, strict=True):
        batch.cache.own_lengths = own_lengths
    return made


def _layers(trunk: LlavaMiniModel) -> list[LlamaDecoderLayer]:
    return [cast(LlamaDecoderLayer, layer) for layer in trunk.layers]
