"""How much memory a model needs in each format of its weights, which format fits, and the words where none does.

Counted from the configuration and from what the headers of the weight files say; no tensor is read, and torch is not
imported. Weights that a file holds in the wanted format stay pages of that file on a CPU. They are the process's own
memory where they are converted or packed. Both have to fit: pages that do not are read from the disk at every step.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.engine.work_bytes import MEDIA_BYTES, TEXT, Sizes, Work
from llava_mini_cli.memory_there import MemoryThere

PROCESS_BYTES = 400 << 20  # of this process with torch and no model, and of the one that decodes pictures

NUMBER_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_BYTES = {**NUMBER_BYTES, "float64": 8}
_HELD = "uint8"  # the dtype of bytes that vLLM holds as they are stored
_GROUPS = 128, 64, 32  # inputs of a weight in 4 bits that share 4 bytes of scale: the first that divides them all
_CHANNEL_BYTES = 8  # of a scale, and of what products keep for each output channel
_PACKING_BYTES = 2  # beside each number of a weight that is packed on a CPU, whatever its bits
_SCRATCH_BYTES: dict[WeightFormat, int] = {"int8": 2, "fp8": 4, "int4": 5}  # of a weight that is reduced on a card
_LLAMA_LINEAR = re.compile(r"model\.(layers|prefusion_layers)\.\d+\.(self_attn|mlp)\.\w+\.weight")  # on a card
_FOUR_BITS = "model.layers."  # of the layers that `quantize.py` packs in 4 bits on a CPU
_NOT_LINEAR = ("embed_tokens.weight", "embedding.weight")
_TABLE = "model.embed_tokens.weight"  # stays as it is stored where layers are packed on a CPU
_AT_ONCE = 2  # weights that are packed at once


class StoredTensor(Protocol):
    """A tensor as the header of its file tells of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...  # torch's, or its name


@dataclass(frozen=True)
class Need:
    """The bytes that a model needs in one format; `bytes` is all of it."""

    kind: WeightFormat
    own: int  # weights in memory of the process
    mapped: int  # weights that stay in their files
    scratch: int  # of the largest tensor on its way into the format
    work: int  # of everything else, at the least bounds that a run can do with
    packed: int = 0  # of `own`, those that are packed when they are read

    @property
    def bytes(self) -> int:
        return self.own + self.mapped + max(self.scratch + PROCESS_BYTES, self.work)


def needs(
    fields: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    kinds: Collection[WeightFormat],
    rest: WeightFormat,
    *,
    frames: int = 1,
    is_mapped: bool = True,
    is_prepared: bool = False,
) -> dict[WeightFormat, Need]:
    """What a model needs in each of some formats.

    Args:
        fields: of its configuration, `vision_config` among them.
        stored: every tensor that is loaded, under our own names.
        rest: the format of everything but the Llama layers' weights, where these are held in fewer bits.
        frames: encoded at once.
        is_mapped: weights in the wanted format stay in their files, as on a CPU.
        is_prepared: the packed weights are in a file already.
    """
    sizes = Sizes.of(fields)
    found: dict[WeightFormat, Need] = {}
    for kind in kinds:
        number = kind if kind in NUMBER_BYTES else rest
        own, packed, mapped, scratch = _weights(stored, kind, number, is_mapped=is_mapped)
        if is_prepared:
            own, packed, mapped, scratch = own - packed, 0, mapped + packed, 0
        work = Work.of(sizes, NUMBER_BYTES[number], is_packed=kind not in NUMBER_BYTES)
        least = PROCESS_BYTES + MEDIA_BYTES[1] + work.encoding(frames, TEXT) + 2 * TEXT * work.cached
        found[kind] = Need(kind, own, mapped, scratch, least + 8 * sizes.vocabulary, packed)
    return found


def least_need(
    fields: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    kind: WeightFormat,
    *,
    frames: int = 1,
    is_mapped: bool = True,
) -> Need:
    """The least that a model needs in a format, whatever the number format of the rest. Args: as for `needs`."""
    numbers: tuple[WeightFormat, ...] = (kind,) if kind in NUMBER_BYTES else ("float32", "bfloat16")
    found = (needs(fields, stored, [kind], one, frames=frames, is_mapped=is_mapped)[kind] for one in numbers)
    return min(found, key=lambda need: need.bytes)


def _weights(
    stored: Mapping[str, StoredTensor], kind: WeightFormat, number: WeightFormat, *, is_mapped: bool
) -> tuple[int, int, int, int]:
    """Bytes of the weights in own memory, of those that are packed there, in files, and of the largest on their way."""
    own = packed = mapped = 0
    scratch: list[int] = []
    for name, tensor in _with_head(stored, kind).items():
        elements = prod(tensor.shape)
        held = str(tensor.dtype).removeprefix("torch.")
        if held == _HELD:
            own += elements
            continue
        if kind not in NUMBER_BYTES and _is_packed(name, tensor, on_cpu=is_mapped):
            packed += _packed_bytes(tensor.shape, _packed_in(name, kind, on_cpu=is_mapped))
            scratch.append(elements * (_PACKING_BYTES if is_mapped else _SCRATCH_BYTES[kind]))
            continue
        wanted: str = "float32" if name.endswith(".pos_embed") else number
        if is_mapped and (held == wanted or (kind not in NUMBER_BYTES and name == _TABLE)):
            mapped += elements * _STORED_BYTES.get(held, 4)
        else:
            own += elements * _STORED_BYTES[wanted]
            # A weight that is decompressed has 4 bytes on its way.
            scratch += [] if is_mapped and held in _STORED_BYTES else [elements * _STORED_BYTES.get(held, 4)]
    return own + packed, packed, mapped, sum(sorted(scratch)[-(_AT_ONCE if is_mapped else 1) :])


def _with_head(stored: Mapping[str, StoredTensor], kind: WeightFormat) -> Mapping[str, StoredTensor]:
    """The tensors, with the head where it is the table of embeddings and is packed for itself."""
    if kind in NUMBER_BYTES or "lm_head.weight" in stored or _TABLE not in stored:
        return stored
    return {**stored, "lm_head.weight": stored[_TABLE]}


def _is_packed(name: str, tensor: StoredTensor, *, on_cpu: bool) -> bool:
    """True of the weights of the linear layers that are held in fewer bits (`quantize.py`)."""
    if not on_cpu:
        return _LLAMA_LINEAR.fullmatch(name) is not None
    is_linear = name.endswith(".weight") and len(tensor.shape) == 2 and not name.endswith(_NOT_LINEAR)
    return is_linear and ".compressor." not in name


def _packed_in(name: str, kind: WeightFormat, *, on_cpu: bool) -> WeightFormat:
    """The format of a layer's weight: on a CPU the language model's alone are in 4 bits, the others in 8."""
    return "int8" if on_cpu and kind == "int4" and not name.startswith(_FOUR_BITS) else kind


def _packed_bytes(shape: tuple[int, ...], kind: WeightFormat) -> int:
    channels, inputs = shape
    if kind != "int4":
        return channels * (inputs + _CHANNEL_BYTES)
    group = next((size for size in _GROUPS if inputs % size == 0), _GROUPS[-1])
    return channels * inputs // 2 + channels * (inputs // group + 1) * 4


def first_that_fits(
    found: Mapping[WeightFormat, Need], order: Sequence[WeightFormat], there: MemoryThere | None
) -> WeightFormat | None:
    """The first of some formats that fits; None where none does."""
    return next((kind for kind in order if fits(found[kind], there)), None)


def fits(need: Need, there: MemoryThere | None) -> bool:
    """True of what there is memory for, or where nobody knows how much there is."""
    return there is None or need.bytes <= there.bytes


def refusal(
    asked: str, need: Need, there: MemoryThere, others: Mapping[WeightFormat, Need], fewer_frames: int | None = None
) -> str:
    """One line: what is needed, what there is, and what would fit.

    Args:
        asked: the options that were given, such as `--dtype float32`.
        others: what the model needs in the formats that could be had here.
        fewer_frames: a `--batch-size` with which it would fit; None: there is none.
    """
    line = f"{asked}: the model needs {gib(need.bytes)} of memory, and {there.source} leaves {gib(there.bytes)}"
    fitting = [f"{flag_of(kind)} ({gib(other.bytes)})" for kind, other in others.items() if fits(other, there)]
    if fewer_frames is not None:
        fitting.insert(0, f"--batch-size {fewer_frames}")
    if fitting:
        return f"{line}; what would fit: {', '.join(fitting)}"
    least = min([need, *others.values()], key=lambda other: other.bytes)
    return f"{line}; no format fits, {least.kind} needs least with {gib(least.bytes)}"


def flag_of(kind: WeightFormat) -> str:
    """The option that asks for a format."""
    return f"--dtype {kind}" if kind in NUMBER_BYTES else f"--quantize {kind}"


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB"
