"""Losses on answers: averaged over tokens, as LLaVA trains, or over answers. Knows nothing of models."""

import torch
from torch.nn import functional

from llava_mini_cli.train.train_options import Average

NO_TARGET = -100


def answer_numbers(targets: torch.Tensor) -> torch.Tensor:
    """The number of the answer that each target belongs to, over the whole batch: int64 like `targets`, -1 outside.

    Args:
        targets: int64 `[B, S]`, -100 where there is none; an answer is an unbroken run of targets.
    """
    inside = targets != NO_TARGET
    before = functional.pad(inside[:, :-1], (1, 0))
    starts = inside & ~before
    number = starts.flatten().cumsum(0).reshape(targets.shape) - 1
    return number.masked_fill(~inside, -1)


def answer_loss(logits: torch.Tensor, targets: torch.Tensor, average: Average) -> torch.Tensor:
    """Cross entropy of the next token at every target.

    Args:
        logits: `[B, S, vocab]`; targets: int64 `[B, S]`, not shifted.
        average: `token`: each target counts the same. `answer`: each answer counts the same.
    """
    number = answer_numbers(targets)[:, 1:]
    inside = number >= 0
    each = functional.cross_entropy(logits[:, :-1][inside].float(), targets[:, 1:][inside], reduction="none")
    if average == "token":
        return each.mean()
    answers = number[inside]
    count = torch.zeros(int(number.max()) + 1, device=each.device).index_add(0, answers, torch.ones_like(each))
    total = torch.zeros_like(count).index_add(0, answers, each)
    return (total[count > 0] / count[count > 0]).mean()
