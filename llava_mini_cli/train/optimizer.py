"""Muon for matrices and AdamW for everything else, as one optimiser. The demo preset trains with it.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by five
Newton-Schulz steps. Matrices of one shape are handled as one batch, which is what makes it cheap here.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The (approximate) nearest orthogonal matrix of each of `[n, rows, columns]`, singular values near 1.

    In bfloat16, which the iteration bears well.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class MuonAdamW(Optimizer):
    """Groups with `muon=True` hold matrices only; the others get AdamW without weight decay."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(
            groups, {"lr": 1e-3, "muon": False, "momentum": 0.95, "decay": 0.0, "betas": (0.9, 0.98), "eps": 1e-8}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adam)(with_gradient, group)
        return loss

    def _muon(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        for parameter in parameters:
            shapes[tuple(parameter.shape)].append(parameter)
        for (rows, columns), alike in shapes.items():
            updates: list[torch.Tensor] = []
            for parameter in alike:
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                gradient = parameter.grad
                assert gradient is not None  # only such parameters are given
                buffer.lerp_(gradient, 1 - group["momentum"])
                updates.append(gradient.lerp(buffer, group["momentum"]))
            scale = max(1.0, rows / columns) ** 0.5 * group["lr"]
            for parameter, update in zip(alike, orthogonalised(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-scale)

    def _adam(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - first)
            state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            spread = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - first ** state["step"]))


def build_optimizer(module: nn.Module, muon_lr: float, adam_lr: float, decay: float = 0.0) -> MuonAdamW:
    """Muon for the trainable matrices inside layers, AdamW for embeddings, output heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and ("layers." in name or "mm_projector" in name or "attn" in name)
        (matrices if inner else others).append(parameter)
    return MuonAdamW(
        [
            {"params": matrices, "lr": muon_lr, "muon": True, "decay": decay},
            {"params": others, "lr": adam_lr, "muon": False},
        ]
    )
