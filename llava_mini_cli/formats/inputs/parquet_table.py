"""Parquet tables, one file or a folder of parts, by batches of rows and only the columns that are asked for."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.table import TableRow, reading_error

BATCH_ROWS = 4096
BATCH_ROWS_WITH_BYTES = 64  # of columns that hold pictures
_OWN_KINDS: dict[pa.DataType, str] = {
    pa.bool_(): "bool",
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()), "int64"),
    **dict.fromkeys((pa.float16(), pa.float32(), pa.float64()), "float64"),
}


class ParquetTable:
    """A table of one or several files with the columns of the first; a part that lacks one has nulls in it.

    Raises:
        UsageError: the first file cannot be read.
    """

    unit = "row"

    def __init__(self, paths: Sequence[str], name: str, folder: str) -> None:
        self.path, self.name, self.folder = paths[0], name, folder
        self._paths = paths
        try:
            schema = pq.read_schema(paths[0])  # pyright: ignore[reportUnknownMemberType]
        except (OSError, pa.ArrowException) as error:
            raise UsageError(reading_error(name, error)) from None
        self.columns = tuple(schema.names)
        self._kinds = {name: _OWN_KINDS.get(kind, "string") for name, kind in _types(schema).items()}

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """Numbers and truth values keep their type (in 64 bits); everything else is text, nested values as JSON."""
        return {column: self._kinds[column] for column in columns}

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Each row's values of `columns`. Where a part cannot be read on, one bad row says so and the next begins."""
        number = 0
        for path in self._paths:
            begin = number
            try:
                with pq.ParquetFile(path) as file:
                    for batch in _batches(file, columns):
                        lists = [_values(batch, column) for column in columns]
                        for number, values in enumerate(zip(*lists, strict=True), number + 1):  # noqa: B020
                            yield number, values, None
                    number = begin + file.metadata.num_rows
            except (OSError, pa.ArrowException) as error:
                yield number + 1, (), reading_error(path, error)


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {name: schema.field(name).type for name in schema.names}  # pyright: ignore


def _batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    types = _types(file.schema_arrow)
    there = [column for column in columns if column in types]
    size = BATCH_ROWS_WITH_BYTES if any(_holds_bytes(types[column]) for column in there) else BATCH_ROWS
    yield from file.iter_batches(size, columns=there, use_threads=False)  # pyright: ignore[reportUnknownMemberType]


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)


def _values(batch: pa.RecordBatch, column: str) -> list[object]:
    if column not in batch.schema.names:
        return [None] * batch.num_rows
    return batch.column(column).to_pylist()  # pyright: ignore
