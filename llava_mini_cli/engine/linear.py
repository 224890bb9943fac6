"""Linear layers for many positions at once, through the quickest library for where they run.

torch gives float32 products on a CPU to MKL, which on AMD processors reaches three quarters of what oneDNN does;
oneDNN comes with torch and also applies SiLU on the way. The operator is the one that torch.compile emits for CPUs.
Knows nothing of models.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def linear(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`layer(inputs)`."""
    return _one_dnn(layer.weight, layer.bias, inputs, "none") if _suits(layer, inputs) else layer(inputs)


def linear_silu(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`silu(layer(inputs))`."""
    if _suits(layer, inputs):
        return _one_dnn(layer.weight, layer.bias, inputs, "swish")
    return functional.silu(layer(inputs), inplace=True)


def linear_quick_gelu(layer: nn.Linear, inputs: torch.Tensor, slope: float) -> torch.Tensor:
    """`h * sigmoid(slope * h)` of h = `layer(inputs)`, times `slope`: the SiLU of slope * h."""
    assert layer.bias is not None
    scaled, bias = inputs * slope, layer.bias * slope
    if _suits(layer, inputs):
        return _one_dnn(layer.weight, bias, scaled, "swish")
    return functional.silu(functional.linear(scaled, layer.weight, bias), inplace=True)


def _suits(layer: nn.Linear, inputs: torch.Tensor) -> bool:
    """Float32 on a CPU with weights as they are; quantised ones have products of their own."""
    plain = type(layer.weight) is nn.Parameter
    return plain and inputs.device.type == "cpu" and inputs.dtype == torch.float32 and _AVAILABLE


def _one_dnn(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor, after: str) -> torch.Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise  # pyright: ignore[reportPrivateUsage]
    return operator(inputs, weight, bias, after, [], "")


_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
