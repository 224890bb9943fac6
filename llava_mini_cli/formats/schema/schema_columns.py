"""The types that the values of a schema have in a column."""

from typing import Any

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.column_types import ColumnType, ListOf, StructOf
from llava_mini_cli.formats.schema.inner_refs import without_null

MOST_COLUMNS = 2_000  # values of a row, those inside structs among them
_DEEPEST = 8  # structs and lists within each other; what lies deeper is JSON as text
_KINDS: dict[type, ColumnType] = {str: "string", bool: "bool", int: "int64", float: "float64"}
_NAMED: dict[str, ColumnType] = {"string": "string", "boolean": "bool", "number": "float64"}


def column_type(schema: Any, root: Any) -> ColumnType:
    """The type of a schema's values; JSON as text where they may be of several.

    Raises:
        UsageError: there are too many columns, as where a schema refers to itself many times.
    """
    return _Types(root).of(schema)


class _Types:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._count = 0

    def of(self, schema: Any, depth: int = 0) -> ColumnType:
        """The type of one schema, `depth` lists and structs within the whole."""
        self._count += 1
        if self._count > MOST_COLUMNS:
            raise UsageError(f"its values, those within others among them, are more than {MOST_COLUMNS:,} columns")
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return "string"
        own, _ = without_null(schema, self._root)
        if "enum" in own or "const" in own:
            return _of_values(own.get("enum", [own.get("const")]))
        kind = own.get("type")
        if kind == "integer":
            bounds = [own.get(word, 0) for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
            return "int64" if all(-(2**63) <= bound < 2**63 for bound in bounds) else "string"
        if kind == "array" and isinstance(own.get("items"), dict):
            return ListOf(self.of(own["items"], depth + 1))
        if kind in ("object", None) and own.get("properties"):
            members = ((name, self.of(one, depth + 1)) for name, one in own["properties"].items())
            return StructOf(tuple(members))
        return _NAMED.get(kind, "string") if isinstance(kind, str) else "string"


def _of_values(values: list[Any]) -> ColumnType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return "float64"
    if kinds == {int} and any(not -(2**63) <= value < 2**63 for value in values if value is not None):
        return "string"
    return _KINDS.get(kinds.pop(), "string") if len(kinds) == 1 else "string"
