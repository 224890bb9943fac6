"""The types of nested columns, as every format of rows can tell them: a name of Arrow's, a list of them, a struct.

Knows nothing of schemas and nothing of Arrow.
"""

import json
from typing import Any, NamedTuple, Union


class ListOf(NamedTuple):
    """Values of one type."""

    item: "ColumnType"


class StructOf(NamedTuple):
    """Values by name, each of its type."""

    members: "tuple[tuple[str, ColumnType], ...]"


ColumnType = Union[str, ListOf, StructOf]  # noqa: UP007 - names itself


class RowFields(NamedTuple):
    """The columns that rows of a run with a schema have besides those of every row."""

    types: StructOf | None  # of `fields`; None: what is asked for is no object, and there is no such column
    labelled: tuple[str, ...] = ()  # the fields that have probabilities; none: there is no column `field_probs`

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in order."""
        return (*(("fields",) if self.types else ()), *(("field_probs",) if self.labelled else ()))


FIELD_COLUMNS = ("fields", "field_probs")


def as_type(value: Any, kind: ColumnType) -> Any:
    """A value of JSON as its column holds it: null where it is of another type, JSON as text where that is text."""
    if value is None:
        return None
    if isinstance(kind, ListOf):
        return [as_type(one, kind.item) for one in value] if isinstance(value, list) else None  # pyright: ignore
    if isinstance(kind, StructOf):
        if not isinstance(value, dict):
            return None
        return {name: as_type(value.get(name), member) for name, member in kind.members}  # pyright: ignore
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float64":
        return float(value)
    is_whole = value == int(value) and -(2**63) <= value < 2**63
    return int(value) if is_whole else None
