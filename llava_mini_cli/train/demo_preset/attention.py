"""Attention over packed sequences whose tokens lie in one flat list (`sequences`), with its gradient.

Knows nothing of media, questions or layers.
"""

from typing import Any

import torch

Masks = tuple[torch.Tensor | None, ...]


class Gather(torch.autograd.Function):
    """Rows `x[index]`. The gradient is a gather, too, since every row is asked for once; what padding reads has none.

    Args of `apply`:
        x: `[N, width]`; index: int64 `[M]`; back: int64 `[N]`, where each row of `x` went.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


class GatherBack(torch.autograd.Function):
    """Rows `x[back]`, the inverse of `Gather`.

    Args of `apply`:
        x: `[M, width]`; back: int64 `[N]`; index: int64 `[M]`; there: bool `[M]`, False for padding, which gets no
        gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, back: torch.Tensor, index: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(index, there)
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        index, there = ctx.saved_tensors
        return gradients[0].index_select(0, index) * there[:, None], None, None, None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: dict[str, Any], masks: list[Masks]
) -> torch.Tensor:
    """Attention over packed sequences: causal, and each question sees what all share and itself.

    What is shared attends once and questions beside each other, so that few scores are computed to be masked.

    Args:
        query, key, value: `[N, heads, d]` of the flat tokens; queries and keys are rotated.
        layout: of `Sequences`.
        masks: of `additive_masks`.

    Returns:
        `[N, heads * d]`.
    """
    _, heads, depth = query.shape
    sizes = [rows * each for g in layout["groups"] for rows, each in (g["shared"], *_tables(g))]
    tables = [
        Gather.apply(x.flatten(1), layout["index"], layout["back"]).split([*sizes, 1])
        for x in (query * depth**-0.5, key, value)
    ]
    each_table = zip(*tables, strict=True)
    done: list[torch.Tensor] = []
    for group, (hidden, *causal) in zip(layout["groups"], masks, strict=True):
        rows, length = group["shared"]
        asks, keys, values = (x.view(rows, length, heads, depth).transpose(1, 2) for x in next(each_table))
        shares = (asks @ keys.transpose(2, 3) + causal[0]).softmax(-1).to(values.dtype)
        done.append((shares @ values).transpose(1, 2).reshape(-1, heads * depth))
        for (number, each), after in zip(group["own"], causal[1:], strict=True):
            own = [x.view(rows, number, each, heads, depth).transpose(2, 3) for x in next(each_table)]
            together = own[0].transpose(1, 2).reshape(rows, heads, number * each, depth)  # every question of a row
            before = together @ keys.transpose(2, 3)
            before = (before if hidden is None else before + hidden).unflatten(2, (number, each)).transpose(1, 2)
            shares = torch.cat([before, own[0] @ own[1].transpose(3, 4) + after], dim=4).softmax(-1).to(values.dtype)
            of_shared, of_own = shares.split([length, each], dim=4)
            of_shared = of_shared.transpose(1, 2).reshape(rows, heads, number * each, length) @ values
            found = of_shared.unflatten(2, (number, each)).transpose(1, 2) + of_own @ own[2]
            done.append(found.transpose(2, 3).reshape(-1, heads * depth))  # of [rows, n, heads, L, d]
    done.append(value.new_zeros(1, heads * depth))  # the place of padding
    return GatherBack.apply(torch.cat(done), layout["back"], layout["index"], layout["there"])


def _tables(group: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and lengths of a group's tables of questions."""
    return [(group["shared"][0] * number, each) for number, each in group["own"]]


def additive_masks(layout: dict[str, Any], dtype: torch.dtype) -> list[Masks]:
    """The tensors that are added to scores in each group.

    The padding of what is shared, `[R, 1, 1, P]` or None; then for what is shared and each table of questions what
    comes later, `[length, length]`, which hides padding, too.
    """
    least, device = torch.finfo(dtype).min, layout["back"].device
    masks: list[Masks] = []
    for group in layout["groups"]:
        length, lengths = group["shared"][1], group.get("lengths")
        hidden = None
        if lengths is not None:
            padding = torch.arange(length, device=device) >= lengths[:, None]
            hidden = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill(padding, least)[:, None, None]
        edges = [length, *(each for _, each in group["own"])]
        masks.append((hidden, *(torch.full((e, e), least, dtype=dtype, device=device).triu(1) for e in edges)))
    return masks


def rotated(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys `[N, heads, d]` turned by their rotary positions; `cos` and `sin`: float32 `[N, 1, d]`."""
    first, second = values.chunk(2, dim=2)
    return (values * cos + torch.cat([-second, first], dim=2) * sin).to(values.dtype)


def compute_type(hidden: torch.Tensor) -> torch.dtype:
    """The type of matrix products with `hidden`: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
