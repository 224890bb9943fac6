"""Linear layers whose weights are held in 8 or 4 bits, through torch's own packed products on a CPU.

8 bits: weights have a scale for each output channel, and rows of the input, which are rounded to 8 bits when they come,
one each (`int8_kernels.py`). 4 bits: weights are rounded in groups along the input, each with a scale and a zero of its
own, and multiplied in bfloat16.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from llava_mini_cli.engine.int8_kernels import (
    PRODUCTS,
    WEIGHT_ROWS,
    Int8Kernel,
    Parts,
    default_kernel,
    input_bits,
    order_of,
    pack,
    rounded_weight,
)

# Rows of an input that are multiplied at once: what is made on the way, float32, stays small and mostly in caches.
MOST_ROWS, LEAST_ROWS = 512, 256
BLOCK = 1 << 22  # numbers of it, between the two
GROUPS = (128, 64, 32)  # inputs that share a scale in 4 bits: the first that divides them all
INT4_CHANNELS = 16  # torch packs 4-bit weights in blocks of so many output channels, of which WEIGHT_ROWS is a multiple

_TORCH: Any = torch  # for what it has without saying so


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits and inputs that are rounded to 8 bits row by row.

    A row that holds a NaN or an infinity gives NaN throughout.
    """

    bias: nn.Parameter | None

    def __init__(
        self, parts: Parts, in_features: int, bias: torch.Tensor | None = None, kernel: Int8Kernel | None = None
    ) -> None:
        """A layer from its parts.

        Args:
            parts: what `pack` made of the weights, and "scales", float32 `[out]`, the worth of a channel's step.
            bias: `[out]`.
            kernel: that of `parts`; None: `default_kernel()`.

        Raises:
            ValueError: a kernel that this machine does not have.
        """
        super().__init__()
        self.kernel: Int8Kernel = kernel or default_kernel()
        self.packed = dict(parts)  # no buffers: a model that is moved to another dtype leaves them as they are
        self.in_features = in_features
        self.out_features = len(parts["scales"])
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self._bits = input_bits(self.kernel)

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Int8Kernel | None = None) -> Self:
        """Rounds and packs the weight of a linear layer, `[out, in]` in any float dtype.

        Raises:
            ValueError: a kernel that this machine does not have.
        """
        kernel = kernel or default_kernel()
        input_bits(kernel)
        rounded, scales = rounded_weight(weight)
        return cls({**pack(rounded, kernel), "scales": scales}, weight.shape[1], bias, kernel)

    def parts(self) -> Parts:
        """Its tensors but the bias."""
        return self.packed

    def facts(self) -> dict[str, Any]:
        """Plain JSON that makes the layer again, together with its parts."""
        return {"kind": "int8", "in_features": self.in_features, "kernel": self.kernel}

    def use(self, parts: Parts) -> None:
        """Puts equal tensors in the place of its own."""
        self.packed = dict(parts)

    @classmethod
    def restored(cls, facts: Mapping[str, Any], parts: Parts) -> Self:
        """The layer that has these facts and parts."""
        return cls(parts, facts["in_features"], kernel=facts["kernel"])

    def compute_with(self, kernel: Int8Kernel) -> None:
        """Has products go through another kernel, if that reads weights in the order in which these are packed."""
        if order_of(kernel) == order_of(self.kernel):
            self._bits = input_bits(kernel)
            self.kernel = kernel

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]` in the input's dtype."""
        rows = input.reshape(-1, self.in_features)
        out = rows.new_empty(rows.shape[0], self.out_features)
        at_once = min(MOST_ROWS, max(LEAST_ROWS, BLOCK // max(self.in_features, self.out_features)))
        for start in range(0, rows.shape[0], at_once):
            self._multiply(rows[start : start + at_once], out[start : start + at_once])
        return out.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        exact = rows.float().contiguous()
        limit = (1 << self._bits - 1) - 1
        step = exact.abs().amax(dim=1, keepdim=True).div_(limit).clamp_(min=torch.finfo(torch.float32).tiny)
        step.addcmul_(step, step.new_zeros(()))  # an infinity becomes NaN, and so does all of its row
        product = PRODUCTS[self.kernel](torch.div(exact, step).round_(), limit + 1, self.packed)
        product.mul_(step)
        if self.bias is not None:
            product.add_(self.bias)
        out.copy_(product)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kernel={self.kernel}"


class Int4Linear(nn.Module):
    """A linear layer with weights in 4 bits, each group of inputs with a scale and a zero; multiplied in bfloat16."""

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,
        in_features: int,
        out_features: int,
        bias: torch.Tensor | None = None,
    ) -> None:
        """A layer from its parts.

        Args:
            packed: uint8 `[out', in' / 2]`, torch's order, both filled up to what it can pack.
            scales: bfloat16 `[in' / group, out', 2]`, the worth of one step and what the middle (8) stands for.
            bias: `[out]`.
        """
        super().__init__()
        self.packed = packed
        self.scales = scales
        self.in_features = in_features
        self.out_features = out_features
        self.group = packed.shape[1] * 2 // scales.shape[0]
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Self:
        """Rounds and packs the weight of a linear layer, `[out, in]` in any float dtype."""
        channels, inputs = weight.shape
        group = next((size for size in GROUPS if inputs % size == 0), GROUPS[-1])
        missing = -inputs % group, -channels % INT4_CHANNELS
        outputs, filled = channels + missing[1], inputs + missing[0]
        packed = torch.empty(outputs, filled // 2, dtype=torch.uint8)
        scales = torch.zeros(filled // group, outputs, 2, dtype=torch.bfloat16)
        for start in range(0, outputs, WEIGHT_ROWS):
            block = weight.detach()[start : start + WEIGHT_ROWS].float()
            numbers, worth = _rounded_groups(functional.pad(block, (0, missing[0])).unflatten(1, (-1, group)))
            stop = start + len(block)
            scales[:, start:stop] = worth.transpose(0, 1)
            missing_rows = min(WEIGHT_ROWS, outputs - start) - len(block)
            rows = functional.pad(numbers.flatten(1), (0, 0, 0, missing_rows), value=8)
            packed[start : start + WEIGHT_ROWS] = _TORCH._convert_weight_to_int4pack_for_cpu(rows, 1)
        return cls(packed, scales, inputs, channels, bias)

    def parts(self) -> Parts:
        """Its tensors but the bias."""
        return {"packed": self.packed, "scales": self.scales}

    def facts(self) -> dict[str, Any]:
        """Plain JSON that makes the layer again, together with its parts."""
        return {"kind": "int4", "in_features": self.in_features, "out_features": self.out_features}

    def use(self, parts: Parts) -> None:
        """Puts equal tensors in the place of its own."""
        self.packed, self.scales = parts["packed"], parts["scales"]

    @classmethod
    def restored(cls, facts: Mapping[str, Any], parts: Parts) -> Self:
        """The layer that has these facts and parts."""
        return cls(parts["packed"], parts["scales"], facts["in_features"], facts["out_features"])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]` in the input's dtype."""
        rows = input.reshape(-1, self.in_features).bfloat16()
        rows = functional.pad(rows, (0, self.packed.shape[1] * 2 - self.in_features)).contiguous()
        out = _TORCH._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales)[:, : self.out_features].to(
            input.dtype
        )
        if self.bias is not None:
            out = out + self.bias.to(input.dtype)
        return out.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"


def _rounded_groups(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups of weights, float32 `[out, groups, size]`, as whole numbers from 0 to 15 of that shape.

    The second result, bfloat16 `[out, groups, 2]`, has the worth of one step and what 8 stands for. A group that holds
    a NaN or an infinity stands for NaN throughout.
    """
    low, high = torch.aminmax(exact, dim=2, keepdim=True)
    step = ((high - low) / 15).clamp_(min=torch.finfo(torch.float32).tiny).bfloat16()
    middle = (low + 8 * step.float()).bfloat16()
    numbers = ((exact - middle.float()) / step.float()).nan_to_num_(0.0).round_().add_(8).clamp_(0, 15).int()
    return numbers, torch.cat([step, middle], dim=2)


@cache
def int4_available() -> str | None:
    """None where 4-bit layers can be had on the CPU, else why not, in one clause."""
    try:
        Int4Linear.from_weight(torch.ones(INT4_CHANNELS, GROUPS[-1]), None)(torch.ones(1, GROUPS[-1]))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None
