"""How much memory a model needs in each format of its weights, which format fits, and the words where none does.

Counted from the configuration and from what the headers of the weight files say; no tensor is read, and torch is not
imported. Weights that a file holds in the wanted format stay pages of that file on a CPU. They are the process's own
memory where they are converted or packed. Both have to fit: pages that do not are read from the disk at every step.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.memory_there import MemoryThere

PROCESS_BYTES = 400 << 20  # of this process with torch and no model, and of the one that decodes pictures
TEXT = 128  # positions of prompts beside a frame, and of answers, that are counted before a question is known
MEDIA_BYTES = 512 << 20, 64 << 20  # most and least of decoded frames and their decoders at once
CACHE_BYTES = 4 << 30, 64 << 20  # most and least of keys and values at once, on a CPU
CHUNK_FRAMES = 8  # encoded at once on a CPU, where there is memory for it

NUMBER_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_BYTES = {**NUMBER_BYTES, "float64": 8}
_GROUPS = 128, 64, 32  # inputs of a weight in 4 bits that share 4 bytes of scale: the first that divides them all
_CHANNEL_BYTES = 8  # of a scale, and of what products keep for each output channel
_PACKING_BYTES = 2  # beside each number of a weight that is packed on a CPU, whatever its bits
_SCRATCH_BYTES: dict[WeightFormat, int] = {"int8": 2, "fp8": 4, "int4": 5}  # of a weight that is reduced on a card
_LLAMA_LINEAR = re.compile(r"model\.(layers|prefusion_layers)\.\d+\.(self_attn|mlp)\.\w+\.weight")  # on a card
_FOUR_BITS = "model.layers."  # of the layers that `quantize.py` packs in 4 bits on a CPU
_NOT_LINEAR = ("embed_tokens.weight", "embedding.weight")
_TABLE = "model.embed_tokens.weight"  # stays as it is stored where layers are packed on a CPU
_AT_ONCE = 2  # weights that are packed at once
_PACKED_ROWS_BYTES = 512 * 16  # beside each feature of a packed layer: rows that are rounded at once

# Of the numbers that a position takes on its way through a Llama layer, as measured (docs/engine.md): gate, up, and
# a copy of one in the order that a library of products likes; hidden states and what attention makes of them.
_MLP_WIDTHS, _HIDDEN_WIDTHS, _TOWER_WIDTHS = 3.0, 4.5, 12.5
_SHARE_USED = 0.9  # of what is left beside the weights: allocators keep some of what was freed
_SHARE_FOR_WORK = 0.5  # of it, for the usual piece of work
_SHARE_FOR_CACHE = 0.3
_SHARE_FOR_MEDIA = 0.1


class StoredTensor(Protocol):
    """A tensor as the header of its file tells of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...  # torch's, or its name


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, as far as memory depends on them."""

    width: int
    inner: int
    keys: int  # width of the keys of one position in one layer; values are as wide
    layers: int
    vocabulary: int
    positions: int  # of vision that a frame takes in pre-fusion
    tower_positions: int  # of all pictures that CLIP sees of a frame
    tower_width: int
    pixels: int  # of those pictures

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields of a configuration, `vision_config` among them.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError: it is none.
        """
        heads, vision = fields["num_attention_heads"], fields["vision_config"]
        head = fields.get("head_dim") or fields["hidden_size"] // heads
        pieces, patches = fields.get("resolution_ratio", 1) ** 2, (vision["image_size"] // vision["patch_size"]) ** 2
        pictures = pieces + 1 if pieces > 1 else 1
        return cls(
            width=fields["hidden_size"],
            inner=fields["intermediate_size"],
            keys=head * (fields.get("num_key_value_heads") or heads),
            layers=fields["num_hidden_layers"],
            vocabulary=fields["vocab_size"],
            positions=pictures * patches + fields.get("compressor_size", 1) ** 2,
            tower_positions=pictures * (patches + 1),
            tower_width=vision["hidden_size"],
            pixels=pictures * vision["image_size"] ** 2,
        )


@dataclass(frozen=True)
class Work:
    """The bytes that work takes beside the weights, in one number format."""

    position: int  # of a position on its way through a layer
    tower_frame: int  # of a frame on its way through the vision tower
    frame_positions: int
    cached: int  # of a position's keys and values in all layers
    packed_rows: int  # of rows on their way into products of packed weights

    @classmethod
    def of(cls, sizes: Sizes, number_bytes: int, *, is_packed: bool) -> Self:
        """Args: is_packed: the linear layers hold their weights in fewer bits."""
        return cls(
            position=int(number_bytes * (_MLP_WIDTHS * sizes.inner + _HIDDEN_WIDTHS * sizes.width)),
            tower_frame=int(number_bytes * (_TOWER_WIDTHS * sizes.tower_positions * sizes.tower_width))
            + 12 * sizes.pixels,
            frame_positions=sizes.positions,
            cached=2 * sizes.layers * sizes.keys * number_bytes,
            packed_rows=_PACKED_ROWS_BYTES * (sizes.inner + sizes.width) if is_packed else 0,
        )

    def encoding(self, frames: int, text: int) -> int:
        """Of so many frames at once, each with so many positions of text, whose mask is a number for each pair."""
        length = self.frame_positions + text
        return max(frames * self.tower_frame, frames * length * self.position + 5 * text * length) + self.packed_rows

    def prefilling(self, at_once: int, kept: int) -> int:
        """Of positions that go through the layers at once, and of the keys and values of all that are kept."""
        return at_once * self.position + kept * self.cached + self.packed_rows


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
        if kind not in NUMBER_BYTES and _is_packed(name, tensor, on_cpu=is_mapped):
            packed += _packed_bytes(tensor.shape, _packed_in(name, kind, on_cpu=is_mapped))
            scratch.append(elements * (_PACKING_BYTES if is_mapped else _SCRATCH_BYTES[kind]))
            continue
        wanted: str = "float32" if name.endswith(".pos_embed") else number
        if is_mapped and (held == wanted or (kind not in NUMBER_BYTES and name == _TABLE)):
            mapped += elements * _STORED_BYTES.get(held, 4)
        else:
            own += elements * _STORED_BYTES[wanted]
            scratch += [] if is_mapped else [elements * _STORED_BYTES.get(held, 4)]
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


@dataclass(frozen=True)
class Bounds:
    """The bounds of a run that follow from what is left beside the weights."""

    chunk_frames: int
    cache_bytes: int
    media_bytes: int
    work_bytes: int | None  # of keys and values and a piece of work; None: nobody knows how much there is


def bounds(left: int | None, work: Work, batch_size: int | None) -> Bounds:
    """Within the usual bounds, and never below what a single question about a picture needs.

    Args:
        left: bytes that this process may still have beside the weights; None: nobody knows.
        batch_size: frames that the user asked for.
    """
    if left is None:
        return Bounds(batch_size or CHUNK_FRAMES, CACHE_BYTES[0], MEDIA_BYTES[0], None)
    media_bytes = _within(int(left * _SHARE_FOR_MEDIA), MEDIA_BYTES)
    of_frame = work.encoding(1, TEXT)
    return Bounds(
        chunk_frames=batch_size or max(1, min(CHUNK_FRAMES, int(left * _SHARE_FOR_WORK) // of_frame)),
        cache_bytes=_within(int(left * _SHARE_FOR_CACHE), CACHE_BYTES),
        media_bytes=media_bytes,
        work_bytes=max(int(left * _SHARE_USED) - media_bytes, of_frame + 2 * TEXT * work.cached),
    )


def _within(size: int, most_and_least: tuple[int, int]) -> int:
    most, least = most_and_least
    return max(least, min(most, size))
