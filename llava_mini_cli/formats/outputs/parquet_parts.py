"""Parquet in parts: rows are kept in memory for a moment, then written as a small file that appears whole.

A part's name carries a number that is above those of all parts that were there when the run began, so the names tell
which of two parts is the newer one, whatever the clocks say. Streaming several files into one is here, too.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.outputs.parquet_schema import batches_of, read_file, table_of, with_digests
from llava_mini_cli.formats.row import Row
from llava_mini_cli.safe_files import check_regular, sweep, sync_folder

FLUSH_ROWS = 1000  # rows held in memory before they are written
FLUSH_SECONDS = 15.0  # the most work that a killed run loses
GROUP_ROWS = 16384  # rows of a row group, and the most that are in memory while files become one
PICTURE_GROUP_ROWS = 1024  # the same where each row holds a picture of some 10 KB

_PART = re.compile(r"part-(\d+)-.*\.parquet")


def parts_in(folder: Path) -> list[Path]:
    """The Parquet files in a folder, older ones first; one that is not named like a part is older than all parts."""
    found = (path for path in folder.glob("*.parquet") if not path.name.startswith(".") and not path.is_dir())
    return sorted(found, key=_age)


def _age(path: Path) -> tuple[int, str]:
    match = _PART.fullmatch(path.name)
    return (int(match[1]) if match else -1), path.name


class ParquetPartWriter:
    """Writes rows as parts into a folder that is there."""

    def __init__(self, folder: Path, output: Path, begin: Callable[[], pa.Schema], tag: str = "") -> None:
        """`begin` is called before the first part; `tag` is in the names of parts and of temporary files."""
        self.written: list[Path] = []
        self._folder = folder
        self._output = output  # for messages
        self._begin = begin
        self._tag = tag
        self._schema: pa.Schema | None = None
        self._number = 0
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows that belong together, and writes a part when it is time. Raises `OutputError`."""
        self._rows += rows
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows in memory as a part. Raises `OutputError`."""
        if not self._rows:
            return
        path, schema = self._next()
        data = as_parquet(self._rows, schema)
        with errors_of(self._output), whole_file(path) as stream:
            stream.write(data)
        self.written.append(path)
        self._rows.clear()
        self._flushed = time.monotonic()

    def take_in(self, prepared: Path) -> None:
        """Puts a part in place that lies, whole and synced, elsewhere on the same disk. Raises `OutputError`."""
        path, _ = self._next()
        with errors_of(self._output):
            check_regular(prepared)
            prepared.rename(path)
            sync_folder(self._folder)
        self.written.append(path)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _next(self) -> tuple[Path, pa.Schema]:
        """The path of the next part, and the schema of its rows."""
        if self._schema is None:
            self._schema = self._begin()
            self._number = max((_age(path)[0] for path in parts_in(self._folder)), default=-1)
        if not self._folder.is_dir():
            raise OutputError(f"'{self._folder}' was deleted during the run; the same command does its rows again")
        self._number += 1
        return self._folder / f"part-{self._number:06d}-{self._tag}{token_hex(4)}.parquet", self._schema


def as_parquet(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """Rows as the bytes of a file. Raises `OutputError` for a value that is not of its column's type."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for first in range(0, len(rows), FLUSH_ROWS):
            writer.write_table(table_of(rows[first : first + FLUSH_ROWS], schema))
    return buffer.getvalue().to_pybytes()


def remove_unfinished(folder: Path, tag: str = "", *, alone: bool = False) -> None:
    """Takes away what killed runs were about to write as parts; `alone`: nobody else writes into the folder."""
    sweep(folder, alone=alone)
    for path in folder.glob(f".part-*-{tag}*.parquet.tmp"):  # of older versions, which named them so
        path.unlink(missing_ok=True)


def _group_rows(schema: pa.Schema) -> int:
    return PICTURE_GROUP_ROWS if pa.binary() in schema.types else GROUP_ROWS


def write_standing(sources: Sequence[Path], marks: bytearray, schema: pa.Schema, stream: BinaryIO) -> None:
    """The marked rows of several files as one, a group of rows at a time; `marks` has a byte for each row."""
    group = _group_rows(schema)
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        waiting = schema.empty_table()
        for table in _standing(sources, marks, schema):
            waiting = pa.concat_tables([waiting, table])
            whole = waiting.num_rows - waiting.num_rows % group
            if whole:
                writer.write_table(waiting.slice(0, whole), group)
                waiting = waiting.slice(whole)
        writer.write_table(waiting, group)


def _standing(sources: Sequence[Path], marks: bytearray, schema: pa.Schema) -> Iterator[pa.Table]:
    offset = 0
    for path in sources:
        with read_file(path) as file:
            for batch in batches_of(file, _group_rows(schema)):
                own = np.frombuffer(marks, np.bool_, batch.num_rows, offset)
                offset += batch.num_rows
                yield with_digests(pa.Table.from_batches([batch]).filter(pa.array(own)), schema).cast(schema)
