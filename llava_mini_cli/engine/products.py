"""Matrix products of a model's shape on the CPU, through whichever of torch's ways is quickest on this machine.

torch gives float32 products to MKL and bfloat16 ones to oneDNN. oneDNN computes float32, too, on some processors a
third quicker; and for one row in bfloat16, as in a decoding step, torch has a product of its own that reads weights
up to three times as quickly. The way that is taken is measured (`rates.py`).
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

from llava_mini_cli.engine.rates import GEMV, ROWS, Rates, Seconds, Shape, common_shape, kept_rates
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.tensor_shapes import model_shapes

MOST_ELEMENTS = 1 << 24  # of a measured weight; a larger one is cut, and the time is in proportion
ROUNDS = (5, 3, 2)  # for each of ROWS
USUAL_CACHE = 64 << 20  # bytes of a processor's last cache, where the system does not say
_ONE_DNN_SWITCH = Lock()

Product = Callable[[torch.Tensor], torch.Tensor]


class OneDnnLinear(nn.Linear):
    """A linear layer through oneDNN, for inference."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]`."""
        if torch.is_grad_enabled():
            return nn.Linear.forward(self, input)
        operator: Any = torch.ops.mkldnn._linear_pointwise  # pyright: ignore[reportPrivateUsage]
        return operator(input, self.weight, self.bias, "none", [], "")


class GemvLinear(nn.Linear):
    """A linear layer in bfloat16 that gives a single row to torch's own product, for inference.

    torch has no other name for it than a product while oneDNN is switched off. That switch is the process's: it is
    turned under a lock, and what another thread computes meanwhile is right, if slower.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]`."""
        if input.numel() != self.in_features or torch.is_grad_enabled():
            return nn.Linear.forward(self, input)
        with _ONE_DNN_SWITCH:
            before = torch.backends.mkldnn.enabled
            torch._C._set_mkldnn_enabled(False)  # pyright: ignore[reportPrivateUsage]
            try:
                return nn.Linear.forward(self, input)
            finally:
                torch._C._set_mkldnn_enabled(before)  # pyright: ignore[reportPrivateUsage]


def measured_rates(config: LlavaMiniConfig, device: torch.device, *, anew: bool = False) -> Rates | None:
    """How long products of the language model's commonest shape take on this machine, by number format.

    Measured the first time, in well under a second, and kept in the cache directory.

    Args:
        anew: measured again; of old and new numbers the lesser ones count.

    Returns:
        None where no choice hangs on it: on CUDA, for a small model, and for a torch without oneDNN.
    """
    if device.type != "cpu" or not _has_one_dnn():
        return None
    llama = ("model.layers.", "model.prefusion_layers.")
    shapes = (shape for name, shape in model_shapes(config).items() if name.startswith(llama) and len(shape) == 2)
    shape = common_shape([(out, into) for out, into in shapes])
    return shape and kept_rates(shape, torch.get_num_threads(), measure, anew=anew)


def choose_products(model: nn.Module, rates: Rates | None) -> None:
    """Has a model's linear layers on the CPU compute in the way that is quicker by `rates`; None leaves torch's own."""
    if rates is None:
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.device.type == "cpu":
            if layer.weight.dtype == torch.float32 and rates.float32_one_dnn:
                layer.__class__ = OneDnnLinear
            elif layer.weight.dtype == torch.bfloat16 and rates.bfloat16_gemv:
                layer.__class__ = GemvLinear


def _has_one_dnn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.inference_mode()
def measure(shape: Shape) -> Seconds:
    """Seconds of one product with a weight of a shape for each of ROWS, by way of computing it.

    Each is the least of a few rounds. Before each product everything else is read once, so that the weight comes from
    memory, as in a model that is larger than the processor's cache.
    """
    out, into = shape
    cut = max(1, min(out, MOST_ELEMENTS // into))
    ways = _ways(torch.full((cut, into), 0.01))
    other = torch.ones(_cache_bytes() // 4)
    least: dict[str, list[float]] = {way: [] for way in ways}
    for rows, rounds in zip(ROWS, ROUNDS, strict=True):
        inputs = {kind: torch.full((rows, into), 0.01, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
        wanted = {way: made for way, made in ways.items() if rows == 1 or way != GEMV}
        for way in wanted:
            least[way].append(float("inf"))
        for _ in range(rounds):
            for way, product in wanted.items():
                given = inputs[torch.float32 if way.startswith("float32") else torch.bfloat16]
                other.sum()
                began = time.perf_counter()
                product(given)
                least[way][-1] = min(least[way][-1], time.perf_counter() - began)
    return {way: tuple(out / cut * seconds for seconds in times) for way, times in least.items()}


def _ways(weight: torch.Tensor) -> dict[str, Product]:
    """The layers of a float32 weight in each way that this machine has."""
    half = weight.bfloat16()
    return {
        "float32 mkl": _layer(nn.Linear, weight),
        "float32 onednn": _layer(OneDnnLinear, weight),
        "bfloat16 onednn": _layer(nn.Linear, half),
        GEMV: _layer(GemvLinear, half),
    }


def _layer(kind: type[nn.Linear], weight: torch.Tensor) -> nn.Linear:
    layer = kind(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _cache_bytes() -> int:
    """Twice the bytes of the processor's largest cache."""
    sizes: list[int] = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError):
            found = re.fullmatch(r"(\d+)K", file.read_text(encoding="ascii").strip())
            sizes.append(int(found[1]) << 10 if found else 0)
    return 2 * max(sizes, default=USUAL_CACHE)
