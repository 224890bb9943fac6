"""Ten JSON Schemas that end, for the tests and the benchmark of answers that are held to them."""

from typing import Any


def _closed(properties: dict[str, Any], required: str | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


_PLACE = _closed({name: {"type": "integer", "minimum": 0, "maximum": 999} for name in "xy"})

TEN_SCHEMAS: dict[str, Any] = {
    "flat": _closed(
        {
            "shape": {"enum": ["circle", "square", "cross"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
            "dark": {"type": "boolean"},
            "note": {"type": "string", "maxLength": 12},
        }
    ),
    "optional": _closed(
        {"a": {"type": "string", "maxLength": 4}, "b": {"type": ["integer", "null"], "minimum": -99, "maximum": 99}}, ""
    ),
    "list": {"type": "array", "items": {"enum": ["left", "right", 3, None]}, "minItems": 1, "maxItems": 4},
    "nested": {
        **_closed(
            {
                "place": {"$ref": "#/$defs/place"},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
            }
        ),
        "$defs": {"place": _PLACE},
    },
    "union": {"anyOf": [{"type": "string", "maxLength": 3}, _closed({"k": {"const": "v"}})]},
    "number": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.001},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "letters": {"type": "string", "minLength": 2, "maxLength": 5},
    "text": {"const": 'ä "quoted" 漢\n'},
}
