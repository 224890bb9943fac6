"""Checkpoints with quantised layers: what their configuration says of them, and their weights as plain ones.

    config.json: quantization_config       which layers have how few bits, and how these are stored
    LAYER.weight or LAYER.weight_packed    the numbers in few bits
    LAYER.weight_scale, weight_zero_point  what they are multiplied by, once the other is subtracted
    LAYER.weight_shape                     rows and columns, where numbers are packed

Those of the method compressed-tensors, which llm-compressor writes, are decompressed by its library, one layer at a
time. Layers of the other methods can be read by vLLM alone.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_mini_cli.errors import CheckpointError, first_line
from llava_mini_cli.model.fields import OBJECT, shown
from llava_mini_cli.model.tensor_shapes import Shape
from llava_mini_cli.model.weight_headers import DECOMPRESSED, HELD, Stored, member, read_json, stored_tensors
from llava_mini_cli.needs import COMPRESSED

COMPRESSED_TENSORS = "compressed-tensors"
ELSEWHERE = ("awq", "gptq", "fp8")  # methods that vLLM reads, and nobody here
FIELD = "quantization_config"
PATTERN_SECONDS = 2.0  # for all patterns of a configuration and all names of layers

_INTEGERS = ("int-quantized", "float-quantized", "naive-quantized")  # formats that store each number by itself
_PACKED = "pack-quantized"  # the format that stores several numbers in 32 bits
_PLAIN = ("weight", "bias", "input_scale", "input_zero_point", "output_scale", "output_zero_point")  # beside plain ones
_CLASSES = tuple(one.__name__ for one in nn.Linear.__mro__ if issubclass(one, nn.Module))  # of linear layers
_SCALES = (torch.float32, torch.float16, torch.bfloat16)


def quantization_of(checkpoint: Path) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint; None where its weights are plain.

    Raises:
        CheckpointError: it is no object, or of a method that neither we nor vLLM read; the text names file and field.
    """
    file = member(checkpoint, "config.json")
    fields = read_json(file).get(FIELD)
    if fields is None:
        return None
    if not OBJECT.holds(fields):
        raise CheckpointError(f"{file}: {FIELD} {shown(fields)}: must be {OBJECT.words}")
    method = fields.get("quant_method")
    if method not in (COMPRESSED_TENSORS, *ELSEWHERE):
        words = ", ".join((COMPRESSED_TENSORS, *ELSEWHERE))
        raise CheckpointError(f"{file}: {FIELD}: quant_method {shown(method)}: must be one of {words}")
    return fields


@dataclass(frozen=True)
class _Layer:
    """A quantised layer that is decompressed when it is read."""

    shape: Shape  # of its weight
    scheme: Any  # compressed_tensors' own
    compressor: Any
    parts: dict[str, Stored]  # the tensors that it is stored in, by their names behind the layer's


class Compressed:
    """The quantised layers among the wanted weights of a checkpoint."""

    def __init__(self, checkpoint: Path, wanted: Mapping[str, Shape], elsewhere: tuple[str, ...] = ()) -> None:
        """Looks for them. The library is imported where there are some.

        Args:
            wanted: weights by the names that files have for them, plain ones among them.
            elsewhere: how the names of layers begin that are read by vLLM. They are compared with the configuration
                where that can be done here.

        Raises:
            CheckpointError: a layer is not stored as the configuration says, or cannot be read here; one line says why.
            UsageError: the library is not installed.
        """
        self._layers: dict[str, _Layer] = {}
        self._kept: dict[str, dict[str, Stored]] = {}  # parts of layers that are read elsewhere
        fields = quantization_of(checkpoint)
        parts = {} if fields is None else _parts(wanted, stored_tensors(checkpoint))
        if not parts or fields is None:
            return
        schemes = _Schemes(fields, f"{member(checkpoint, 'config.json')}: {FIELD}")
        for name, found in parts.items():
            is_kept = name.startswith(elsewhere)
            if not is_kept or schemes.can_read(name):
                self._layers[name] = schemes.layer(name, wanted[f"{name}.weight"], found)
            if is_kept:
                self._layers.pop(name, None)
                self._kept[name] = found

    def seen(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """What files hold, with each quantised layer's weight in place of what it is stored in."""
        layers = {name: layer.parts for name, layer in self._layers.items()} | self._kept

        def is_part(key: str) -> bool:
            name, _, part = key.rpartition(".")
            return part in layers.get(name, ())

        found = {name: one for name, one in stored.items() if not is_part(name)}
        for name, parts in layers.items():
            size, file = sum(part.nbytes for part in parts.values()), next(iter(parts.values())).file
            layer = self._layers.get(name)
            shape, dtype = ((size,), HELD) if layer is None else (layer.shape, DECOMPRESSED)
            found[f"{name}.weight"] = Stored(shape, dtype, file, size)
        return found

    @property
    def kept(self) -> Collection[str]:
        """The weights that are read elsewhere, of whose shapes nothing is known here."""
        return {f"{name}.weight" for name in self._kept}

    def read(self, tensors: Iterable[tuple[str, torch.Tensor, Path]]) -> Iterator[tuple[str, torch.Tensor, Path]]:
        """Tensors and their files, with the weight of a quantised layer in float32 once all of its parts have come.

        Raises:
            CheckpointError: a part holds no numbers of the kind that it should.
        """
        waiting: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor, path in tensors:
            name, _, part = key.rpartition(".")
            layer = self._layers.get(name)
            if layer is None or part not in layer.parts:
                yield key, tensor, path
                continue
            waiting[name][part] = tensor
            if len(waiting[name]) == len(layer.parts):
                yield f"{name}.weight", _decompressed(name, layer, waiting.pop(name)), path


def _parts(wanted: Mapping[str, Shape], stored: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """What wanted layers are stored in that are quantised, by the names of the layers."""
    found: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
    for key, tensor in stored.items():
        name, _, part = key.rpartition(".")
        if f"{name}.weight" in wanted and part != "bias":
            found[name][part] = tensor
    return {name: parts for name, parts in found.items() if _is_quantised(parts)}


def _is_quantised(parts: Mapping[str, Stored]) -> bool:
    weight = parts.get("weight")
    return (weight is not None and weight.dtype is None) or any(part not in _PLAIN for part in parts)


class _Schemes:
    """The schemes of a configuration, of which each quantised layer has one."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        """Raises `CheckpointError` and `UsageError`."""
        self._place = place
        self._method = fields["quant_method"]
        self._is_rotated = bool(fields.get("transform_config"))
        self._config: Any = None
        self._found: dict[str, Any] = {}  # by the names of layers
        self._seconds = PATTERN_SECONDS  # left
        if self._method != COMPRESSED_TENSORS:
            return
        with warnings.catch_warnings(action="ignore"):  # what it imports uses what torch has deprecated
            COMPRESSED.load(f"{place}: {COMPRESSED_TENSORS}", "compressed_tensors")
        from compressed_tensors.quantization import QuantizationConfig

        try:
            self._config = QuantizationConfig.model_validate(fields)
        except Exception as error:  # pydantic's own, and whatever its checks trip over
            raise CheckpointError(f"{place}: {_first_fault(error)}") from error

    def can_read(self, name: str) -> bool:
        """True of a layer that can be decompressed here."""
        return self._config is not None and not self._is_rotated and self._format(name) in (*_INTEGERS, _PACKED)

    def layer(self, name: str, shape: Shape, stored: Mapping[str, Stored]) -> _Layer:
        """A quantised layer, what it is stored in compared with its scheme. Raises `CheckpointError`."""
        if not self.can_read(name):
            field = f"quant_method {self._method}" if self._config is None else f"format {self._format(name)}"
            what = "transform_config" if self._is_rotated else field
            raise CheckpointError(
                f"{self._place}: {what}: {name} cannot be read; --llm vllm reads it in the language model's own layers"
            )
        from compressed_tensors.compressors import BaseCompressor

        scheme, form = self._scheme(name), self._format(name)
        compressor: Any = BaseCompressor.get_value_from_registry(form)
        file = next(iter(stored.values())).file
        fault = _fault(shape, scheme.weights, form)
        if fault is not None:
            raise CheckpointError(f"{self._place}: config_groups: {name}: {fault}")
        needed = compressor.compression_param_names(scheme)
        missing = [part for part in needed if part not in stored]
        if missing:
            raise CheckpointError(f"{file}: no {name}.{missing[0]}, which layers stored as {form} have")
        for part, wanted in _part_shapes(shape, scheme.weights, form).items():
            if part in needed and stored[part].shape != wanted:
                found = list(stored[part].shape)
                words = f"the scheme of {form} in config.json asks for {list(wanted)}"
                raise CheckpointError(f"{file}: {name}.{part} has shape {found}, {words}")
        return _Layer(shape, scheme, compressor, {part: stored[part] for part in needed})

    def _scheme(self, name: str) -> Any:
        """The scheme of a layer, looked for once. Raises `CheckpointError`."""
        if name not in self._found:
            self._found[name] = self._look_for(name)
        return self._found[name]

    def _look_for(self, name: str) -> Any:
        schemes = list(self._config.config_groups.values())
        found = schemes if len(schemes) == 1 else [one for one in schemes if self._is_meant(name, one.targets)]
        if not found or found[0].weights is None:
            raise CheckpointError(f"{self._place}: config_groups: no weights for {name}, which is stored quantised")
        bits = found[0].weights.num_bits
        if not 1 <= bits <= 8:
            raise CheckpointError(f"{self._place}: config_groups: num_bits {shown(bits)}: must be 1 to 8")
        return found[0]

    def _is_meant(self, name: str, targets: Iterable[str]) -> bool:
        """True of a layer that is among a scheme's targets: names, classes of modules, and patterns of names.

        The library would take as long for a pattern as a stranger wants.
        """
        import regex  # with a bound on time; transformers brings it along

        for target in targets:
            if target in (name, *_CLASSES):
                return True
            pattern = target.removeprefix("re:")
            if pattern == target:
                continue
            began = time.perf_counter()
            try:
                if regex.match(pattern, name, timeout=max(0.0, self._seconds)):
                    return True
            except (TimeoutError, regex.error) as error:
                raise CheckpointError(
                    f"{self._place}: config_groups: targets: {shown(target)}: {first_line(error)}"
                ) from error
            finally:
                self._seconds -= time.perf_counter() - began
        return False

    def _format(self, name: str) -> str:
        form = self._scheme(name).format or self._config.format
        return str(getattr(form, "value", form))


def _fault(shape: Shape, weights: Any, form: str) -> str | None:
    """Why the scheme of a weight cannot be one of this shape; the library would take other numbers, or trip."""
    if len(shape) != 2:
        return f"{list(shape)} is no matrix"
    if form in _INTEGERS and weights.type == "float" and weights.num_bits != 8:
        return f"num_bits {weights.num_bits} of type float: must be 8"
    sizes = weights.block_structure if weights.strategy == "block" else [1, weights.group_size or 1]
    if any(size < 1 or number % size for number, size in zip(shape, sizes, strict=True)):
        return f"blocks of {sizes[0]} x {sizes[1]} do not divide {list(shape)}"
    return None


def _part_shapes(shape: Shape, weights: Any, form: str) -> dict[str, Shape]:
    """The shapes of what a layer's weight is stored in."""
    rows, columns = shape
    scale = _scale_shape(rows, columns, weights)
    if form in _INTEGERS:
        return {"weight": shape, "weight_scale": scale, "weight_zero_point": scale, "weight_g_idx": (columns,)}
    packed = 32 // weights.num_bits  # numbers in each
    return {
        "weight_packed": (rows, ceil(columns / packed)),
        "weight_scale": scale,
        "weight_zero_point": (ceil(rows / packed), scale[1]) if len(scale) == 2 else scale,
        "weight_shape": (2,),
        "weight_g_idx": (columns,),
    }


def _scale_shape(rows: int, columns: int, weights: Any) -> Shape:
    """The shape of a weight's scales."""
    match weights.strategy:
        case "channel":
            return (rows, 1)
        case "group":
            return (rows, columns // weights.group_size)
        case "block":
            high, wide = weights.block_structure
            return (rows // high, columns // wide)
        case _:
            return (1,)


def _decompressed(name: str, layer: _Layer, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight of a layer, in float32. Raises `CheckpointError`."""
    file = next(iter(layer.parts.values())).file
    weights = layer.scheme.weights
    for part, tensor in parts.items():
        if part == "weight":
            kinds: tuple[torch.dtype, ...] = (weights.pytorch_dtype(),)
        elif part == "weight_scale":
            kinds = _SCALES
        else:
            continue
        if tensor.dtype not in kinds:
            raise CheckpointError(f"{file}: {name}.{part} holds {tensor.dtype}, its scheme asks for {kinds[0]}")
    if "weight_shape" in parts and tuple(parts["weight_shape"].tolist()) != layer.shape:
        found = parts["weight_shape"].tolist()
        raise CheckpointError(f"{file}: {name}.weight_shape is {found}, the configuration asks for {list(layer.shape)}")
    parts["weight_scale"] = parts["weight_scale"].float()
    try:
        return layer.compressor.decompress(parts, layer.scheme)["weight"]
    except (ValueError, TypeError, IndexError, AssertionError) as error:
        raise CheckpointError(f"{file}: {name} cannot be decompressed ({first_line(error)})") from error


def _first_fault(error: Exception) -> str:
    """Where a configuration is at fault, and how, on one line."""
    if not isinstance(error, ValueError) or not hasattr(error, "errors"):
        return first_line(error)
    fault: Any = error.errors()[0]  # pyright: ignore[reportAttributeAccessIssue]  pydantic's
    place = ".".join(str(one) for one in fault["loc"] if "(" not in str(one))  # without the names of its functions
    return f"{place}: {fault['msg']}"
