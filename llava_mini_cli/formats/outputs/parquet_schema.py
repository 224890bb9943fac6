"""The row's columns as Arrow has them, and the record of a run in the Parquet files that it wrote."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.column_types import ColumnType, ListOf, RowFields
from llava_mini_cli.formats.outputs.companion import ANEW, RunInfo, record_in
from llava_mini_cli.formats.outputs.done import KEY_PATTERN, RowDigest, RowMark, end_of
from llava_mini_cli.formats.outputs.known_contents import DIGEST_PATTERN
from llava_mini_cli.formats.row import COLUMNS, PARTS, PICTURED, THUMBNAIL, ColumnKind, KeptColumn, Row
from llava_mini_cli.safe_files import check_regular

RECORD = b"llava-mini"  # key of the record, as JSON, in a file's metadata
_DIGEST = re.compile(DIGEST_PATTERN)
MARK_ROWS = 1 << 16  # rows of which the keys are read at once

_ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    datetime: pa.timestamp("ms", tz="UTC"),
    # A map would say it better, but Hugging Face datasets cannot read a file with one.
    dict[str, float]: pa.list_(pa.struct([("choice", pa.string()), ("probability", pa.float64())])),
}
_PART = [("start", pa.float64()), ("end", pa.float64()), ("box", pa.list_(pa.int64())), ("weight", pa.float64())]
_PARTS: dict[str, pa.DataType] = {
    PARTS: pa.list_(pa.struct(_PART)),
    PICTURED: pa.list_(pa.struct([*_PART, (THUMBNAIL, pa.binary())])),
}
_DICTIONARIES = [column.name for column in COLUMNS if column.kind == dict[str, float]]


def arrow_schema(run: RunInfo, generation: str) -> pa.Schema:
    """The row's columns, those of a schema and those kept from the input, with the record of the run."""
    own = [pa.field(name, _ARROW_TYPES[kind], nullable=nullable) for name, kind, nullable in COLUMNS]
    kept = [pa.field(column.name, _type_of(column)) for column in (*run.kept, *run.asked)]
    metadata: dict[bytes | str, bytes | str] = {RECORD: json.dumps(run.record(generation)).encode()}
    return pa.schema([*own, *_field_columns(run.fields), *kept], metadata=metadata)


def _field_columns(fields: RowFields | None) -> list[Any]:
    """The columns of --schema."""
    if fields is None:
        return []
    columns: list[Any] = [pa.field("fields", _arrow_type(fields.types))] if fields.types else []
    if fields.labelled:
        labels = [pa.field(name, _ARROW_TYPES[dict[str, float]]) for name in fields.labelled]
        columns.append(pa.field("field_probs", pa.struct(labels)))
    return columns


def _arrow_type(kind: ColumnType) -> pa.DataType:
    if isinstance(kind, str):
        return pa.type_for_alias(kind)  # pyright: ignore
    if isinstance(kind, ListOf):
        return pa.list_(_arrow_type(kind.item))
    return pa.struct([pa.field(name, _arrow_type(member)) for name, member in kind.members])


def _type_of(column: KeptColumn) -> pa.DataType:
    if column.kind in _PARTS:
        return _PARTS[column.kind]
    try:
        return pa.type_for_alias(column.kind)  # pyright: ignore
    except ValueError as error:
        message = f"the column '{column.name}' is of type {column.kind}, which cannot be kept in Parquet: use JSONL"
        raise UsageError(message) from error


def table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Raises `OutputError` for a value that is not of its column's type."""
    try:
        return pa.Table.from_pylist([_with_lists(row) for row in rows], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OutputError(f"a kept column holds what its type cannot: {error}") from error


def _with_lists(row: Row) -> dict[str, Any]:
    """The columns, with dictionaries as lists of their items."""
    columns = row.as_dict()
    for name in _DICTIONARIES:
        if columns[name] is not None:
            columns[name] = _items(columns[name])
    if columns.get("field_probs") is not None and "field_probs" in row.more:
        columns["field_probs"] = {name: _items(probs) for name, probs in columns["field_probs"].items()}
    return columns


def _items(probs: dict[str, float]) -> list[dict[str, Any]]:
    return [{"choice": choice, "probability": value} for choice, value in probs.items()]


def read_file(path: Path) -> pq.ParquetFile:
    """An open Parquet file. Raises `UsageError` for what is none, `OutputError` where it cannot be read."""
    try:
        check_regular(path)
        return pq.ParquetFile(path)
    except OSError as error:
        raise OutputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, pa.ArrowException) as error:
        raise UsageError(f"'{path}' is not a whole Parquet file: {ANEW}") from error


def record_of(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """The record of the run that wrote the file; empty where the file has none. Raises `UsageError` for another one."""
    text = (file.schema_arrow.metadata or {}).get(RECORD)
    try:
        return record_in(json.loads(text) if text else None, path)
    except (ValueError, RecursionError):
        return record_in(text, path)


def check_columns(file: pq.ParquetFile, run: RunInfo, path: Path) -> None:
    """Raises `UsageError` where the file does not have the columns of this run's rows."""
    schema = arrow_schema(run, "")
    there = with_digests(file.schema_arrow.empty_table(), schema)
    if there.column_names == schema.names:
        try:
            there.cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
        else:
            return
    raise UsageError(f"'{path}' holds other columns: {ANEW}")


def with_digests(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the column `digest`, null where a file was written before there was one."""
    place = schema.get_field_index("digest")
    if "digest" in rows.column_names or place > rows.num_columns:
        return rows
    return rows.add_column(place, "digest", pa.nulls(len(rows), pa.string()))


def digests_of(file: pq.ParquetFile) -> Iterator[RowDigest]:
    """The key and the digest of each row that has one."""
    if "digest" not in file.schema_arrow.names:
        return
    for batch in batches_of(file, MARK_ROWS, ["fingerprint", "digest"]):
        columns: list[Any] = [batch.column(name) for name in ("fingerprint", "digest")]
        for key, digest in zip(*(column.to_pylist() for column in columns), strict=True):
            if digest is not None and _DIGEST.fullmatch(digest):
                yield key, digest


def batches_of(file: pq.ParquetFile, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, so many at a time."""
    return file.iter_batches(rows, columns=columns)  # pyright: ignore[reportUnknownMemberType]


def marks_of(file: pq.ParquetFile, path: Path) -> Iterator[RowMark]:
    """The key of each row and its end. Raises `UsageError` for rows that are not ours."""
    names = ["fingerprint", "status", "error_type"]
    for batch in batches_of(file, MARK_ROWS, names):
        columns: list[Any] = [batch.column(name) for name in names]
        if not _all_match(columns[0], f"^{KEY_PATTERN}$"):
            raise UsageError(f"'{path}' holds rows that llava-mini did not write: {ANEW}")
        keys, states, kinds = (column.to_pylist() for column in columns)
        yield from zip(keys, map(end_of, states, kinds), strict=True)


def _all_match(column: Any, pattern: str) -> bool:
    """True if a column of text has no nulls and every value matches."""
    compute: Any = pc  # whose types are partly unknown
    return not column.null_count and compute.all(compute.match_substring_regex(column, pattern), min_count=0).as_py()
