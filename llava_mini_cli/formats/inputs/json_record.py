"""JSON of strangers: a line of a table, or a text of a shard, as Python holds it, in bounded memory and depth."""

import json
import re
from typing import Any

LARGEST_RECORD = 1 << 24  # bytes; up to thirty times as many once they are lists and objects
DEEPEST = 100  # lists and objects within each other; what handles them calls itself once for each
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALIKE = bytes.maketrans(b"{}", b"[]")


def parse_json(data: bytes) -> Any:
    """What a JSON text holds. Raises `ValueError` where it is none, is too large or nested too deep.

    Python itself refuses numbers of more than 4300 digits, with a `ValueError` as well.
    """
    if len(data) > LARGEST_RECORD:
        raise ValueError(f"more than {LARGEST_RECORD} bytes")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _is_deep(data):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def _is_deep(data: bytes) -> bool:
    """True if a valid JSON text is nested too deep: brackets that hold nothing are taken away, level by level."""
    brackets = _TEXTS.sub(b"", data).translate(_ALIKE, _ALL_BUT_BRACKETS)
    for _ in range(DEEPEST):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
