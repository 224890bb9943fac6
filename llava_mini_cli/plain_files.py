"""Files of strangers for reading: plain files alone, since a pipe or a device may never end, or never even open.

Links are followed. Small files, such as the JSON of a checkpoint, are read up to a bound; JSON that is nested without
end, says a thing twice or has numbers that are none is a `ValueError`.
"""

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

MOST_JSON_BYTES = 16 << 20


def open_plain(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading a plain file. Raises `OSError`, for pipes, sockets, devices and folders as well."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe without a writer opens at once
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError("not a regular file")


def read_bytes(path: str | os.PathLike[str], most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: it cannot be opened or read, or is a pipe, a folder or a device.
        ValueError: it is larger than `most` bytes.
    """
    with open(open_plain(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most >> 20} MiB")
    return content


def read_object(path: Path, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a plain file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: as `read_bytes` and `parse_json`, or not an object.
    """
    value = parse_json(read_bytes(path, most))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast("dict[str, Any]", value)


def parse_json(content: bytes) -> Any:
    """What JSON says. Raises `ValueError` where it is none, or is too deep, has a key twice, NaN or infinity."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("lists or objects too deep inside each other") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen = Counter(key for key, _ in pairs)
        twice = next(key for key, count in seen.items() if count > 1)
        raise ValueError(f"'{twice[:100]}' stands there twice")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
