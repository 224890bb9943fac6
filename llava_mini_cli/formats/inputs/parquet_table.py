"""Parquet tables, one file or a folder of parts, by batches of rows and only the columns that are asked for."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_mini_cli.errors import PASSING_KINDS, UsageError, first_line, kind_of
from llava_mini_cli.formats.inputs.table import TableRow, check_width, reading_error
from llava_mini_cli.plain_files import open_plain

BATCH_ROWS = 4096
BATCH_ROWS_WITH_BYTES = 64  # of columns that hold pictures
_compute: Any = pc
_tests: Any = pa.types
_MOST_DECODED = 1 << 24  # bytes of one column of a batch that are there more than once if need be; it is quicker
_OWN_KINDS: dict[pa.DataType, str] = {
    pa.bool_(): "bool",
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()), "int64"),
    **dict.fromkeys((pa.float16(), pa.float32(), pa.float64()), "float64"),
}


class ParquetTable:
    """A table of one or several files with the columns of the first; a part that lacks one has nulls in it.

    Raises:
        UsageError: the first file cannot be read, or has two columns of one name.
    """

    unit = "row"

    def __init__(self, paths: Sequence[str], name: str, folder: str) -> None:
        self.path, self.name, self.folder = paths[0], name, folder
        self._paths = paths
        try:
            os.close(open_plain(paths[0]))
            types = _types(pq.read_schema(paths[0]))  # pyright: ignore[reportUnknownMemberType]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UsageError(reading_error(name, error)) from None
        check_width(types, name)
        self.columns = tuple(types)
        self._kinds = {name: _OWN_KINDS.get(kind, "string") for name, kind in types.items()}

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """Numbers and truth values keep their type (in 64 bits); everything else is text, nested values as JSON."""
        return {column: self._kinds[column] for column in columns}

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Each row's values of `columns`. Where a part cannot be read on, one bad row says so and the next begins.

        A row with a value that Python cannot hold, such as a text that is no UTF-8, is a bad row by itself. Raises
        `OSError` behind the last row where a part could not be read for a reason of the moment.
        """
        number, passing = 0, None
        for path in self._paths:
            begin = number
            try:
                with _opened(path, columns) as file:
                    for batch in _batches(file, columns):
                        for number, (values, problem) in enumerate(_rows(batch, columns), number + 1):  # noqa: B020
                            yield number, values, problem
                    number = begin + file.metadata.num_rows
            except (OSError, ValueError, pa.ArrowException) as error:
                if isinstance(error, OSError) and kind_of(error) in PASSING_KINDS:
                    passing = error
                else:
                    yield number + 1, (), reading_error(path, error)
        if passing is not None:
            raise passing


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The types of the columns by name. Raises `ValueError` where two have one name, or one has no valid name."""
    types: dict[str, pa.DataType] = {field.name: field.type for field in schema}  # pyright: ignore
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ValueError(f"it has two columns named '{twice[0]}'")
    return types


def _opened(path: str, columns: Sequence[str]) -> pq.ParquetFile:
    """A file whose texts and bytes stay as they lie in it: each once, though a million rows may hold the same."""
    os.close(open_plain(path))
    types = _types(pq.read_schema(path))  # pyright: ignore[reportUnknownMemberType]
    texts = [text for column in columns if column in types for text in _texts_of(column, types[column])]
    return pq.ParquetFile(path, read_dictionary=texts)


def _texts_of(name: str, kind: Any) -> list[str]:
    """A column, or those of its fields, that hold texts or bytes."""
    if _tests.is_struct(kind):  # as Hugging Face datasets store pictures
        return [f"{name}.{field.name}" for field in kind if _is_text(field.type)]
    return [name] if _is_text(kind) else []


def _is_text(kind: pa.DataType) -> bool:
    tests = (_tests.is_string, _tests.is_large_string, _tests.is_binary, _tests.is_large_binary)
    return any(is_kind(kind) for is_kind in tests)


def _batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    types = _types(file.schema_arrow)
    there = [column for column in columns if column in types]
    size = BATCH_ROWS_WITH_BYTES if any(_holds_bytes(types[column]) for column in there) else BATCH_ROWS
    if not there:  # any other: what a file says of its number of rows alone may be any number
        there = list(types)[:1]
    if not there:
        raise ValueError("it has no columns")
    yield from file.iter_batches(size, columns=there, use_threads=False)  # pyright: ignore[reportUnknownMemberType]


def _holds_bytes(kind: Any) -> bool:
    if _tests.is_dictionary(kind):
        kind = kind.value_type
    return _tests.is_binary(kind) or _tests.is_large_binary(kind) or _tests.is_struct(kind)


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[Sequence[object], str | None]]:
    """The rows of a batch, with what is wrong with them."""
    try:
        lists = [_values(batch, column) for column in columns]
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            yield _row(batch.slice(place, 1), columns)
        return
    for values in zip(*lists, strict=True):
        yield values, None


def _row(row: pa.RecordBatch, columns: Sequence[str]) -> tuple[Sequence[object], str | None]:
    """A batch of one row, read by itself."""
    values: list[object] = []
    for column in columns:
        try:
            values += _values(row, column)
        except UnicodeDecodeError:
            return (), f"column '{column}' is not valid UTF-8"
        except (ValueError, OverflowError) as error:
            return (), f"column '{column}' holds what cannot be read: {first_line(error)}"
    return values, None


def _values(batch: pa.RecordBatch, column: str) -> list[object]:
    if column not in batch.schema.names:
        return [None] * batch.num_rows
    return _listed(batch.column(column))


def _listed(values: Any) -> list[object]:
    """The values of an array; texts and bytes that lie in it once are there once."""
    kind: Any = values.type
    if _tests.is_struct(kind) and any(_tests.is_dictionary(field.type) for field in kind):
        fields = {field.name: _listed(values.field(place)) for place, field in enumerate(kind)}
        rows = (dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True))
        return [row if is_there else None for row, is_there in zip(rows, values.is_valid().to_pylist(), strict=True)]
    if not _tests.is_dictionary(kind) or not _is_text(kind.value_type):
        return values.to_pylist()
    lengths = _compute.binary_length(values.dictionary)
    if (_compute.sum(lengths.take(values.indices)).as_py() or 0) <= _MOST_DECODED:
        return values.dictionary_decode().to_pylist()
    words = values.dictionary.to_pylist()
    return [None if place is None else words[place] for place in values.indices.to_pylist()]
