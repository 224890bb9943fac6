"""Attention in two parts, what everybody sees and what is one's own, each by a flash kernel, and merged afterwards.

A flash kernel takes no mask, and the one that takes a mask computes every pair: so what all queries see is attended to
without one, one's own causally, and the logarithms of the sums of both softmaxes say how much of either counts. Grouped
heads go through as more queries of one head, so that no key is repeated. Knows nothing of caches and layers.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from llava_mini_cli.engine.memory import ran_out

ALIGNED = 8  # numbers in whose multiples CUDA's kernel for masks wants the rows of a mask to begin


class Part(NamedTuple):
    """Attention to some of the keys."""

    out: torch.Tensor  # [B, heads, L, d]
    log_sum: torch.Tensor  # float32 [B, heads, L], of the exponentials of all scores


class Seen(NamedTuple):
    """Which keys of each sequence are seen: its first ones."""

    bias: torch.Tensor | None  # [B, 1, 1, K], 0 or -inf; None: all are seen
    is_empty: torch.Tensor | None  # bool [B, 1, 1], where there is none to be seen; None: nowhere

    @classmethod
    def of(cls, lengths: Sequence[int], keys: int, like: torch.Tensor) -> "Seen":
        """From the number of keys that are seen of each sequence, of `keys` that there are; the format of `like`."""
        if all(length == keys for length in lengths):
            return cls(None, None)
        told = torch.tensor(lengths, device=like.device)[:, None]
        visible = torch.arange(-(-keys // ALIGNED) * ALIGNED, device=like.device) < told.clamp(min=1)
        is_empty = None if all(lengths) else (told == 0)[:, None]
        return cls(additive(visible, like.dtype)[:, None, None, :keys], is_empty)


EVERYTHING = Seen(None, None)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: Seen = EVERYTHING) -> Part:
    """Attention of all queries to the same keys.

    Args:
        queries: `[B, heads, L, d]`.
        keys, values: `[B, kv heads, K, d]`; K is at least 1.
    """
    grouped = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [B, kv heads, group * L, d]
    bias = None if seen.bias is None else seen.bias.expand(-1, -1, grouped.shape[2], -1)
    out, log_sum = _attend(grouped, keys, values, bias)
    size = queries.shape[1] // keys.shape[1], queries.shape[2]
    if seen.is_empty is not None:
        log_sum = log_sum.masked_fill(seen.is_empty, float("-inf"))
    return Part(out.unflatten(2, size).flatten(1, 2), log_sum.unflatten(2, size).flatten(1, 2))


def attend_masked(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> Part:
    """As `attend`, with a mask of each pair, `[B, 1, L, K]`, 0 or -inf, B may be 1; each query sees some key."""
    kernel = kernel_for(queries.device, queries.dtype, queries.shape[-1], is_masked=True)
    if kernel is flash:  # which reads grouped heads as they are
        return flash(queries, keys, values, bias)
    grouped = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    group = queries.shape[1] // keys.shape[1]
    out, log_sum = kernel(grouped, keys, values, bias.repeat(1, 1, group, 1) if group > 1 else bias)
    size = group, queries.shape[2]
    return Part(out.unflatten(2, size).flatten(1, 2), log_sum.unflatten(2, size).flatten(1, 2))


def attend_own(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Part:
    """Causal attention of sequences to themselves: `[B, heads, L, d]` to `[B, kv heads, L, d]`."""
    kernel = kernel_for(queries.device, queries.dtype, queries.shape[-1], is_masked=False)
    if kernel is flash:  # which reads grouped heads as they are
        return flash(queries, keys, values, is_causal=True)
    length = queries.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool, device=queries.device).tril()
    return attend_masked(queries, keys, values, additive(visible, queries.dtype)[None, None])


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is visible, -inf elsewhere."""
    return torch.full(visible.shape, float("-inf"), dtype=dtype, device=visible.device).masked_fill_(visible, 0.0)


def merged(first: Part, second: Part) -> torch.Tensor:
    """Attention to the keys of both parts, `[B, heads, L, d]`; either may be of no key, not both."""
    share = torch.sigmoid(first.log_sum - second.log_sum)[..., None]
    return torch.lerp(second.out.float(), first.out.float(), share).to(first.out.dtype)


def attend_causally(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last queries of a sequence.

    Args:
        queries: `[B, heads, L, d]`, those of the last L positions.
        keys, values: `[B, kv heads, P, d]`, of all positions.
    """
    start = keys.shape[2] - queries.shape[2]
    if start == 0:
        return attend_own(queries, keys, values).out
    before = attend(queries, keys[:, :, :start], values[:, :, :start])
    return merged(before, attend_own(queries, keys[:, :, start:], values[:, :, start:]))


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> Part:
    """Attention of as many heads to as many; `bias`: `[B or 1, 1, L, K]`, in the queries' format."""
    kernel = kernel_for(queries.device, queries.dtype, queries.shape[-1], is_masked=bias is not None)
    return kernel(queries, keys, values, bias)


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], Part]


@cache
def kernel_for(device: torch.device, dtype: torch.dtype, width: int, *, is_masked: bool) -> Kernel:
    """The first kernel that works: which do hangs on the card, the number format and the width of a head."""
    if device.type == "cpu":
        return flash
    trial = torch.zeros(1, 1, ALIGNED, width, dtype=dtype, device=device)
    bias = trial.new_zeros(1, 1, ALIGNED, ALIGNED) if is_masked else None
    for kernel in (flash, efficient) if device.type == "cuda" else ():
        try:
            kernel(trial, trial, trial, bias)
        except (RuntimeError, NotImplementedError) as error:
            if ran_out(error):
                raise
        else:
            return kernel
    return plain


def flash(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
) -> Part:
    """torch's flash kernel. That of CUDA takes no mask, and says so by a `NotImplementedError`."""
    operators: Any = torch.ops.aten
    if queries.device.type == "cpu":
        kernel = operators._scaled_dot_product_flash_attention_for_cpu
        return Part(*kernel(queries, keys, values, 0.0, is_causal, attn_mask=bias))
    if bias is not None:
        raise NotImplementedError
    out, log_sum, *_ = operators._scaled_dot_product_flash_attention(queries, keys, values, 0.0, is_causal)
    return Part(out, log_sum[:, :, : queries.shape[2]])


def efficient(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> Part:
    """CUDA's kernel that takes masks and float32."""
    operators: Any = torch.ops.aten
    mask = None if bias is None else _aligned(bias).expand(*queries.shape[:3], keys.shape[2])
    out, log_sum, *_ = operators._scaled_dot_product_efficient_attention(queries, keys, values, mask, True)
    return Part(out, log_sum[:, :, : queries.shape[2]])


def _aligned(bias: torch.Tensor) -> torch.Tensor:
    """The same mask, its rows beginning where the kernel wants them."""
    if all(stride % ALIGNED == 0 for stride in bias.stride()[:-1]):
        return bias
    missing = -bias.shape[-1] % ALIGNED
    return functional.pad(bias, (0, missing))[..., : bias.shape[-1]]


def plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> Part:
    """The same by products and a softmax, on any device: all scores are there at once."""
    scores = (queries @ keys.transpose(2, 3)).mul_(queries.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    scores = scores.float()
    return Part(scores.softmax(-1).to(queries.dtype) @ values, scores.logsumexp(-1))
