"""Small files of somebody else's, such as the JSON of a checkpoint, read within bounds.

A file of that name may be a pipe, which is never read; may have any size, of which no more than a bound is read; and
may hold JSON that is nested without end, says a thing twice or has numbers that are none. All of it is a `ValueError`.
"""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

MOST_JSON_BYTES = 16 << 20


def read_bytes(path: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is a pipe, a folder or a device, or larger than `most` bytes.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most >> 20} MiB")
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_object(path: Path, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a regular file.

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
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"'{twice}' stands there twice")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
