"""Matrix products of a loaded model through whichever of torch's two libraries is quicker on this machine.

torch gives float32 products on a CPU to MKL; oneDNN comes with torch too, and torch.compile uses it. On some processors
the one is a fifth quicker, on others the other, so that they are measured when a model is loaded.
"""

import time
from collections import Counter
from typing import Any

import torch
from torch import nn

MEASURED = 1 << 33  # floating-point operations of a measured product, or as near as its rows allow
ROWS = (16, 4096)  # fewest and most rows of a measured product
ROUNDS = 3
WORTH = 0.95  # of the time that the usual product takes: less of a gain may be chance


class OneDnnLinear(nn.Linear):
    """A linear layer through oneDNN, for inference."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]`."""
        if torch.is_grad_enabled():
            return nn.Linear.forward(self, input)
        operator: Any = torch.ops.mkldnn._linear_pointwise  # pyright: ignore[reportPrivateUsage]
        return operator(input, self.weight, self.bias, "none", [], "")


@torch.inference_mode()
def choose_products(model: nn.Module) -> bool:
    """Has a model's float32 linear layers on the CPU use oneDNN where that is quicker for their commonest shape.

    Returns:
        True where they do now.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _suits(layer)]
    if not (layers and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    weights = Counter[torch.Size]()
    for layer in layers:
        weights[layer.weight.shape] += layer.weight.numel()
    shape = weights.most_common(1)[0][0]
    usual, one_dnn = _seconds(next(layer for layer in layers if layer.weight.shape == shape))
    if one_dnn > WORTH * usual:
        return False
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return True


def _suits(layer: nn.Linear) -> bool:
    """True of weights as they are; quantised ones have products of their own."""
    weight = layer.weight
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _seconds(layer: nn.Linear) -> tuple[float, float]:
    """The least time of a product of the layer's shape, the usual way and through oneDNN, measured in turn."""
    fewest, most = ROWS
    inputs = torch.ones(min(most, max(fewest, MEASURED // (2 * layer.weight.numel()))), layer.in_features)
    least = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for number, forward in enumerate((nn.Linear.forward, OneDnnLinear.forward)):
            began = time.perf_counter()
            forward(layer, inputs)  # pyright: ignore[reportArgumentType] - a linear layer is all that it needs
            least[number] = min(least[number], time.perf_counter() - began)
    return least[0], least[1]
