"""The format that a model's weights are loaded in: the one that was asked for, or with `auto` the quickest that fits.

Decided before a byte of them is read. Where none fits, one line says what is needed, what there is and what would fit.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, StoredTensor, fits, flag_of, gib, needs, refusal
from llava_mini_cli.engine.packed_linear import int4_available, int8_available
from llava_mini_cli.engine.products import measured_rates
from llava_mini_cli.errors import UsageError
from llava_mini_cli.memory_there import MemoryThere, memory_there
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.pretrained import pick_dtype

Stored = Mapping[str, StoredTensor]
Counted = Sequence[tuple[WeightFormat, Need]]  # the number format of the computation with each


@dataclass(frozen=True)
class Choice:
    """How a model's weights are going to be held."""

    kind: WeightFormat
    number: WeightFormat  # the number format of the computation, and of weights that are not held in fewer bits
    need: Need
    note: str | None = None  # why they are in fewer bits, where nobody asked for that

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.number)


def choose_format(options: ModelOptions, config: LlavaMiniConfig, stored: Stored, device: torch.device) -> Choice:
    """The format for some options, on a device and in the memory that there is.

    Raises:
        UsageError: nothing that the options allow fits.
    """
    there, fields, frames = memory_of(device), config.to_dict(), options.batch_size or 1
    numbers = number_formats(options, config, device)

    def need(kind: WeightFormat, number: WeightFormat, frames: int = frames) -> Need:
        return needs(fields, stored, [kind], number, frames=frames, is_mapped=device.type == "cpu")[kind]

    counted: list[tuple[WeightFormat, Need]] = []
    for kind, number in _candidates(options, numbers, device):
        counted.append((number, found := need(kind, number)))
        if there is None or fits(found, there):
            return Choice(kind, number, found, there and _note(options, found, counted, there))
    assert there is not None
    number, least = min(counted, key=lambda pair: pair[1].bytes)
    others = {
        kind: min((need(kind, number) for number in _numbers_beside(kind)), key=lambda other: other.bytes)
        for kind in formats_to_be_had(device)
    }
    fewer = bisect_right(range(1, frames), there.bytes, key=lambda some: need(least.kind, number, some).bytes)
    raise UsageError(refusal(_asked(options, least.kind), least, there, others, fewer or None))


def _candidates(
    options: ModelOptions, numbers: Sequence[WeightFormat], device: torch.device
) -> Iterator[tuple[WeightFormat, WeightFormat]]:
    """Formats that the options allow, the one to be preferred first; each with the computation's number format."""
    for number in numbers:
        yield options.quantize or number, number
    is_open = options.quantize is None and options.dtype == "auto" and device.type == "cpu"
    if is_open and int8_available() is None:
        yield from (("int8", number) for number in numbers)


def _numbers_beside(kind: WeightFormat) -> tuple[WeightFormat, ...]:
    """The number formats that are tried where the Llama layers' weights are in a format."""
    return (kind,) if kind in NUMBER_BYTES else ("float32", "bfloat16")


def number_formats(options: ModelOptions, config: LlavaMiniConfig, device: torch.device) -> Sequence[WeightFormat]:
    """The number formats that the computation may be in, the quickest first."""
    if options.dtype != "auto":
        return (options.dtype,)
    if device.type != "cpu":
        return [kind for kind in NUMBER_BYTES if pick_dtype("auto", device) == getattr(torch, kind)]
    rates = measured_rates(config, device)
    quickest = "float32" if rates is None else rates.quickest(("float32", "bfloat16"))
    return ("float32", "bfloat16") if quickest == "float32" else ("bfloat16", "float32")


def formats_to_be_had(device: torch.device) -> list[WeightFormat]:
    """The formats that a person could be advised to take on a device."""
    if device.type != "cpu":
        return ["bfloat16", "int8", "int4"]
    lacking = {"float16", "fp8"}  # for which processors have no products
    lacking |= {kind for kind, why in (("int8", int8_available()), ("int4", int4_available())) if why is not None}
    return [kind for kind in get_args(WeightFormat) if kind not in lacking]


def memory_of(device: torch.device) -> MemoryThere | None:
    """The memory that a model may take on a device; None where nobody tells."""
    if device.type != "cuda":
        return memory_there()
    return MemoryThere(torch.cuda.mem_get_info(device)[0], str(device))


def _asked(options: ModelOptions, kind: WeightFormat) -> str:
    asked = f"--dtype auto ({kind})" if (options.quantize, options.dtype) == (None, "auto") else flag_of(kind)
    return asked if options.batch_size is None else f"{asked} --batch-size {options.batch_size}"


def _note(options: ModelOptions, taken: Need, counted: Counted, there: MemoryThere) -> str | None:
    if taken.kind in NUMBER_BYTES or options.quantize is not None:
        return None
    least = min((need for _, need in counted if need.kind in NUMBER_BYTES), key=lambda need: need.bytes)
    return (
        f"the model is held in {taken.kind}, which costs a little accuracy: {least.kind} needs {gib(least.bytes)}, and "
        f"{there.source} leaves {gib(there.bytes)}"
    )
