"""Matrix products of a model's shape on the CPU, through whichever of torch's ways is quickest on this machine.

torch gives float32 products to MKL and bfloat16 ones to oneDNN. oneDNN computes float32, too, on some processors a
third quicker; and for one row in bfloat16, as in a decoding step, torch has a product of its own that reads weights
up to three times as quickly. The way that is taken is measured (`rates.py`). In bfloat16 a bias is added by oneDNN
while it makes the product; torch writes it into the result first, and has oneDNN read it there.
"""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

from llava_mini_cli.engine.int8_kernels import (
    FILLED_ROWS,
    Int8Kernel,
    default_kernel,
    int8_kernels,
    pack,
    rounded_weight,
)
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear, int4_available
from llava_mini_cli.engine.rates import GEMV, ROWS, Rates, Seconds, Shape, common_shape, kept_rates
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.tensor_shapes import model_shapes

FEW_OUTPUTS = 64  # of a weight with which a product takes little more than what its inputs take
MOST_ELEMENTS = 1 << 23  # of a measured weight; a larger one is cut, and what grows with it is in proportion
AGREEING, SETTLED = 3, 1.15  # times of a way that have to be there, and how far apart the least of them may lie
BUDGET = 0.5  # seconds for each of ROWS, after which a way is left unsettled
USUAL_CACHE = 64 << 20  # bytes of a processor's last cache, where the system does not say
ONE_DNN_INT8, BY_4 = "int8 onednn", "int8 onednn_by_4"  # the same but for few rows
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
            before = torch._C._get_mkldnn_enabled()  # pyright: ignore[reportPrivateUsage]
            torch._C._set_mkldnn_enabled(False)  # pyright: ignore[reportPrivateUsage]
            try:
                return nn.Linear.forward(self, input)
            finally:
                torch._C._set_mkldnn_enabled(before)  # pyright: ignore[reportPrivateUsage]


def measured_rates(config: LlavaMiniConfig, device: torch.device, *, anew: bool = False) -> Rates | None:
    """How long products of the language model's commonest shape take on this machine, by number format.

    Measured the first time, in about a second, and kept in the cache directory.

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
            layer.__class__ = _quicker_class(layer, rates)


def _quicker_class(layer: nn.Linear, rates: Rates) -> type[nn.Linear]:
    if layer.weight.dtype == torch.float32 and rates.float32_one_dnn:
        return OneDnnLinear
    if layer.weight.dtype == torch.bfloat16:
        if getattr(layer, "bias", None) is not None and _has_one_dnn_bfloat16():
            return OneDnnLinear
        if rates.bfloat16_gemv:
            return GemvLinear
    return nn.Linear


def int8_kernel(rates: Rates | None) -> Int8Kernel:
    """The kernel that was measured to be the quickest; where nothing was measured, one that is exact.

    Raises:
        ValueError: this machine has none.
    """
    return (rates and rates.int8_kernel) or default_kernel()


def _has_one_dnn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _has_one_dnn_bfloat16() -> bool:
    operators: Any = torch.ops.mkldnn
    return bool(operators._is_mkldnn_bf16_supported())


@torch.inference_mode()
def measure(shape: Shape) -> tuple[Seconds, bool]:
    """Seconds of one product with a weight of a shape for each of ROWS, by way of computing it.

    The ways are measured in turn, each until its least times agree, which takes longer beside other work. The part of a
    product's time that does not grow with its weight, such as rounding the inputs, is told by a weight of few outputs.
    The second result is false where some times did not come to agree.
    """
    out, into = shape
    cut = max(1, min(out, MOST_ELEMENTS // into))
    few = min(cut, FEW_OUTPUTS)
    large, settled = _measured(cut, into)
    small, agreed = _measured(few, into)
    share = (out - cut) / (cut - few) if cut > few else 0.0
    seconds = {
        way: tuple(time + max(0.0, time - less) * share for time, less in zip(times, small[way], strict=True))
        for way, times in large.items()
    }
    return seconds, settled and agreed


def _measured(out: int, into: int) -> tuple[dict[str, list[float]], bool]:
    """The least seconds of one product with a weight `[out, into]`, by way and number of rows; whether they agreed."""
    ways = _ways(torch.full((out, into), 0.01))
    other = torch.ones(_cache_bytes() // 4)
    least: dict[str, list[float]] = {way: [] for way in ways}
    settled = True
    for rows in ROWS:
        inputs = {kind: torch.full((rows, into), 0.01, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
        several = {BY_4: least[ONE_DNN_INT8]} if rows > FILLED_ROWS and BY_4 in ways else {}
        wanted = {way: made for way, made in ways.items() if way not in several and (rows == 1 or way != GEMV)}
        products = {way: partial(made, inputs[_takes(way)]) for way, made in wanted.items()}
        for way, times in _times(products, other).items():
            least[way].append(times[0])
            settled &= _settled(times)
        for way, same in several.items():
            least[way].append(same[-1])
    return least, settled


def _takes(way: str) -> torch.dtype:
    return torch.float32 if way.startswith("float32") else torch.bfloat16


def _times(products: Mapping[str, Callable[[], object]], other: torch.Tensor) -> dict[str, list[float]]:
    """The times of each product, least first. Before each, `other` is read, so that the weight comes from memory."""
    times: dict[str, list[float]] = {way: [] for way in products}
    began = time.perf_counter()
    while (wanted := [way for way, seen in times.items() if not _settled(seen)]) and (
        time.perf_counter() - began < BUDGET or not times[wanted[-1]]
    ):
        for way in wanted:
            other.sum()
            start = time.perf_counter()
            products[way]()
            times[way] = sorted([*times[way], time.perf_counter() - start])
    return times


def _settled(seen: list[float]) -> bool:
    return len(seen) >= AGREEING and seen[AGREEING - 1] <= SETTLED * seen[0]


def _ways(weight: torch.Tensor) -> dict[str, Product]:
    """The layers of a float32 weight in each way that this machine has."""
    half = weight.bfloat16()
    ways: dict[str, Product] = {
        "float32 mkl": _layer(nn.Linear, weight),
        "float32 onednn": _layer(OneDnnLinear, weight),
        "bfloat16 onednn": _layer(nn.Linear, half),
        GEMV: _layer(GemvLinear, half),
    }
    rounded, scales = rounded_weight(half)
    for kernel in int8_kernels():
        parts = {**pack(rounded, kernel), "scales": scales}
        ways[f"int8 {kernel}"] = Int8Linear(parts, weight.shape[1], kernel=kernel)
    if int4_available() is None:
        ways["int4"] = Int4Linear.from_weight(half, None)
    return ways


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
