"""JSON lines for readers that take the type of a column from the first rows alone, such as Hugging Face `datasets`.

A column that is null in all of these and text further down cannot be read by them. Knows nothing of what the rows are.
"""

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

_PROBS = "choice_probs"


def write_with_types_first(lines: BinaryIO, stream: BinaryIO) -> None:
    """Writes rows in such an order that the first ones have a value in every column; `lines` is read three times.

    These are one row a column at most, and the others follow in their order. A column without any value is left out.
    """
    showing = _rows_that_show(lines)
    first = set(showing.values())
    for is_first in (True, False):
        lines.seek(0)
        stream.writelines(
            _with_columns(line, showing) for number, line in enumerate(lines) if (number in first) is is_first
        )


def _rows_that_show(lines: Iterable[bytes]) -> dict[str, int]:
    """The columns that have a value, and the first row where its type is plain."""
    showing: dict[str, int] = {}
    plain: set[str] = set()
    for number, line in enumerate(lines):
        for name, value in _columns(line).items():
            if value is None or name in plain:
                continue
            if not _may_be_a_date(value):
                plain.add(name)
                showing[name] = number
            else:
                showing.setdefault(name, number)
    return showing


def _columns(line: bytes) -> dict[str, Any]:
    """A row without `fields`, whose types no first row shows (lists may be empty, values null). `json` holds them."""
    record: dict[str, Any] = json.loads(line)
    record.pop("fields", None)
    return record


def _items(probs: dict[str, float]) -> list[dict[str, Any]]:
    return [{"choice": choice, "probability": value} for choice, value in probs.items()]


def _may_be_a_date(value: object) -> bool:
    """True for text that readers may take for a time: an answer may be one, and the next one not."""
    return isinstance(value, str) and value[:1].isdigit()


def _with_columns(line: bytes, names: Iterable[str]) -> bytes:
    record = _columns(line)
    if record.get(_PROBS) is not None:  # as in Parquet: other choices would be of another type
        record[_PROBS] = _items(record[_PROBS])
    if record.get("field_probs") is not None:
        record["field_probs"] = {name: _items(probs) for name, probs in record["field_probs"].items()}
    return json.dumps({name: record[name] for name in record if name in names}, ensure_ascii=False).encode() + b"\n"
