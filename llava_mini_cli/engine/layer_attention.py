"""Where a language model uses vision: attention by kind of token in each layer, and layers that do not see it.

For any stack of transformers' decoder layers whose attention hands out its weights (`eager`): LLaVA-Mini's language
model and those of transformers' own LLaVA models. One sequence at a time; of a layer's weights only sums stay.
"""

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

INSTRUCTION, VISION, RESPONSE = range(3)  # kinds of tokens
KINDS = ("instruction", "vision", "response")

Forward = Callable[[], torch.Tensor]  # a whole sequence through the model: its logits `[L, vocab]`


@dataclass(frozen=True)
class Spoken:
    """A prompt about a picture with the answer that was given, ready to be read by a model."""

    forward: Forward
    kinds: torch.Tensor  # int64 [L], the kind of each token
    answer: torch.Tensor  # int64 [A], the tokens of the answer, the last A of the sequence


@dataclass(frozen=True)
class LayerSums:
    """The attention of one layer, mean of the heads, then of all tokens of a kind that stand behind the vision tokens.

    NaN where there is no token of the kind.
    """

    weights: torch.Tensor  # float64 [3, 3], from a token of a kind to all tokens of a kind; each row adds up to 1
    entropy: torch.Tensor  # float64 [3], of all weights of a token of a kind, in nats
    within: torch.Tensor  # float64 [3, 3], of its weights on tokens of a kind, as shares of their sum, in nats


def entropies(weights: torch.Tensor) -> torch.Tensor:
    """The entropy of each row, in nats: `[..., n]` shares, which add up to 1, to `[...]`."""
    return torch.special.entr(weights).sum(-1)


def layer_sums(weights: torch.Tensor, kinds: torch.Tensor) -> LayerSums:
    """What is kept of one layer's attention.

    Args:
        weights: `[heads, L, L]`, from each token (rows) to each.
        kinds: int64 `[L]`.
    """
    mean = weights.mean(0, dtype=torch.float64).cpu()
    kinds = kinds.cpu()
    seen = (kinds == VISION).nonzero().flatten()
    behind = torch.arange(len(kinds)) > (int(seen[-1]) if len(seen) else -1)
    by_kind = torch.stack([mean[:, kinds == kind].sum(-1) for kind in range(3)], dim=-1)  # [L, 3]
    whole = entropies(mean)
    within = torch.stack([_entropy_within(mean[:, kinds == kind]) for kind in range(3)], dim=-1)
    rows = [(kinds == kind) & (behind | (kinds == VISION)) for kind in range(3)]
    return LayerSums(
        torch.stack([by_kind[row].mean(0) for row in rows]),
        torch.stack([whole[row].mean() for row in rows]),
        torch.stack([within[row].nanmean(0) for row in rows]),
    )


def _entropy_within(weights: torch.Tensor) -> torch.Tensor:
    """The entropy of each row's weights as shares of their sum: `[L, n]` to `[L]`; NaN where the sum is 0."""
    total = weights.sum(-1, keepdim=True)
    return entropies(weights / total)


@torch.inference_mode()
def attention_by_layer(layers: nn.ModuleList, spoken: Spoken, maps: bool = False) -> tuple[list[LayerSums], list[Any]]:
    """The attention of each layer over one sequence; with `maps` also the mean of its heads, `[L, L]` each."""
    sums: list[LayerSums] = []
    whole: list[torch.Tensor] = []

    def take(_: nn.Module, __: Any, made: tuple[torch.Tensor, torch.Tensor | None]) -> Any:
        if made[1] is None:
            raise RuntimeError("the layers' attention does not hand out its weights")
        weights = made[1][0].float()
        sums.append(layer_sums(weights, spoken.kinds))
        if maps:
            whole.append(weights.mean(0).cpu())
        return (made[0], None)  # so that no weights are kept

    hooks = [_attention_of(layer).register_forward_hook(take) for layer in layers]
    try:
        spoken.forward()
    finally:
        for hook in hooks:
            hook.remove()
    return sums, whole


@contextmanager
def vision_dropped(layers: nn.ModuleList, which: Collection[int], kinds: torch.Tensor) -> Generator[None]:
    """Within it, no other token sees a vision token in some layers, by their number from 0.

    The vision tokens themselves go on as usual, so that layers behind may see them again. Dropped in all layers, it is
    as if they were not in the prompt, and all others kept their positions.
    """
    is_vision = kinds == VISION
    hidden = (~is_vision)[:, None] & is_vision

    def hide(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = named.get("attention_mask")
        if mask is None or mask.dim() != 4:
            raise RuntimeError("the layers take no mask of their attention")
        least = torch.finfo(mask.dtype).min
        return given, {**named, "attention_mask": mask.masked_fill(hidden.to(mask.device), least)}

    hooks = [layers[number].register_forward_pre_hook(hide, with_kwargs=True) for number in which]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def answer_scores(spoken: Spoken) -> tuple[float, int]:
    """The log-likelihood of the answer's tokens, and how many of them are the likeliest where they stand."""
    logits = spoken.forward()
    count = len(spoken.answer)
    scores = logits[-count - 1 : -1].double().log_softmax(-1).cpu()
    answer = spoken.answer.cpu()
    said = scores[torch.arange(count), answer].sum()
    return float(said), int((scores.argmax(-1) == answer).sum())


def _attention_of(layer: nn.Module) -> nn.Module:
    attention = getattr(layer, "self_attn", None)
    if not isinstance(attention, nn.Module):
        raise RuntimeError("the layers have no attention that is known here")
    return attention
