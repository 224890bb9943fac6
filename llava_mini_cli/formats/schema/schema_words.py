"""JSON Schema of strangers: read within bounds, and looked at word by word. A complaint is one line that names a place.

JSON Schema passes over words that it does not know, so that a misspelt bound would bound nothing: here it is refused.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.shown_text import for_terminal

LARGEST_SCHEMA = 1 << 20  # bytes
DEEPEST = 100  # lists and objects within each other
TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAID_ONLY = _words(  # which allow and forbid nothing
    "$schema $id id $comment $anchor $vocabulary title description default examples deprecated readOnly writeOnly "
    "contentEncoding contentMediaType contentSchema"
)
_OF_SCHEMAS = _words("properties patternProperties $defs definitions dependentSchemas")  # by name
_LISTS = _words("anyOf allOf oneOf prefixItems")
_ONE = _words(
    "items additionalItems additionalProperties propertyNames contains not if then else unevaluatedItems "
    "unevaluatedProperties"
)
_COUNTS = _words("minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains")
_NUMBERS = _words("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf")
_TEXTS = _words("$ref $dynamicRef $recursiveRef $dynamicAnchor pattern format")
_OTHERS = _words("type enum const required uniqueItems dependentRequired dependencies $recursiveAnchor")
KNOWN = SAID_ONLY | _OF_SCHEMAS | _LISTS | _ONE | _COUNTS | _NUMBERS | _TEXTS | _OTHERS
_LARGEST = 1e30  # number that is a bound
_MOST_SHOWN = 60


def parse_schema_json(text: str) -> Any:
    """What a JSON text holds. Raises `UsageError` where it is none, or names something twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for number, name in enumerate(names) if name in names[:number])
            raise UsageError(f"'{shown(twice)}' is there twice in one object")
        return found

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise UsageError(f"the number {shown(digits)} is too large")
        return value

    def constant(word: str) -> float:
        raise UsageError(f"{word} is no number of JSON")

    try:
        found = json.loads(text, object_pairs_hook=once, parse_float=number, parse_constant=constant)
    except RecursionError:
        raise UsageError(f"it is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError:
        raise UsageError("it holds a number of too many digits") from None
    return found


def _check_depth(value: Any) -> None:
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        if depth > DEEPEST:
            raise UsageError(f"it is nested deeper than {DEEPEST} levels")
        inner: list[Any] = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
        left.extend((each, depth + 1) for each in inner)


def check_words(schema: Any) -> None:
    """Raises `UsageError` for what no JSON Schema is made of, with its place."""
    _check_depth(schema)
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        place, one = left.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            raise _wrong(place, "is no schema, which is an object")
        for word, value in one.items():  # pyright: ignore[reportUnknownVariableType]
            if word not in KNOWN and not str(word).startswith("x-"):  # pyright: ignore[reportUnknownArgumentType]
                raise _wrong(place, f"'{shown(str(word))}' is no word of JSON Schema")  # pyright: ignore
            _check_word(place, word, value)  # pyright: ignore[reportUnknownArgumentType]
        left.extend(inner_schemas(place, one))


def inner_schemas(place: str, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within one, with their places."""
    for word, value in schema.items():
        here = f"{place}.{word}" if place else word
        if word in _OF_SCHEMAS:
            yield from ((f"{here}.{name}", inner) for name, inner in value.items())
        elif word in _LISTS or (word == "items" and isinstance(value, list)):
            yield from ((f"{here}[{number}]", inner) for number, inner in enumerate(value))
        elif word in _ONE:
            yield here, value


def _check_word(place: str, word: str, value: Any) -> None:
    for words, is_right, meaning in _RULES:
        if word in words and not is_right(value):
            raise _wrong(place, f"'{word}' must be {meaning}")
    if word == "properties":
        for name in value:
            check_name(name, place)


def check_name(name: str, place: str = "") -> None:
    """Raises `UsageError` for a name that no column can have."""
    if not name.strip() or for_terminal(name) != name or "\n" in name or "\t" in name or "\r" in name:
        raise _wrong(place, f"'{shown(name)}' is no name of a field: it is empty, or holds what cannot be shown")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_count(value: Any) -> bool:
    return _is_number(value) and value == int(value) and 0 <= value < 2**31


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)  # pyright: ignore


def _is_type(value: Any) -> bool:
    names: list[Any] = value if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


_RULES: tuple[tuple[Collection[str], Callable[[Any], bool], str], ...] = (
    (_COUNTS, _is_count, "a number that counts"),
    (_NUMBERS, _is_number, "a number of at most 30 digits (older drafts wrote true)"),
    (_TEXTS | {"title", "description"}, lambda value: isinstance(value, str), "a text"),
    (_OF_SCHEMAS, lambda value: isinstance(value, dict), "an object of schemas"),
    (_LISTS, lambda value: isinstance(value, list) and bool(value), "a list of schemas"),
    (["required"], _are_names, "a list of names"),
    (["enum"], lambda value: isinstance(value, list) and bool(value), "a list of values"),
    (["uniqueItems"], lambda value: isinstance(value, bool), "true or false"),
    (["type"], _is_type, f"one of {', '.join(TYPES)}, or a list of these"),
)


def _wrong(place: str, words: str) -> UsageError:
    return UsageError(f"{shown(place)}: {words}" if place else words)


def shown(text: str) -> str:
    """A stranger's word for a message."""
    text = for_terminal(text).replace("\n", " ")
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
