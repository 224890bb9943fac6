"""The format that a model's weights are loaded in: the one that was asked for, or with `auto` the quickest that fits.

Decided before a byte of them is read. Where none fits, one line says what is needed, what there is and what would fit.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch

from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, StoredTensor, fits, flag_of, gib, least_need, needs, refusal
from llava_mini_cli.engine.int8_kernels import int8_available
from llava_mini_cli.engine.packed_linear import int4_available
from llava_mini_cli.engine.products import measured_rates
from llava_mini_cli.errors import UsageError
from llava_mini_cli.memory_there import MemoryThere, memory_there
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.pretrained import pick_dtype

Stored = Mapping[str, StoredTensor]


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
    there, fields, asked = memory_of(device), config.to_dict(), options.batch_size or 1

    def need(kind: WeightFormat, number: WeightFormat) -> Need:
        return needs(fields, stored, [kind], number, frames=asked, is_mapped=device.type == "cpu")[kind]

    counted: list[Need] = []
    for kind in _kinds(options, device):
        found: dict[WeightFormat, Need] = {
            number: need(kind or number, number) for number in number_formats(options, device)
        }
        counted += found.values()
        fitting: list[WeightFormat] = [number for number, need in found.items() if there is None or fits(need, there)]
        if fitting:
            number = _quickest(fitting, config, device)
            return Choice(found[number].kind, number, found[number], there and _note(options, kind, counted, there))
    assert there is not None
    least = min(counted, key=lambda need: need.bytes)
    least_of = partial(least_need, fields, stored, is_mapped=device.type == "cpu")
    others: dict[WeightFormat, Need] = {kind: least_of(kind, frames=asked) for kind in formats_to_be_had(device)}
    fewer = bisect_right(range(1, asked), there.bytes, key=lambda frames: least_of(least.kind, frames=frames).bytes)
    raise UsageError(refusal(_asked(options, least.kind), least, there, others, fewer or None))


def _kinds(options: ModelOptions, device: torch.device) -> Iterator[WeightFormat | None]:
    """Formats that the options allow, the one to be preferred first; None: the number format of the computation."""
    yield options.quantize
    if (options.quantize, options.dtype, device.type) == (None, "auto", "cpu") and int8_available() is None:
        yield "int8"


def number_formats(options: ModelOptions, device: torch.device) -> Sequence[WeightFormat]:
    """The number formats that the computation may be in."""
    if options.dtype != "auto":
        return (options.dtype,)
    if device.type == "cpu":
        return ("float32", "bfloat16")
    name = str(pick_dtype("auto", device)).removeprefix("torch.")
    return [kind for kind in get_args(WeightFormat) if kind == name]


def _quickest(fitting: Sequence[WeightFormat], config: LlavaMiniConfig, device: torch.device) -> WeightFormat:
    """Of number formats that fit the one that was measured to be quickest; the first of a model too small for that."""
    rates = measured_rates(config, device) if len(fitting) > 1 else None
    return fitting[0] if rates is None else rates.quickest(fitting)


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


def _note(options: ModelOptions, kind: WeightFormat | None, counted: Sequence[Need], there: MemoryThere) -> str | None:
    if kind is None or options.quantize is not None:
        return None
    least = min((need for need in counted if need.kind in NUMBER_BYTES), key=lambda need: need.bytes)
    return (
        f"the model is held in {kind}, which costs a little accuracy: {least.kind} needs {gib(least.bytes)}, and "
        f"{there.source} leaves {gib(there.bytes)}"
    )
