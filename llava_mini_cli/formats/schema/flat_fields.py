"""The fields of a flat schema, each with its question and with what its answer is held to.

A schema is flat if it is an object whose properties are single values, or lists of such. What a plain expression or a
list of labels cannot say of a field (patterns, formats, lists) is held to the field's own JSON Schema.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from llava_mini_cli.config import Grammar
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import NONE, FlatField, name_of
from llava_mini_cli.formats.schema.bounded_schema import bounded
from llava_mini_cli.formats.schema.inner_refs import resolved, without_null
from llava_mini_cli.formats.schema.number_patterns import LARGEST_INTEGER, LARGEST_NUMBER, PLACES, decimals, integers
from llava_mini_cli.formats.schema.schema_words import SAID_ONLY, inner_schemas, shown
from llava_mini_cli.formats.schema.short_form import LONGEST_TEXT

MOST_CHARACTERS = 4_000  # of a text, whatever the schema allows
MOST_FIELDS = 200  # that are asked one by one
MOST_LABELS = 10_000  # of a field
_MOST_WITHIN = 3  # options and lists around the values of a field
_NAMED_LABELS = 100  # characters of labels that are named in a question that is made here
_OF_ROOTS = SAID_ONLY | {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_SCALARS = ("string", "number", "integer", "boolean", "null")
_VISIBLE, _ANY = r"[^\s\x00-\x1f\x7f-\x9f]", r"[^\x00-\x1f\x7f-\x9f]"
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class NotFlat(Exception):
    """Why a schema cannot be asked for field by field."""


class _Held(NamedTuple):
    """What an answer is held to, and how it is read."""

    reading: str
    choices: tuple[str, ...] | None = None
    values: tuple[Any, ...] = ()
    grammar: Grammar | None = None


def flat_fields(schema: Any) -> tuple[FlatField, ...]:
    """The fields of a schema, in its order.

    Raises:
        NotFlat: it cannot be asked for so. UsageError: it has too many fields or labels.
    """
    root = resolved(schema, schema)
    if not isinstance(root, dict) or root.get("type", "object") != "object" or not root.get("properties"):
        raise NotFlat("it is no object with properties")
    odd = sorted(word for word in root.keys() - _OF_ROOTS if not word.startswith("x-"))
    if odd:
        raise NotFlat(f"'{odd[0]}' is about several fields at once")
    properties: dict[str, Any] = root["properties"]
    undefined = [name for name in root.get("required", ()) if name not in properties]
    if undefined:
        raise NotFlat(f"'{shown(undefined[0])}' is required, and no property says what it is")
    if len(properties) > MOST_FIELDS:
        raise UsageError(f"it has {len(properties):,} fields; at most {MOST_FIELDS} are asked one by one")
    fields = tuple(_field(name, one, schema) for name, one in properties.items())
    if all(field.reading == "constant" for field in fields):
        raise NotFlat("there is nothing to ask: every field is a constant")
    return fields


def _field(name: str, schema: Any, root: Any) -> FlatField:
    if not isinstance(schema, dict):
        raise NotFlat(f"the field '{shown(name)}' may be anything")
    own, may_be_null = without_null(schema, root)  # pyright: ignore[reportUnknownArgumentType]
    held = _held(name, own, root, may_be_null=may_be_null)
    question = own.get("description", "").strip() or made_question(name, own, held.choices, may_be_null=may_be_null)
    reading: Any = held.reading
    shortest = int(own.get("minLength", 1)) if reading == "text" else 0
    return FlatField(name, question, reading, held.choices, held.values, held.grammar, may_be_null, shortest)


def _held(name: str, own: dict[str, Any], root: Any, *, may_be_null: bool) -> _Held:
    words = {word for word in own.keys() - SAID_ONLY if not word.startswith("x-")}
    kind = own.get("type")
    if words & {"const", "enum"} and words <= {"type", "const", "enum"}:
        values = _values(name, own, may_be_null=may_be_null)
        return _constant_or_labels(name, values, own, root)
    if kind == "boolean" and words == {"type"}:
        options = [True, False, *([None] if may_be_null else [])]
        return _labels(name, options, ["yes", "no", *([NONE] if may_be_null else [])])
    grammar = None
    if kind == "integer" and words <= {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}:
        grammar = _integer(name, own)
    elif kind == "number" and words <= {"type", "minimum", "maximum"}:
        grammar = _number(name, own)
    elif kind == "string" and words <= {"type", "minLength", "maxLength"} and own.get("maxLength") != 0:
        grammar = _text(name, own)
    if grammar is not None:
        text = f"{NONE}|{grammar}" if may_be_null else grammar
        return _Held("text" if kind == "string" else "number", grammar=Grammar("regex", text))
    return _as_json(name, own, root, may_be_null=may_be_null)


def _as_json(name: str, own: dict[str, Any], root: Any, *, may_be_null: bool) -> _Held:
    """A field that is held to its own JSON Schema."""
    _check_flat(name, own, root)
    schema = bounded({word: value for word, value in own.items() if word not in SAID_ONLY})
    if not all(reference.startswith(("#/$defs/", "#/definitions/")) for reference in _references(schema)):
        raise NotFlat(f"the field '{shown(name)}' refers to others")
    schema = {"anyOf": [schema, {"type": "null"}]} if may_be_null else schema
    shared = {word: bounded({word: root[word]})[word] for word in ("$defs", "definitions") if word in root}
    return _Held("json", grammar=Grammar("json_schema", json.dumps({**schema, **shared}, ensure_ascii=False)))


def _references(schema: Any) -> Iterator[str]:
    """What a schema and those within it refer to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for _, inner in inner_schemas("", schema):
            yield from _references(inner)


def _check_flat(name: str, own: Any, root: Any, depth: int = 0) -> None:
    """Raises `NotFlat` for what is nested, or may be anything; `depth`: of lists and options that it is within."""
    own = resolved(own, root)
    found: Any = own.get("type") if isinstance(own, dict) else None
    kinds: list[Any] = found if isinstance(found, list) else [found]
    if not depth and kinds == ["array"] and isinstance(own.get("items"), dict):
        _check_flat(name, own["items"], root, 1)
        return
    if isinstance(own, dict) and ("enum" in own or "const" in own):
        values: list[Any] = own.get("enum", [own.get("const")])
        if not any(isinstance(value, list | dict) for value in values):
            return
    options: Any = own.get("anyOf") if isinstance(own, dict) and kinds == [None] else None
    if isinstance(options, list) and depth < _MOST_WITHIN:
        for one in options:
            _check_flat(name, one, root, depth + 1)
        return
    if not all(kind in _SCALARS for kind in kinds):
        raise NotFlat(f"the field '{shown(name)}' is nested, or may be anything")


def _values(name: str, own: dict[str, Any], *, may_be_null: bool) -> list[Any]:
    """The values that an enum or a constant has, of those that its type allows."""
    kinds: Any = own.get("type")
    allowed: list[Any] | None = None if kinds is None else kinds if isinstance(kinds, list) else [kinds]
    given: list[Any] = own["enum"] if "enum" in own else [own["const"]]
    if "enum" in own and "const" in own:
        given = [value for value in given if value == own["const"]]
    values = [value for value in given if allowed is None or _is_of(value, allowed) or (value is None and may_be_null)]
    if may_be_null and None not in values and "enum" not in own:
        values.append(None)
    if not values:
        raise UsageError(f"the field '{shown(name)}': none of its values is of its type")
    return values


def _is_of(value: Any, kinds: list[Any]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float):
        return "number" in kinds or ("integer" in kinds and value == int(value))
    of: dict[type, str] = {str: "string", type(None): "null", list: "array", dict: "object"}
    return of.get(type(value)) in kinds


def _constant_or_labels(name: str, values: list[Any], own: dict[str, Any], root: Any) -> _Held:
    if any(isinstance(value, list | dict) for value in values):
        raise NotFlat(f"the field '{shown(name)}' is nested")
    if len(values) == 1:
        return _Held("constant", values=(values[0],))
    choices = [NONE if value is None else name_of(value) for value in values]
    is_sayable = all(choice.strip() == choice and choice for choice in choices)
    if not is_sayable:
        return _as_json(name, {"enum": values}, root, may_be_null=False)
    return _labels(name, values, choices)


def _labels(name: str, values: list[Any], choices: list[str]) -> _Held:
    if len(choices) > MOST_LABELS:
        raise UsageError(f"the field '{shown(name)}' has {len(choices):,} labels, which are more than {MOST_LABELS:,}")
    for names in (choices, list(map(name_of, values))):
        seen = set[str]()
        for one in names:
            if one in seen:
                raise UsageError(f"the field '{shown(name)}': two of its values are said alike, '{shown(one)}'")
            seen.add(one)
    return _Held("label", tuple(choices), tuple(values))


def _integer(name: str, own: dict[str, Any]) -> str | None:
    given = [own.get(word) for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
    if any(bound is not None and bound != int(bound) for bound in given):
        return None
    low, high, above, below = (None if bound is None else int(bound) for bound in given)
    lows = [bound for bound in (low, None if above is None else above + 1) if bound is not None]
    highs = [bound for bound in (high, None if below is None else below - 1) if bound is not None]
    least = max(lows) if lows else min([-LARGEST_INTEGER, *highs])
    most = min(highs) if highs else max([LARGEST_INTEGER, *lows])
    if least > most:
        raise UsageError(f"the field '{shown(name)}': no integer lies between its bounds")
    return integers(least, most)


def _number(name: str, own: dict[str, Any]) -> str | None:
    low, high = own.get("minimum"), own.get("maximum")
    bounds = [None if bound is None else Decimal(str(bound)) for bound in (low, high)]
    if any(bound is not None and (bound != round(bound, PLACES) or abs(bound) > LARGEST_NUMBER) for bound in bounds):
        return None
    least = Decimal(-LARGEST_NUMBER) if bounds[0] is None else bounds[0]
    most = Decimal(LARGEST_NUMBER) if bounds[1] is None else bounds[1]
    if least > most:
        raise UsageError(f"the field '{shown(name)}': no number lies between its bounds")
    return decimals(least, most)


def _text(name: str, own: dict[str, Any]) -> str:
    least = max(1, int(own.get("minLength", 1)))
    most = min(int(own.get("maxLength", max(LONGEST_TEXT, least))), MOST_CHARACTERS)
    if least > MOST_CHARACTERS:
        raise UsageError(f"the field '{shown(name)}': a text of {least:,} characters is longer than an answer can be")
    if least > most:
        raise UsageError(f"the field '{shown(name)}': no text is as long as that")
    if most == 1:
        return _VISIBLE
    inner = f"{_ANY}{{{max(0, least - 2)},{most - 2}}}{_VISIBLE}"
    return f"{_VISIBLE}({inner})?" if least == 1 else f"{_VISIBLE}{inner}"


def made_question(name: str, own: dict[str, Any], labels: tuple[str, ...] | None, *, may_be_null: bool) -> str:
    """The question about a field that has no description."""
    words = _CAPITAL.sub(" ", name).replace("_", " ").replace("-", " ").strip() or name
    kind = own.get("type")
    none = f" If there is none, say {NONE}." if may_be_null and kind != "array" else ""
    if kind == "boolean":
        return f"{words[0].upper()}{words[1:]}: yes or no?"
    if labels is not None:
        told = [label for label in labels if label != NONE] if may_be_null else list(labels)
        listed = ", ".join(told[:-1]) + f" or {told[-1]}" if len(told) > 1 else told[0]
        return f"Which {words}: {listed}?{none}" if len(listed) <= _NAMED_LABELS else f"Which {words}?{none}"
    if kind == "array":
        return f"Which {words}? Answer with a JSON list."
    number = " Answer with a number." if kind in ("integer", "number") else ""
    return f"What is the {words}?{number}{none}"
