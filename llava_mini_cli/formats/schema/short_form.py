"""The short form of a schema, such as `shape circle|square, count int 0..20, plate str?`, as JSON Schema.

    fields  field (comma or line end, field)...
    field   NAME [type] [?] [: the question]
    type    str, str(80), int, int 0..20, float, float 0..1, bool, or labels a|b|c; each may have [] behind it

A field without a type is a `str`. A `?` says that there may be none, `[]` that there are several. In a text of one line
a question ends at the next comma; in one of several lines it goes on to the end of its line, whatever it holds.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.shown_text import for_terminal

LONGEST_TEXT = 200  # characters of a text for which nothing else is said
MOST_ITEMS = 20  # of a list for which nothing else is said
TYPES = "str, str(80), int, int 0..20, float, float 0..1, bool, or labels such as a|b|c"

_NAME = re.compile(r"[^\s,:|?\[\](){}]+")
_TEXT = re.compile(r"str(?:\s*\(\s*(\d{1,6})\s*\))?")
_RANGE = re.compile(r"(int|float)(?:\s+(-?\d{1,15}(?:\.\d{1,6})?)?\s*\.\.\s*(-?\d{1,15}(?:\.\d{1,6})?)?)?")
_MOST_SHOWN = 40


def from_short_form(text: str) -> dict[str, Any]:
    """The same as JSON Schema. Raises `UsageError` that names the word at fault."""
    properties: dict[str, Any] = {}
    for name, kind, question in _fields(text):
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{_shown(name)}' is no name; a field is NAME TYPE, with commas between fields")
        if name in properties:
            raise UsageError(f"the field '{_shown(name)}' is there twice")
        try:
            properties[name] = _typed(kind) | ({"description": question} if question else {})
        except UsageError as error:
            raise UsageError(f"the field '{_shown(name)}': {error}") from None
    if not properties:
        raise UsageError("it has no field; a field is NAME TYPE, such as 'count int'")
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _fields(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, type and question of each field; empty where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        told, colon, question = line.partition(":") if len(lines) > 1 else (line, "", "")
        pieces = told.split(",")
        if len(lines) > 1 and not colon and not pieces[-1].strip():
            pieces.pop()  # a line may end in a comma
        for number, piece in enumerate(pieces):
            if len(lines) > 1:
                field, asked = piece, question if number == len(pieces) - 1 else ""
            else:
                field, _, asked = piece.partition(":")
            if not field.strip():
                raise UsageError("a field is empty: there is nothing between two commas, or at an end")
            name, kind = [*field.split(None, 1), ""][:2]
            yield name, kind.strip(), asked.strip()


def _typed(text: str) -> dict[str, Any]:
    """A type as JSON Schema."""
    bare = text.removesuffix("?").rstrip()
    may_be_none, is_list = bare != text, bare.endswith("[]")
    found: dict[str, Any] = _single(bare.removesuffix("[]").rstrip())
    if is_list:
        found = {"type": "array", "items": found, "maxItems": MOST_ITEMS}
    if may_be_none and "enum" in found:
        return {"enum": [*found["enum"], None]}
    return found | ({"type": [found["type"], "null"]} if may_be_none else {})


def _single(text: str) -> dict[str, Any]:
    if "|" in text:
        return {"type": "string", "enum": _labels(text)}
    if text == "bool":
        return {"type": "boolean"}
    if match := _TEXT.fullmatch(text or "str"):
        length = int(match[1] or LONGEST_TEXT)
        if not length:
            raise UsageError("a text of 0 characters")
        return {"type": "string", "minLength": 1, "maxLength": length}
    if match := _RANGE.fullmatch(text):
        return _number(*match.groups())
    raise UsageError(f"'{_shown(text)}' is no type; types are {TYPES}")


def _number(kind: str, least: str | None, most: str | None) -> dict[str, Any]:
    read: type[int] | type[float] = int if kind == "int" else float
    for bound in (least, most):
        if kind == "int" and bound and "." in bound:
            raise UsageError(f"'{bound}' is no integer")
    if least and most and Decimal(least) > Decimal(most):
        raise UsageError(f"'{least}..{most}' begins above its end")
    bounds = {"minimum": least, "maximum": most}
    return {"type": "integer" if kind == "int" else "number"} | {
        name: read(bound) for name, bound in bounds.items() if bound
    }


def _labels(text: str) -> list[str]:
    labels = [label.strip() for label in text.split("|")]
    for number, label in enumerate(labels):
        if not label:
            raise UsageError(f"a label of '{_shown(text)}' is empty")
        if label in labels[:number]:
            raise UsageError(f"the label '{_shown(label)}' is there twice")
    return labels


def _shown(text: str) -> str:
    text = for_terminal(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
