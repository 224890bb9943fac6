"""Columns of the input that rows carry on: their names in the output, their types, their values.

A type is the name that Arrow has for it. Knows nothing of where values come from.
"""

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from typing import cast

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.column_types import FIELD_COLUMNS
from llava_mini_cli.formats.row import COLUMNS, EVIDENCE_COLUMNS, THUMBNAIL, KeptColumn, printable

_OURS = frozenset((*(column.name for column in (*COLUMNS, *EVIDENCE_COLUMNS)), *FIELD_COLUMNS, THUMBNAIL))
_MOST_LISTED = 100
PREFIX = "input_"  # of a kept column whose name, but for its case, is one of ours or of another kept one


def output_name(column: str) -> str:
    """The name of a kept column in the output, as valid UTF-8; one of our own names gets a prefix, in any case.

    SQL knows no case: of `text` and `Text` DuckDB reaches the first alone, whichever is asked for.
    """
    return f"{PREFIX}{column}" if column.lower() in _OURS else printable(column)


def merge_kinds(tables: Iterable[Mapping[str, str]]) -> dict[str, KeptColumn]:
    """The kept columns of several tables by their name in the table; one whose types differ becomes text.

    Of columns whose names differ by case only, all but the first get a prefix.

    Raises:
        UsageError: two columns get the same name in the output.
    """
    merged: dict[str, KeptColumn] = {}
    taken: dict[str, str] = {}  # names in the output by their lower case
    for kinds in tables:
        for column, kind in kinds.items():
            known = merged.get(column)
            is_same = known is None or known.kind == kind
            name = _free_name(output_name(column), taken) if known is None else known.name
            merged[column] = KeptColumn(name, kind if is_same else "string")
    names = [kept.name for kept in merged.values()]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UsageError(f"--keep-columns: two columns would be named '{twice[0]}' in the output; name those to keep")
    return merged


def _free_name(name: str, taken: dict[str, str]) -> str:
    """The name, or with a prefix where another one is the same but for case; notes it as taken."""
    while taken.setdefault(name.lower(), name) != name:
        name = f"{PREFIX}{name}"
    return name


def kind_of_types(types: set[type]) -> str:
    """The type that holds all values of a JSON column, by their Python types; what is mixed or nested is text."""
    seen = types - {type(None)}
    if seen == {bool}:
        return "bool"
    if seen == {int}:
        return "int64"
    if seen and seen <= {int, float}:
        return "float64"
    return "string"


def as_kind(value: object, kind: str) -> object:
    """A value as its column's type holds it; null where JSON has none for it, as for not-a-number and infinity."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "string":
        return as_text(value)
    if kind == "float64" and isinstance(value, int | float):
        return float(value)
    return value


def as_text(value: object) -> str:
    """A value as text: text as it is, a date in ISO form, anything nested as JSON."""
    if isinstance(value, str):
        return value if value.isascii() else printable(value)
    if isinstance(value, bool | int | float | list | dict):
        text = json.dumps(value, ensure_ascii=False, default=_plain)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()  # halves of pairs, as JSON
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value)


def is_empty(value: object) -> bool:
    """True if a cell holds nothing: null, not-a-number, or white space alone."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_columns(flag: str, names: Sequence[str], columns: Sequence[str], table: str) -> None:
    """Raises `UsageError` naming the columns there are, where a table has not the ones a flag names."""
    for name in names:
        if name not in columns:
            raise UsageError(f"{flag}: '{table}' has no column '{name}'; its columns are: {listed(columns)}")


def listed(columns: Sequence[str]) -> str:
    """The names of a table's columns for a message; of very many the first."""
    rest = len(columns) - _MOST_LISTED
    return (", ".join(columns[:_MOST_LISTED]) or "none") + (f" and {rest} more" if rest > 0 else "")


def as_mapping(value: object) -> Mapping[str, object] | None:
    """A JSON object or a Parquet struct, or None for anything else."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else None
