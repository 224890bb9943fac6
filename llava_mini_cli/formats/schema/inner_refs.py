"""References within a schema, followed; and what of a schema may be null."""

from typing import Any
from urllib.parse import unquote

from llava_mini_cli.formats.schema.schema_words import SAID_ONLY

_MOST_STEPS = 20
_BESIDE = SAID_ONLY | {"$defs", "definitions"}  # words that take nothing from what stands beside them


def resolved(schema: Any, root: Any) -> Any:
    """A schema, or the one that it only refers to, with what is said of it here.

    It stays as it is where a reference cannot be followed, or stands beside words that narrow what it refers to.
    """
    for _ in range(_MOST_STEPS):
        if not isinstance(schema, dict):
            return schema
        own: dict[str, Any] = schema
        only = own.get("allOf")
        if isinstance(only, list) and len(only) == 1 and isinstance(only[0], dict):
            word, target = "allOf", only[0]
        else:
            word, target = "$ref", _target(own.get("$ref"), root)
        rest = _rest(own, word)
        if not isinstance(target, dict) or rest is None:
            return own
        schema = {**target, **rest}
    return schema


def _rest(schema: dict[str, Any], *words: str) -> dict[str, Any] | None:
    """What a schema says besides some words; None where it is more than what is said about it."""
    rest = {word: value for word, value in schema.items() if word not in words}
    return rest if rest.keys() <= _BESIDE else None


def _target(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for step in filter(None, unquote(reference[1:]).split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or step not in found:
            return None
        found = found[step]
    return found


def without_null(schema: dict[str, Any], root: Any) -> tuple[dict[str, Any], bool]:
    """The schema of the values that are not null, and whether there may be null. References are followed."""
    schema = resolved(schema, root)
    options = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(options, list):
        every = [resolved(one, root) for one in options]
        others = [one for one in every if not (isinstance(one, dict) and one.get("type") == "null")]
        rest = _rest(schema, "anyOf", "oneOf")
        if len(others) == 1 and isinstance(others[0], dict) and rest is not None:
            return {**others[0], **rest}, len(others) < len(every)
        return schema, False
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        rest = [one for one in kinds if one != "null"]
        kind = {"type": rest[0] if len(rest) == 1 else rest} if rest else {"type": "null"}
        return {**schema, **kind}, "enum" not in schema or None in schema["enum"]
    return schema, False
