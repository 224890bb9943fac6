"""The weight files of a checkpoint, and what their headers say that they hold; no tensor is read for it.

    model.safetensors           a header of JSON in front of the numbers
    pytorch_model.bin           a zip file, one member of which is a pickle that says where the numbers are
    either of them in shards    and an index in JSON, *.index.json, that says which tensor is where

A checkpoint may be somebody else's. So its files lie in its directory, a pickle makes tensors and nothing else, and
what a header claims is compared with the size of its file.
"""

import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import safe_open

from llava_mini_cli.errors import CheckpointError, first_line
from llava_mini_cli.hub import weight_source
from llava_mini_cli.model.fields import shown
from llava_mini_cli.model.tensor_shapes import Shape
from llava_mini_cli.paths import is_file, is_there
from llava_mini_cli.plain_files import read_object

MOST_PICKLE_BYTES = 100 << 20  # as many as safetensors allows for its header
NUMBERS = {  # how tensors of weights may be stored
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


DECOMPRESSED = torch.int8  # in place of the format of a weight that is decompressed when it is read
HELD = torch.uint8  # of bytes that are held in memory as they are stored


class Stored(NamedTuple):
    """One tensor of a weight file."""

    shape: Shape
    dtype: torch.dtype | None  # None: no number format that plain weights have
    file: Path
    nbytes: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: it is missing, no regular file, or not a JSON object.
    """
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: no {path.name}") from error
    except (OSError, ValueError) as error:
        words = str(error) if str(error).startswith("not a") else f"cannot be read ({error})"
        raise CheckpointError(f"{path}: {words}") from error


def member(directory: Path, name: str) -> Path:
    """The path of a file of a checkpoint, which may not be there.

    A link must stay in the directory, or lead to the hub's own store of the snapshot that the directory is.

    Raises:
        CheckpointError: it is no plain name below the directory, a link that leaves it, or no regular file.
    """
    path = directory / name
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{directory}: {shown(name)} is no file of this directory")
    if not is_there(path):
        return path
    real, home = path.resolve(), directory.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # .../models--owner--name/snapshots/COMMIT
        homes.append(home.parents[1] / "blobs")
    elif (cache := _hub_cache()) in real.parents:  # a folder of links that an older client of the hub made
        homes.append(cache)
    if not any(place in real.parents for place in homes):
        raise CheckpointError(f"{path}: a link that leaves the checkpoint, to {real}")
    if not is_file(path):
        raise CheckpointError(f"{path}: not a regular file")
    return path


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).resolve()


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a directory, safetensors before torch pickles, sharded or not.

    Raises:
        CheckpointError: there are none, a shard that the index names is missing, or lies elsewhere.
    """
    source = weight_source(directory)
    if source is None:
        words = "no weights (model.safetensors or pytorch_model.bin, or shards with an index)"
        raise CheckpointError(f"{directory}: {words}")
    if source.suffix != ".json":
        return [member(directory, source.name)]
    weight_map = read_json(member(directory, source.name)).get("weight_map", {})
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in _values(weight_map)):
        raise CheckpointError(f"{source}: weight_map {shown(weight_map)}: must be an object of tensors and file names")
    names = sorted(set(_values(weight_map)))
    paths = [member(directory, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not is_there(path)]
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} of {len(names)} shards missing: {missing[0]}")
    return paths


def _values(mapping: Any) -> list[Any]:
    return list(cast("dict[str, Any]", mapping).values())


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor that the weight files of a directory hold, by the name that it has there.

    Raises:
        CheckpointError: a file is missing or damaged; one line names it.
    """
    return {name: tensor for path in weight_files(directory) for name, tensor in read_header(path)}


def read_header(path: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of one weight file, without their numbers.

    Raises:
        CheckpointError: the file is damaged, or a pickle that holds more than tensors.
    """
    try:
        check_start(path)
        yield from _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can have the libraries raise anything
        raise CheckpointError(f"{path}: damaged or unreadable ({first_line(error)})") from error


def check_start(path: Path) -> None:
    """Raises `CheckpointError` where a file is only the pointer that git-lfs left in place of it."""
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise CheckpointError(f"{path}: a git-lfs pointer, not the weights; run git lfs pull")


def _safetensors(path: Path) -> Iterator[tuple[str, Stored]]:
    with safe_open(path, framework="np") as tensors:  # which bounds the header, and checks its offsets
        for key in tensors.keys():  # noqa: SIM118  a safe_open handle is no mapping
            tensor = tensors.get_slice(key)
            shape, number = tuple(tensor.get_shape()), tensor.get_dtype()
            yield key, Stored(shape, NUMBERS.get(number), path, prod(shape) * _number_bytes(number))


def _number_bytes(name: str) -> int:
    """Bytes of a number, from the name of its format: F32, BF16, I8, F8_E4M3."""
    bits = re.search(r"\d+", name)
    return 1 if bits is None else max(1, int(bits[0]) // 8)


def _pickle(path: Path) -> Iterator[tuple[str, Stored]]:
    check_zip(path)
    size = path.stat().st_size
    state: Any = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    for key, tensor in cast("dict[Any, Any]", state).items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {shown(key)} holds a {type(tensor).__name__}, not a tensor")
        shape = tuple(tensor.shape)
        if prod(shape) * tensor.itemsize > size:
            raise CheckpointError(f"{path}: {key} has shape {list(shape)}, more than the file holds")
        yield key, Stored(shape, tensor.dtype if tensor.dtype in NUMBERS.values() else None, path, tensor.nbytes)


def check_zip(path: Path) -> None:
    """Makes sure that reading a pickle of torch takes no more memory than its file has bytes.

    Raises:
        CheckpointError: it is compressed, which torch never does, or its description of the tensors is huge.
    """
    if _directory_bytes(path) > MOST_PICKLE_BYTES:
        raise CheckpointError(f"{path}: damaged or unreadable (its list of members is too large)")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: damaged or unreadable (not a zip file, as torch has written them since 1.6)")
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path}: damaged or unreadable ({shown(info.filename)} is compressed)")
            if info.filename.endswith(".pkl") and info.file_size > MOST_PICKLE_BYTES:
                raise CheckpointError(f"{path}: damaged or unreadable ({shown(info.filename)} is too large)")


def _directory_bytes(path: Path) -> int:
    """The size that a zip file gives for its list of members, which readers hold in memory; 0 where it gives none."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 17)))
        tail = file.read()
    end, long_end = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    if end < 0 or len(tail) < end + 16:
        return 0
    (claimed,) = struct.unpack_from("<I", tail, end + 12)
    if claimed == 0xFFFFFFFF and 0 <= long_end <= len(tail) - 48:
        (claimed,) = struct.unpack_from("<Q", tail, long_end + 40)
    return claimed


def compare(wanted: Mapping[str, Shape], stored: Mapping[str, Stored], checkpoint: Path) -> None:
    """Makes sure that every tensor is there, and as the configuration wants it.

    Raises:
        CheckpointError: one is missing, or has another shape, or holds no numbers of weights.
    """
    for name, shape in wanted.items():
        tensor = stored.get(name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, the configuration asks for {list(shape)}"
            )
        if tensor.dtype is None:
            raise CheckpointError(f"{tensor.file}: {name} is stored in a number format that weights do not have")
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise CheckpointError(
            f"{checkpoint}: {len(missing)} of {len(wanted)} tensors missing, among them "
            f"{missing[0]} {list(wanted[missing[0]])}"
        )
