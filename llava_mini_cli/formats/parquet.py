"""Rows as one Parquet file, which appears whole at the end or not at all.

Parquet cannot be read before its footer is written, so rows go to a temporary file beside the output,
which is synced and renamed when the run ends. An interrupted run leaves the rows it has, as a good file.
"""

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.row import COLUMNS, ColumnKind, Row

ROW_GROUP_ROWS = 4096  # rows held in memory before they are written

_ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    datetime: pa.timestamp("ms", tz="UTC"),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
}


def arrow_schema() -> pa.Schema:
    """The row's columns as an Arrow schema."""
    return pa.schema([pa.field(name, _ARROW_TYPES[kind], nullable=nullable) for name, kind, nullable in COLUMNS])


class ParquetWriter:
    """Collects rows into a temporary file; leaving the `with` block puts it in place.

    When the block is left by an `OutputError`, or without a single row, nothing is put in place and nothing stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done = Done()
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._rows: list[Row] = []
        self._wrote = False
        try:
            self._stream = self._temporary.open("xb")
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror}") from error
        self._parquet = pq.ParquetWriter(self._stream, arrow_schema(), compression="zstd")

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError` when a group of rows cannot be written."""
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist([row.as_dict() for row in self._rows], schema=arrow_schema())
        try:
            self._parquet.write_table(table)
        except OSError as error:
            raise self._failed(error) from error
        self._rows.clear()
        self._wrote = True

    def _publish(self) -> None:
        self._flush()
        try:
            self._parquet.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._temporary.replace(self._path)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write '{self._path}': {error.strerror or error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OutputError) and (self._rows or self._wrote):
                self._publish()
        finally:
            self._discard()

    def _discard(self) -> None:
        """Closes what is still open; on a full disk that fails, and there is nothing left to lose."""
        for close in (self._parquet.close, self._stream.close):
            with suppress(OSError):
                close()
        self._temporary.unlink(missing_ok=True)
