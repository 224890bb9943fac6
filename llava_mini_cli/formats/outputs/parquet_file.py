"""One Parquet file, `x.parquet`, that grows as `x.parquet.parts/` and becomes one file when the run ends.

Parquet cannot be read before its footer is written; parts can, each as soon as it is there. At the end the old file
and the parts are streamed into a new file that takes the old one's place, and only then do the parts go: whenever the
run is killed, the rows are in the file, in the parts, or in both, and the next run keeps one of each.
"""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

import pyarrow as pa

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.outputs.companion import Companion, RunInfo, check_same_settings
from llava_mini_cli.formats.outputs.done import Done, standing, standing_answers
from llava_mini_cli.formats.outputs.output import Store, released_on_failure
from llava_mini_cli.formats.outputs.parquet_parts import ParquetPartWriter, parts_in, remove_unfinished, write_standing
from llava_mini_cli.formats.outputs.parquet_schema import (
    arrow_schema,
    check_columns,
    digests_of,
    marks_of,
    read_file,
    record_of,
)
from llava_mini_cli.formats.row import Row
from llava_mini_cli.safe_files import make_own_folder, sweep


class ParquetFileOutput(Store):
    """Rows in one Parquet file, locked from the beginning and untouched until the first row."""

    def __init__(self, path: Path, run: RunInfo, *, overwrite: bool, retry_errors: bool) -> None:
        arrow_schema(run, "")  # refuses now what could not be kept later
        self._companion = Companion(path)
        super().__init__(Done(retry_errors=retry_errors), self._companion)
        self._path = path
        self._run = run
        self._overwrite = overwrite
        self._folder = path.with_name(f"{path.name}.parts")
        self._writer = ParquetPartWriter(self._folder, path, self._begin)
        self._sources: list[Path] = []  # files whose rows are there already, the oldest first
        self.done.read_digests = lambda: chain.from_iterable(digests_of(read_file(path)) for path in self._sources)
        with released_on_failure(self._companion):
            self._check_folder()
            self._generation = token_hex(8) if overwrite else self._look_at_what_is_there()
            self._identity = _identity(path)

    def _check_folder(self) -> None:
        """Raises `OutputError` where the folder of parts is a link or a file: its parts are to be removed one day."""
        with errors_of(self._folder):
            if os.path.lexists(self._folder):
                make_own_folder(self._folder)

    def _look_at_what_is_there(self) -> str:
        """Takes in the rows of the file and of the parts; returns their generation.

        After a run with --overwrite that did not come to its end, the parts are of a newer generation than the file.
        """
        files = [path for path in (self._path, *parts_in(self._folder)) if path.exists()]
        records = {path: record_of(read_file(path), path) for path in files}
        of_files = [record["generation"] for record in records.values() if record]
        generation: str = self._companion.record.get("generation") or (of_files or [token_hex(8)])[-1]
        for path, record in records.items():
            if record and record["generation"] != generation:
                continue
            self._take_in(path, self._companion.record or record)
        return generation

    def _take_in(self, path: Path, record: dict[str, Any]) -> None:
        file = read_file(path)
        check_same_settings(record, self._run, self._path)
        check_columns(file, self._run, path)
        self.done.add(marks_of(file, path))
        self._sources.append(path)

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError` when a part cannot be written."""
        self._writer.write([row])

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Adds rows, which get into the same part."""
        self._writer.write(rows)

    def keep(self) -> None:
        """Writes a part of the rows that are held back."""
        self._writer.flush()

    def _begin(self) -> pa.Schema:
        """Before the first part: records what the run is, and clears the way if the output is to be overwritten."""
        with errors_of(self._path):
            make_own_folder(self._folder)
            if self._overwrite:
                for part in parts_in(self._folder):
                    part.unlink()
            remove_unfinished(self._folder, alone=True)
        self._companion.save(self._run.record(self._generation))
        return arrow_schema(self._run, self._generation)

    def finish(self, error: BaseException | None) -> None:
        """Writes what is in memory, and all as one file if the run came to its end; the lock is still held."""
        if not isinstance(error, OutputError):
            self._writer.flush()
        if error is None:
            self._become_one()
            sweep(self._path.parent)

    def copy_answers(self, stream: BinaryIO) -> None:
        """Writes the rows that stand and are no errors as one file."""
        sources = [path for path in (*self._sources, *self._writer.written) if path.exists()] or [self._path]
        marks = standing_answers(chain.from_iterable(marks_of(read_file(path), path) for path in sources))
        write_standing(sources, marks, arrow_schema(self._run, self._generation), stream)

    def _become_one(self) -> None:
        """Everything that stands into one file; then the parts go."""
        parts = [path for path in (*self._sources, *self._writer.written) if path.parent == self._folder]
        if parts or self.done.replaced:
            self.done.forget()  # its memory is needed now
            self._write_whole()
        if parts or (self._folder.exists() and not self._overwrite):
            self._remove_parts()

    def _write_whole(self) -> None:
        if _identity(self._path) != self._identity:
            raise OutputError(f"'{self._path}' was deleted or replaced during the run; its rows are in {self._folder}")
        sources = [*self._sources, *self._writer.written]
        marks = standing(chain.from_iterable(marks_of(read_file(path), path) for path in sources))
        schema = arrow_schema(self._run, self._generation)
        self._companion.save(self._run.record(self._generation))
        with errors_of(self._path), whole_file(self._path) as new:
            write_standing(sources, marks, schema, new)

    def _remove_parts(self) -> None:
        with errors_of(self._folder):
            for part in parts_in(self._folder):
                part.unlink()
            remove_unfinished(self._folder, alone=True)
            self._folder.rmdir()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, which tell a file from another one at the same path; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
