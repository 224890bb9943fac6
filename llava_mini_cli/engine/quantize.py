"""Weights of the language model's and pre-fusion's linear layers in fewer bits, through torchao.

The vision tower, compressor, projector, embeddings and the head keep their dtype.
"""

from typing import Any

from torch import nn

from llava_mini_cli.config import Quantization
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.needs import QUANTIZE

CONFIGURATIONS: dict[Quantization, str] = {
    "int8": "Int8WeightOnlyConfig",
    "int4": "Int4WeightOnlyConfig",
    "fp8": "Float8WeightOnlyConfig",
}


def quantize(model: LlavaMiniForConditionalGeneration, kind: Quantization) -> None:
    """Quantises a loaded model in place, weights only.

    Raises:
        UsageError: torchao is not installed, or has no such kernel for this device or dtype.
    """
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
