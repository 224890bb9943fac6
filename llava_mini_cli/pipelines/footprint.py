"""How much memory a model needs, from its configuration and the headers of its files. Loads neither tensors nor torch.

Counted as the engine counts (`engine/fit.py`).
"""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, fits, least_need, needs, refusal
from llava_mini_cli.engine.work_bytes import Sizes, Work
from llava_mini_cli.errors import ModelNotFound, UsageError
from llava_mini_cli.hub import find_model, find_tower, weight_source
from llava_mini_cli.memory_there import memory_there
from llava_mini_cli.plain_files import read_object

_UNREADABLE = (ModelNotFound, OSError, ValueError, LookupError, TypeError, ArithmeticError)
_NUMBERS: tuple[WeightFormat, ...] = ("float32", "bfloat16")  # that a run on a CPU may compute in, by preference
_PACKING = ("x86_64", "AMD64")  # machines for which torch has products of packed weights
_CUDA_DEVICE = Path("/dev/nvidiactl")  # there when the driver is
_TOWER = "model.vision_tower."
_NOT_LOADED = ("text_model.", "text_projection", "visual_projection", "logit_scale")  # of a whole CLIP
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Header(NamedTuple):
    """One tensor of a weight file, or what is known of many."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model in the format that a run would hold it in."""

    tokens_per_frame: int
    context: int  # positions that the model has
    position_bytes: int  # of the keys and values of one position
    token_bytes: int  # of a vision token as the language model reads it
    weights_bytes: int
    weight_format: WeightFormat = "float32"

    def memory_bytes(self, frames: int, questions: int, new_tokens: int) -> int:
        """Bytes that a medium holds while its questions are answered together, next to the weights."""
        vision = frames * self.tokens_per_frame
        return vision * (self.position_bytes + self.token_bytes) + questions * new_tokens * self.position_bytes


def footprint_of(options: ModelOptions) -> Footprint | None:
    """The sizes of a model that is on this disk, or None."""
    try:
        return _footprint(options, *_facts(options))
    except _UNREADABLE:
        return None  # a run says what is wrong with it; an estimate does without


def refuse_early(options: ModelOptions) -> None:
    """Refuses float32 where a model does not fit the memory in it, before anything heavy is imported.

    Only where the options ask for nothing else of this machine, so that nothing else can be missing. What this leaves
    open, loading the model tells.

    Raises:
        UsageError: one line says what is needed, what there is and what would fit.
    """
    there = memory_there()
    plain = (options.quantize, options.compile, options.batch_size) == (None, False, None)
    if (
        there is None
        or not plain
        or options.dtype != "float32"
        or options.device not in ("auto", "cpu")
        or on_cuda(options)
    ):
        return
    try:
        fields, stored = _facts(options)
        counted = least_need(fields, stored, options.dtype)
        packed: list[WeightFormat] = ["int8", "int4"] if platform.machine() in _PACKING else []
        others: dict[WeightFormat, Need] = {kind: least_need(fields, stored, kind) for kind in (*_NUMBERS, *packed)}
    except _UNREADABLE:
        return
    if not fits(counted, there):
        raise UsageError(refusal(f"--dtype {options.dtype}", counted, there, others))


def _facts(options: ModelOptions) -> tuple[dict[str, Any], dict[str, Header]]:
    """A model's configuration, and the tensors that a run loads. Raises one of `_UNREADABLE`."""
    model = find_model(options.model, options.revision, local_files_only=True)
    fields = read_object(model / "config.json")
    tower = _tower(model, fields)
    if fields.get("vision_config") is None and tower is not None:
        of_tower = read_object(tower / "config.json")
        fields["vision_config"] = of_tower.get("vision_config", of_tower)
    return fields, dict(_headers(model, tower, fields))


def _footprint(options: ModelOptions, fields: Mapping[str, Any], stored: Mapping[str, Header]) -> Footprint:
    is_mapped, there = not on_cuda(options), memory_there()
    numbers: tuple[WeightFormat, ...] = number_formats(options)
    kinds: list[WeightFormat] = [options.quantize] if options.quantize else list(numbers)
    if is_mapped and (options.quantize, options.dtype) == (None, "auto"):
        kinds.append("int8")
    counted = needs(fields, stored, kinds, numbers[-1], frames=options.batch_size or 1, is_mapped=is_mapped)
    fitting: list[WeightFormat] = [
        kind for kind in kinds if not is_mapped or there is None or fits(counted[kind], there)
    ]
    kind: WeightFormat = (fitting or kinds[-1:])[0]
    number: WeightFormat = kind if kind in NUMBER_BYTES else numbers[-1]
    sizes = Sizes.of(fields)
    return Footprint(
        tokens_per_frame=fields.get("compressor_size", 1) ** 2,
        context=fields["max_position_embeddings"],
        position_bytes=Work.of(sizes, NUMBER_BYTES[number], is_packed=False).cached,
        token_bytes=sizes.width * NUMBER_BYTES[number],
        weights_bytes=counted[kind].own + counted[kind].mapped,
        weight_format=kind,
    )


def number_formats(options: ModelOptions) -> tuple[WeightFormat, ...]:
    """Those that a run may compute in, the first that fits: as asked for, or what `auto` takes on this machine."""
    if options.dtype != "auto":
        return (options.dtype,)
    return ("bfloat16",) if on_cuda(options) else _NUMBERS


def on_cuda(options: ModelOptions) -> bool:
    """True if a run would compute on a card."""
    return options.device.startswith("cuda") or (options.device == "auto" and _CUDA_DEVICE.exists())


def _tower(model: Path, fields: Mapping[str, Any]) -> Path | None:
    try:
        return find_tower(fields.get("mm_vision_tower"), model, local_files_only=True)
    except ModelNotFound:
        return None  # the checkpoint holds it itself


def _headers(model: Path, tower: Path | None, fields: Mapping[str, Any]) -> Iterator[tuple[str, Header]]:
    """Every tensor that a run loads."""
    own = dict(_stored(model, fields))
    keeps_tower = bool(fields.get("unfreeze_mm_vision_tower")) and any(name.startswith(_TOWER) for name in own)
    yield from ((name, header) for name, header in own.items() if keeps_tower or not name.startswith(_TOWER))
    if tower is not None and not keeps_tower:
        yield from ((_TOWER + name, header) for name, header in _stored(tower, {}))


def _stored(folder: Path, fields: Mapping[str, Any]) -> Iterator[tuple[str, Header]]:
    source = weight_source(folder)
    if source is None:
        return
    files = [source]
    if source.suffix == ".json":
        files = [folder / str(name) for name in sorted(set(read_object(source)["weight_map"].values()))]
    if files[0].suffix == ".bin":
        yield from _guessed(sum(file.stat().st_size for file in files), fields)
        return
    import safetensors

    open_file: Any = safetensors.safe_open
    for file in files:
        try:
            with open_file(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118  a safe_open handle is no mapping
                    if not name.startswith(_NOT_LOADED) and not name.endswith(_BUFFERS):
                        part = tensors.get_slice(name)
                        yield name, Header(tuple(part.get_shape()), _NAMES.get(str(part.get_dtype()), "unknown"))
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error


def _guessed(size: int, fields: Mapping[str, Any]) -> Iterator[tuple[str, Header]]:
    """The tensors of torch's pickles, which torch alone reads: the Llama layers' as one, and all others as one."""
    dtype = str(fields.get("dtype") or fields.get("torch_dtype") or ("float16" if fields else "float32"))
    count = size // NUMBER_BYTES[dtype]
    if fields:
        sizes = Sizes.of(fields)
        queries = fields["num_attention_heads"] * (
            fields.get("head_dim") or sizes.width // fields["num_attention_heads"]
        )
        layers = sizes.layers + fields.get("prefusion_layer_num", 4)
        rows = min(count // sizes.width, layers * (2 * queries + 2 * sizes.keys + 3 * sizes.inner))
        yield "model.layers.0.mlp.all.weight", Header((rows, sizes.width), dtype)
        count -= rows * sizes.width
    yield "others", Header((count,), dtype)
