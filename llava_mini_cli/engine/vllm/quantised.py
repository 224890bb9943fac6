"""Quantised weights of a language model on vLLM: those of a checkpoint, and those that vLLM makes while it loads."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import torch

from llava_mini_cli.config import ModelOptions, Quantization
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.checkpoint import LANGUAGE_MODEL
from llava_mini_cli.model.compressed import quantization_of
from llava_mini_cli.model.weight_headers import HELD, Stored

# What vLLM calls it to quantise plain weights while it loads them: a scale for each output channel, and activations
# quantised as they come, with a scale for each token.
ONLINE: Mapping[Quantization, str] = {"fp8": "fp8_per_channel"}


def as_on_vllm(
    options: ModelOptions, stored: Mapping[str, Stored], device: torch.device, checkpoint: Path
) -> tuple[ModelOptions, Mapping[str, Stored]]:
    """What the number format is chosen from where vLLM has the language model: options, and weights as they are held.

    Of layers that several cards share, that is the part of the first card, which has the rest of the model, too. vLLM
    computes with quantised weights in bfloat16 and float16.

    Raises:
        UsageError: the options do not go together with a checkpoint's quantised weights.
    """
    is_quantised = quantization_of(checkpoint) is not None
    if is_quantised and options.quantize is not None:
        raise UsageError(f"--quantize {options.quantize}: the weights of {options.model} are quantised already")
    if is_quantised and options.dtype == "float32":
        raise UsageError(
            f"--dtype float32: the weights of {options.model} are quantised, with which vLLM computes in bfloat16 or "
            "float16"
        )
    if options.quantize is not None:
        stored = {name: _reduced(one) if _is_reduced(name, one) else one for name, one in stored.items()}
    if (is_quantised or options.quantize is not None) and (options.dtype, device.type) == ("auto", "cpu"):
        options = replace(options, dtype="bfloat16")
    if device.type == "cuda" and options.tensor_parallel > 1:
        stored = {
            name: _part(one, options.tensor_parallel) if name.startswith(LANGUAGE_MODEL) else one
            for name, one in stored.items()
        }
    return replace(options, quantize=None), stored


def _part(one: Stored, cards: int) -> Stored:
    """A card's part of a tensor; where nothing is to be shared, the tensor is small."""
    return one._replace(shape=(ceil(one.shape[0] / cards), *one.shape[1:]), nbytes=ceil(one.nbytes / cards))


def _is_reduced(name: str, one: Stored) -> bool:
    """True of the weights that vLLM quantises."""
    return name.startswith("model.layers.") and len(one.shape) == 2


def _reduced(one: Stored) -> Stored:
    """A weight with one byte a number."""
    size = prod(one.shape)
    return Stored((size,), HELD, one.file, size)
