"""The outer form of a file of prepared weights: its first bytes, its index, and the sums that tell damage.

    0        magic, version, where the index is and how long, sha256 of the index
    65536    one layer after the other, each at a multiple of 65,536 bytes
    end      the index: JSON with what the file is of (`about`), the layouts of packed weights, and the layers

Of a layer's bytes 4 KiB in every MiB and the last 4 KiB are summed up, and all of a layer that is no longer than a MiB.
So a look at a file of 8 GB takes well under a second, where a sum over all of it would take as long as the start that
it is for. Damage of single bytes elsewhere goes unnoticed, as it does in a checkpoint's own files. Knows no torch.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from llava_mini_cli.plain_files import parse_json

VERSION = 1
PAGE = 1 << 16  # bytes: a multiple of every system's page size; a layer begins at one
MOST_INDEX_BYTES = 16 << 20
BYTES_OF = {  # number formats of tensors, by torch's names
    "float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip
_START = struct.Struct("<24sIQQ32s")
_MAGIC = b"llava-mini weights\n".ljust(24, b"\0")
_SAMPLE = 4096  # bytes looked at
_EVERY = 1 << 20  # of so many


class DamagedError(ValueError):
    """A file that is not what its name says; the text says why, in a clause."""


@dataclass(frozen=True)
class PartPlace:
    """One tensor of a layer."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the layer
    length: int  # bytes
    layout: int | None = None  # number of the layout in the index, of a weight that oneDNN packed
    packs: bool = False  # a weight that is to be packed when it is loaded


@dataclass(frozen=True)
class LayerPlace:
    """One layer: where it lies, and what makes it again."""

    offset: int
    length: int
    sample: str  # `sample_of` its bytes
    facts: dict[str, Any]  # plain JSON
    parts: dict[str, PartPlace]


@dataclass(frozen=True)
class Index:
    """All that a file says of itself."""

    about: dict[str, Any]  # what it is of: model, format, kernel, torch and so on
    layouts: tuple[bytes, ...]
    layers: dict[str, LayerPlace]


def sample_of(descriptor: int, offset: int, length: int) -> str:
    """The sum that tells damage of some bytes of a file. Raises `OSError`."""
    if length <= _EVERY:
        return hashlib.sha256(os.pread(descriptor, length, offset)).hexdigest()
    digest = hashlib.sha256()
    for start in (*range(0, length - _SAMPLE, _EVERY), length - _SAMPLE):
        digest.update(os.pread(descriptor, _SAMPLE, offset + start))
    return digest.hexdigest()


def write_index(descriptor: int, offset: int, index: Index) -> None:
    """Ends a file: the index behind the layers, then the first bytes, without which it is no such file."""
    layers = {
        name: {**vars(layer), "parts": {key: vars(part) for key, part in layer.parts.items()}}
        for name, layer in index.layers.items()
    }
    layouts = [layout.hex() for layout in index.layouts]
    text = json.dumps({"about": index.about, "layouts": layouts, "layers": layers}).encode()
    write_all(descriptor, memoryview(text), offset)
    os.fsync(descriptor)
    start = _START.pack(_MAGIC, VERSION, offset, len(text), hashlib.sha256(text).digest())
    write_all(descriptor, memoryview(start), 0)
    os.fsync(descriptor)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """All of some bytes to a place of a file. Raises `OSError`."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def read_index(descriptor: int) -> Index:
    """The index of an open file, compared with the file's size and with itself; no layer is read.

    Raises:
        DamagedError: it cannot be used. OSError: it cannot be read.
    """
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, _START.size, 0)
    if len(start) < _START.size:
        raise DamagedError("it is cut short")
    magic, version, offset, length, digest = _START.unpack(start)
    if magic != _MAGIC or version != VERSION:
        raise DamagedError("it does not begin as such a file does")
    if offset + length != size or length > MOST_INDEX_BYTES:
        raise DamagedError(f"it has {size} bytes, and says {offset + length}")
    text = os.pread(descriptor, length, offset)
    if hashlib.sha256(text).digest() != digest:
        raise DamagedError("its index has changed")
    try:
        index = _index(parse_json(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"its index cannot be read ({type(error).__name__}: {error})") from error
    for name, layer in index.layers.items():
        _check_place(name, layer, offset, len(index.layouts))
    return index


def check_samples(descriptor: int, index: Index) -> None:
    """Raises `DamagedError` where the bytes of a layer are not those that were written."""
    for name, layer in index.layers.items():
        if sample_of(descriptor, layer.offset, layer.length) != layer.sample:
            raise DamagedError(f"the weights of {name} have changed")


def _index(content: Mapping[str, Any]) -> Index:
    layouts = tuple(bytes.fromhex(text) for text in content["layouts"])
    return Index(dict(content["about"]), layouts, {name: _layer(layer) for name, layer in content["layers"].items()})


def _layer(fields: Mapping[str, Any]) -> LayerPlace:
    parts = {name: _part(**part) for name, part in fields["parts"].items()}
    return LayerPlace(fields["offset"], fields["length"], fields["sample"], fields["facts"], parts)


def _part(shape: Sequence[int], **fields: Any) -> PartPlace:
    return PartPlace(shape=tuple(shape), **fields)


def _check_place(name: str, layer: LayerPlace, end: int, layouts: int) -> None:
    """Raises `DamagedError` unless a layer lies between the first bytes and the index, and its parts in it."""
    if not (PAGE <= layer.offset <= end - layer.length and layer.length > 0 and layer.offset % PAGE == 0):
        raise DamagedError(f"{name} does not lie in it")
    for part in layer.parts.values():
        counted = part.layout is not None or part.length == prod(part.shape) * BYTES_OF.get(part.dtype, -1)
        lies_inside = 0 <= part.start <= layer.length - part.length
        if not (counted and lies_inside and (part.layout is None or 0 <= part.layout < layouts)):
            raise DamagedError(f"a tensor of {name} does not lie in it")
