"""A schema with bounds where it has none, so that an answer held to it comes to an end.

Whatever the result allows, the schema allows, too: texts and lists get a length, integers a size, texts no runs of
white space, and objects are closed unless the schema says otherwise.
"""

from typing import Any

from llava_mini_cli.formats.schema.number_patterns import LARGEST_INTEGER
from llava_mini_cli.formats.schema.schema_words import SAID_ONLY, inner_schemas
from llava_mini_cli.formats.schema.short_form import LONGEST_TEXT, MOST_ITEMS

SINGLE_SPACES = r"^([^\s\x00-\x1f\x7f-\x9f]+( [^\s\x00-\x1f\x7f-\x9f]+)*)?$"
_COMBINED = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties", "additionalProperties", "unevaluatedProperties")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SAID = SAID_ONLY - {"$schema", "$id", "id", "$anchor"}  # left out; the others say what references mean
_NOT_SAID = ("not", "if", "contains")  # schemas of values that are not the answer's own


def bounded(schema: Any) -> Any:
    """The schema with bounds; what is given stays as it is."""
    return _bounded(schema, closes=True)


def _bounded(schema: Any, *, closes: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    words = (word for word in schema if word not in _SAID and not word.startswith("x-"))
    own: dict[str, Any] = {word: _inner(word, schema[word], closes=closes) for word in words}
    if "enum" in own or "const" in own:
        return own
    if "type" not in own and "properties" in own and not any(word in own for word in _COMBINED):
        own["type"] = "object"
    kinds: Any = own.get("type")
    types: list[Any] = kinds if isinstance(kinds, list) else [kinds]
    if "string" in types and not {"pattern", "format"} & own.keys():
        own.setdefault("maxLength", max(LONGEST_TEXT, int(own.get("minLength", 0))))
        own["pattern"] = SINGLE_SPACES
    if "array" in types:
        own.setdefault("maxItems", max(MOST_ITEMS, int(own.get("minItems", 0))))
    if "integer" in types and not {"minimum", "exclusiveMinimum"} & own.keys():
        own["minimum"] = min(-LARGEST_INTEGER, own.get("maximum", own.get("exclusiveMaximum", 0)))
    if "integer" in types and not {"maximum", "exclusiveMaximum"} & own.keys():
        own["maximum"] = max(LARGEST_INTEGER, own.get("minimum", own.get("exclusiveMinimum", 0)))
    if "object" in types and closes and not any(word in own for word in _COMBINED):
        own["additionalProperties"] = False
    return own


def _inner(word: str, value: Any, *, closes: bool) -> Any:
    """The value of a word, with bounds in the schemas that it holds."""
    if not any(True for _ in inner_schemas("", {word: value})):
        return value
    closes = closes and word != "allOf"  # parts of one object, each of which would forbid the others
    if isinstance(value, list):
        return [_bounded(one, closes=closes) for one in value]
    if word in _BY_NAME:
        return {name: _bounded(one, closes=closes) for name, one in value.items()}
    return value if word in _NOT_SAID else _bounded(value, closes=closes)
