"""A folder of Parquet parts that one run, or several shards at once, write into.

Parts are never changed, but for one thing: when a run ends, rows that newer ones replace are taken out of the parts
that hold them, one part at a time.
"""

from itertools import chain
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.companion import RunInfo, check_same_settings
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.done import Done, standing
from llava_mini_cli.formats.folder_lock import FolderLock
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.parquet_parts import PartWriter, parts_in, remove_unfinished, write_standing
from llava_mini_cli.formats.parquet_schema import arrow_schema, check_columns, marks_of, read_file, record_of
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.shard import Shard


class ParquetFolderOutput:
    """Rows in a folder of parts; what other shards have written before this run began is done, too."""

    def __init__(self, folder: Path, run: RunInfo, shard: Shard | None, *, overwrite: bool, retry_errors: bool) -> None:
        arrow_schema(run, "")  # refuses now what could not be kept later
        self.done = Done(retry_errors=retry_errors)
        self._folder = folder
        self._run = run
        self._overwrite = overwrite
        self._tag = f"{shard.tag}-" if shard else ""
        self._writer = PartWriter(folder, folder, self._begin, self._tag)
        self._lock = FolderLock(folder)
        try:
            with self._lock.notes() as notes:
                self._lock.take(shard)
                self._generation = self._begin_beside_others(notes)
            for path in [] if overwrite else self._parts():
                self._take_in(path)
        except BaseException:
            self._lock.release()
            raise

    def _begin_beside_others(self, notes: FileLock) -> str:
        """The generation of the rows to come; compares what is known of those that are there."""
        if self._overwrite:
            return token_hex(8)
        record: dict[str, Any] = notes.read().get("run", {})
        if parts_in(self._folder) or not self._lock.alone:
            check_same_settings(record, self._run, self._folder)
        if self._lock.alone:
            with errors_of(self._folder):
                remove_unfinished(self._folder)
        generation: str = record.get("generation") or self._generation_of_parts()
        notes.write({"run": self._run.record(generation)})
        return generation

    def _generation_of_parts(self) -> str:
        """That of the newest part, where nobody recorded it."""
        of_parts = [record_of(read_file(path)) for path in parts_in(self._folder)]
        return next((record["generation"] for record in reversed(of_parts) if record), token_hex(8))

    def _take_in(self, path: Path) -> None:
        try:
            file = read_file(path)
        except OutputError:
            if path.exists():
                raise
            return  # another shard has ended meanwhile, and each of its rows was replaced
        check_same_settings(record_of(file), self._run, path)
        check_columns(file, self._run, path)
        self.done.add(marks_of(file, path))

    def _parts(self) -> list[Path]:
        """The parts with rows of this generation; those of another one are on their way out."""
        records = ((path, record_of(read_file(path))) for path in parts_in(self._folder))
        return [path for path, record in records if not record or record["generation"] == self._generation]

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError` when a part cannot be written."""
        self._writer.write(row)

    def _begin(self) -> pa.Schema:
        """Before the first part of this run."""
        with errors_of(self._folder):
            remove_unfinished(self._folder, self._tag)
        if self._overwrite:  # until now the old rows counted
            with self._lock.notes() as notes:
                notes.write({"run": self._run.record(self._generation)})
        return arrow_schema(self._run, self._generation)

    def release(self) -> None:
        """Lets the lock go and leaves everything else as it is."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OutputError):
                self._writer.flush()
            if error is None:
                self._tidy()
        finally:
            self._lock.release()

    def _tidy(self) -> None:
        """Takes out what newer rows replace. Other shards wait with theirs meanwhile."""
        if self._overwrite and self._writer.written:
            ours = set(self._parts())
            with errors_of(self._folder):
                for path in parts_in(self._folder):
                    if path not in ours:
                        path.unlink()
        if self.done.replaced:
            self.done.forget()  # its memory is needed now
            with self._lock.notes():
                self._take_out_replaced()

    def _take_out_replaced(self) -> None:
        parts = self._parts()
        marks = standing(chain.from_iterable(marks_of(read_file(path), path) for path in parts))
        schema = arrow_schema(self._run, self._generation)
        offset = 0
        for path in parts:
            count = read_file(path).metadata.num_rows
            own = marks[offset : offset + count]
            offset += count
            with errors_of(path):
                if not any(own):
                    path.unlink()
                elif not all(own):
                    with whole_file(path, path.with_name(f".{path.name}.tmp")) as stream:
                        write_standing([path], own, schema, stream)
