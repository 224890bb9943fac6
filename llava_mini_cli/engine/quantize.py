"""Weights of linear layers in fewer bits: on a CPU while a model is read, on a GPU behind it, through torchao.

On a CPU every linear layer is packed (`packed_linear.py`) but those inside the compressor. Of 4 bits are the language
model's layers alone; the others, which see many rows at once, then have 8. The embeddings stay in the file as they are.
On a GPU the language model's and pre-fusion's layers are reduced, weights only; all others keep their dtype.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from llava_mini_cli.config import Quantization
from llava_mini_cli.engine.int8_kernels import Int8Kernel, default_kernel, int8_available
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear, int4_available
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.needs import QUANTIZE

CONFIGURATIONS: dict[Quantization, str] = {
    "int8": "Int8WeightOnlyConfig",
    "int4": "Int4WeightOnlyConfig",
    "fp8": "Float8WeightOnlyConfig",
}


class StoredEmbedding(nn.Module):
    """A table of embeddings in the number format of its file, which then need not be copied; rows in another one."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.dtype = dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows `[..., width]` for ids `[...]`."""
        return functional.embedding(input, self.weight).to(self.dtype)


def check_packing(kind: Quantization) -> None:
    """Makes sure that weights can be packed on a CPU, before a model is looked for.

    Raises:
        UsageError: there is no kernel for it; one line says why.
    """
    if kind == "fp8":
        raise UsageError("--quantize fp8: CPUs do not compute in it; int8 is the quick one there")
    missing = int8_available() or (int4_available() if kind == "int4" else None)
    if missing is not None:
        raise UsageError(f"--quantize {kind}: not to be had on this CPU ({missing})")


class Supply(Protocol):
    """Where layers that were packed before come from, and where those that were made go."""

    def take(self, name: str) -> nn.Module | None:
        """A layer that is there already; None: it has to be made, and `made` to be called."""
        ...

    def made(self, name: str, layer: Any) -> None:
        """Tells of a layer that was just made."""
        ...


class Packing:
    """Packs a model's linear layers while it is read on the CPU: a `LayerMaker`."""

    def __init__(
        self, kind: Quantization, dtype: torch.dtype, kernel: Int8Kernel | None = None, supply: Supply | None = None
    ) -> None:
        """Chooses how.

        Args:
            kind: int8 or int4, as `check_packing` found it.
            dtype: of what a model computes in beside its products.
            kernel: of 8 bits; None: the one that is exact with the most bits.
            supply: of layers that were packed before.
        """
        self._kind = kind
        self._dtype = dtype
        self._kernel: Int8Kernel = kernel or default_kernel()
        self._supply = supply

    def layer(self, name: str, empty: nn.Module, weight: torch.Tensor) -> nn.Module | Callable[[], nn.Module] | None:
        """Of a linear layer a packed one; of the language model's embeddings a table that stays as it is stored."""
        if name == "model.embed_tokens":
            return StoredEmbedding(weight, self._dtype)
        if not is_packable(empty):
            return None
        ready = None if self._supply is None else self._supply.take(name)
        if isinstance(ready, Int8Linear):
            ready.compute_with(self._kernel)  # as it was measured since
        return ready or partial(self._packed, name, weight)

    def made(self, name: str, layer: nn.Module) -> None:
        """Hands a packed layer on, to be kept."""
        if self._supply is not None:
            self._supply.made(name, layer)

    def _packed(self, name: str, weight: torch.Tensor) -> nn.Module:
        if self._kind == "int4" and name.startswith("model.layers."):
            return Int4Linear.from_weight(weight, None)
        return Int8Linear.from_weight(weight, None, self._kernel)


def is_packable(layer: nn.Module) -> bool:
    """True of plain linear layers; attention of torch's own reads the weights of its layers itself."""
    return type(layer) is nn.Linear


def restored(facts: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> Int8Linear | Int4Linear:
    """A packed layer of its facts and parts."""
    kinds: dict[str, type[Int8Linear | Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}
    return kinds[facts["kind"]].restored(facts, parts)


def quantize(model: LlavaMiniForConditionalGeneration, kind: Quantization) -> None:
    """Quantises a loaded model in place: on a CPU as `Packing` does, elsewhere weights only.

    Raises:
        UsageError: there is no such kernel for this device or dtype, or torchao is not installed, where it is needed.
    """
    if model.device.type == "cpu":
        _pack(model, kind)
    else:
        _reduce(model, kind)


def _pack(model: LlavaMiniForConditionalGeneration, kind: Quantization) -> None:
    check_packing(kind)
    packing = Packing(kind, model.dtype)
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        layer = None if weight is None else packing.layer(name, module, weight.detach())
        if layer is not None:
            made = layer if isinstance(layer, nn.Module) else layer()
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                made.bias = bias
            model.set_submodule(name, made)


def _reduce(model: LlavaMiniForConditionalGeneration, kind: Quantization) -> None:
    quantization = QUANTIZE.load("--quantize", "torchao.quantization")
    try:
        configuration: Any = getattr(quantization, CONFIGURATIONS[kind])()
        for layers in (model.model.layers, model.model.prefusion_layers):
            quantization.quantize_(layers, configuration, filter_fn=_is_linear)
    except (ImportError, RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"--quantize {kind}: not to be had for {model.dtype} on {model.device} ({line})") from error


def _is_linear(module: nn.Module, _: str) -> bool:
    return isinstance(module, nn.Linear)
