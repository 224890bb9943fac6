"""--schema: a file or a text, JSON Schema or the short form -> what is asked for. Every complaint is one line."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llava_mini_cli.config import Grammar, SchemaWay
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import AnswerSchema
from llava_mini_cli.formats.column_types import RowFields, StructOf
from llava_mini_cli.formats.schema.bounded_schema import bounded
from llava_mini_cli.formats.schema.flat_fields import NotFlat, flat_fields
from llava_mini_cli.formats.schema.inner_refs import resolved
from llava_mini_cli.formats.schema.schema_columns import column_type
from llava_mini_cli.formats.schema.schema_words import LARGEST_SCHEMA, check_words, parse_schema_json, shown
from llava_mini_cli.formats.schema.short_form import from_short_form
from llava_mini_cli.paths import is_file, is_there

_FILES = (".json", ".txt", ".schema")


def read_schema(value: str, way: SchemaWay | None = None) -> AnswerSchema:
    """What is asked for, from the value of --schema: the name of a file, or the schema itself.

    Args:
        way: None: field by field where the schema is flat, otherwise as one JSON text.

    Raises:
        UsageError: it cannot be read, is no schema, or cannot be asked for in this way.
    """
    try:
        return answer_schema(_parsed(_text_of(value)), way)
    except UsageError as error:
        raise UsageError(f"--schema '{shown(value)}': {error}") from None


def _text_of(value: str) -> str:
    if value.lstrip().startswith("{") or "\n" in value or not is_there(value):
        if value.endswith(_FILES) and not value.lstrip().startswith("{") and " " not in value.strip():
            raise UsageError("there is no such file")
        return value
    if not is_file(value):
        raise UsageError("it is no file")
    try:
        with Path(value).open("rb") as stream:
            content = stream.read(LARGEST_SCHEMA + 1)
    except OSError as error:
        raise UsageError(f"cannot read it: {(error.strerror or str(error)).lower()}") from None
    if len(content) > LARGEST_SCHEMA:
        raise UsageError(f"it is larger than {LARGEST_SCHEMA >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("it is not valid UTF-8") from None


def _parsed(text: str) -> Any:
    if len(text) > LARGEST_SCHEMA:
        raise UsageError(f"it is larger than {LARGEST_SCHEMA >> 20} MiB")
    begin = text.lstrip()[:1]
    return parse_schema_json(text) if begin in ("{", "[", '"') else from_short_form(text)


def answer_schema(schema: Any, way: SchemaWay | None = None) -> AnswerSchema:
    """What is asked for of a JSON Schema, or of the short form as a text. Raises `UsageError`."""
    if isinstance(schema, str):
        schema = from_short_form(schema)
    check_words(schema)
    if not isinstance(schema, dict):
        raise UsageError("it is no object, so that anything would do")
    try:
        text = json.dumps(schema, ensure_ascii=False)
        digest = text.encode()
    except UnicodeEncodeError:
        raise UsageError("it is not valid Unicode") from None
    root: dict[str, Any] = resolved(schema, schema)
    if way != "json":
        try:
            fields = flat_fields(schema)
        except NotFlat as error:
            if way == "fields":
                raise UsageError(f"{error}; leave --schema-by fields out, or give json") from None
        else:
            types = StructOf(tuple((name, column_type(one, schema)) for name, one in root["properties"].items()))
            columns = RowFields(types, tuple(one.name for one in fields if one.reading == "label"))
            return AnswerSchema("fields", _digest(digest, "fields"), columns, fields)
    kind = column_type(root, schema)
    columns = RowFields(kind if isinstance(kind, StructOf) else None)
    grammar = Grammar("json_schema", json.dumps(bounded(schema), ensure_ascii=False))
    return AnswerSchema("json", _digest(digest, "json"), columns, (), _instruction(root), grammar)


def _digest(schema: bytes, way: SchemaWay) -> str:
    return f"{blake2b(schema, digest_size=8).hexdigest()} by {way}"


def _instruction(root: dict[str, Any]) -> str:
    """What is asked for the whole as JSON: its description, or the names of its fields with theirs."""
    if root.get("description", "").strip():
        return root["description"].strip()
    properties: dict[str, Any] = root.get("properties") or {}
    told = [(name, one.get("description") if isinstance(one, dict) else None) for name, one in properties.items()]
    hints = [f"{name} ({hint.strip()})" if hint and hint.strip() else name for name, hint in told]
    return f"Answer as JSON: {', '.join(hints)}." if hints else "Answer as JSON."
