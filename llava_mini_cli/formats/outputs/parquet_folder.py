"""A folder of Parquet parts that one run, or several shards at once, write into.

Parts are never changed, but for one thing: when a run ends, rows that newer ones replace are taken out of the parts
that hold them, one part at a time.

With --overwrite the old parts stay until the run has come to its end. In case it does not, the notes of the folder say
which generations are `leaving`, so that a later run without the flag takes their parts away, and no others: a part of
another generation may also have been brought here from another folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import cast

import pyarrow as pa

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.companion import RunInfo, check_same_settings, record_in
from llava_mini_cli.formats.outputs.done import Done, RowDigest, standing
from llava_mini_cli.formats.outputs.folder_lock import HIDDEN, FolderLock
from llava_mini_cli.formats.outputs.output import Output, PartsPlace, released_on_failure
from llava_mini_cli.formats.outputs.parquet_parts import ParquetPartWriter, parts_in, remove_unfinished, write_standing
from llava_mini_cli.formats.outputs.parquet_schema import (
    arrow_schema,
    check_columns,
    digests_of,
    marks_of,
    read_file,
    record_of,
)
from llava_mini_cli.formats.outputs.prepared_parts import PreparedParts, remove_prepared
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.shard import Shard


class ParquetFolderOutput(Output):
    """Rows in a folder of parts; what other shards have written before this run began is done, too."""

    def __init__(self, folder: Path, run: RunInfo, shard: Shard | None, *, overwrite: bool, retry_errors: bool) -> None:
        arrow_schema(run, "")  # refuses now what could not be kept later
        self._lock = FolderLock(folder)
        super().__init__(Done(retry_errors=retry_errors), self._lock)
        self._folder = folder
        self._run = run
        self._overwrite = overwrite
        self._taken_in: list[Path] = []  # parts whose rows are known
        self.done.read_digests = self._read_digests
        self._leaving: set[str] = set()  # generations that one with --overwrite replaces
        self._old: list[Path] = []  # parts that go when this run has come to its end
        self._tag = f"{shard.tag}-" if shard else ""
        self._prepared: PreparedParts | None = None
        self._writer = ParquetPartWriter(folder, folder, self._begin, self._tag)
        with released_on_failure(self._lock):
            with self._lock.notes() as notes:
                self._lock.take(shard)
                remove_prepared(folder / HIDDEN, alone=self._lock.alone)
                self._generation = self._begin_beside_others(notes)
            if not overwrite:
                self._take_in_parts()

    def _begin_beside_others(self, notes: FileLock) -> str:
        """The generation of the rows to come; compares what is known of those that are there."""
        if self._overwrite:
            return token_hex(8)
        content = notes.read()
        record = record_in(content.get("run"), notes.path)
        leaving = content.get("leaving")
        self._leaving.update(map(str, cast("list[object]", leaving) if isinstance(leaving, list) else ()))
        if parts_in(self._folder) or not self._lock.alone:
            check_same_settings(record, self._run, self._folder)
        if self._lock.alone:
            with errors_of(self._folder):
                remove_unfinished(self._folder, alone=True)
        generation: str = record.get("generation") or self._generation_of_parts()
        self._note(notes, generation)
        return generation

    def _note(self, notes: FileLock, generation: str) -> None:
        leaving = {"leaving": sorted(self._leaving)} if self._leaving else {}
        notes.write({"run": self._run.record(generation)} | leaving)

    def _generation_of_parts(self) -> str:
        """The generation of the newest part, for where nobody recorded it."""
        of_parts = [_generation_of(path) for path in parts_in(self._folder)]
        return next((generation for generation in reversed(of_parts) if generation), token_hex(8))

    def _take_in_parts(self) -> None:
        """The parts of this generation, and of those that are leaving."""
        for path in parts_in(self._folder):
            generation = _generation_of(path)
            if generation in (None, self._generation):
                self._take_in(path)
            elif generation in self._leaving:
                self._old.append(path)

    def _take_in(self, path: Path) -> None:
        try:
            file = read_file(path)
        except OutputError:
            if path.exists():
                raise
            return  # another shard has ended meanwhile, and taken away what was replaced
        check_same_settings(record_of(file, path), self._run, path)
        check_columns(file, self._run, path)
        self.done.add(marks_of(file, path))
        self._taken_in.append(path)

    def _read_digests(self) -> Iterator[RowDigest]:
        """Of the rows that were there; other shards may have taken parts away meanwhile."""
        for path in self._taken_in:
            try:
                file = read_file(path)
            except OutputError:
                if path.exists():
                    raise
                continue
            yield from digests_of(file)

    def _parts(self) -> list[Path]:
        """The parts of this generation, with those that name none."""
        return [path for path in parts_in(self._folder) if _generation_of(path) in (None, self._generation)]

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError` when a part cannot be written."""
        self._writer.write([row])

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Adds rows, which get into the same part."""
        self._writer.write(rows)

    def place(self) -> PartsPlace:
        """Where others may prepare parts until this run ends."""
        self._prepared = self._prepared or PreparedParts(self._folder / HIDDEN, self._folder)
        return self._prepared.place(arrow_schema(self._run, self._generation))

    def take_in(self, name: str) -> None:
        """Puts a part in place that was prepared there."""
        assert self._prepared is not None  # somebody was told of the place
        self._writer.take_in(self._prepared.folder / name)

    def _begin(self) -> pa.Schema:
        """Before the first part of this run."""
        with errors_of(self._folder):
            remove_unfinished(self._folder, self._tag)
        if self._overwrite:  # until now the old rows counted
            self._old = parts_in(self._folder)  # no other run writes here: whatever they are, they are not ours
            self._leaving = _generations_of(self._old)
            with self._lock.notes() as notes:
                self._note(notes, self._generation)
        return arrow_schema(self._run, self._generation)

    def finish(self, error: BaseException | None) -> None:
        """Writes what is in memory, and takes out what is replaced if the run came to its end."""
        if self._prepared is not None:
            self._prepared.close()
        if not isinstance(error, OutputError):
            self._writer.flush()
        if error is None:
            self._tidy()

    def _tidy(self) -> None:
        """Takes out what newer parts and rows replace. Other shards wait with theirs meanwhile."""
        if self._lock.alone and (self._old or self._leaving):
            with self._lock.notes() as notes:
                self._remove_old(notes)
        if self.done.replaced:
            self.done.forget()  # its memory is needed now
            with self._lock.notes():
                self._take_out_replaced()

    def _remove_old(self, notes: FileLock) -> None:
        """Takes away the parts that were there before --overwrite, and then what the notes say of them."""
        with errors_of(self._folder):
            for path in self._old:
                path.unlink(missing_ok=True)
        self._leaving.clear()
        self._note(notes, self._generation)

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
                    with whole_file(path) as stream:
                        write_standing([path], own, schema, stream)


def _generation_of(path: Path) -> str | None:
    """The generation of a part; None where the part names none, or has gone meanwhile.

    Raises:
        UsageError, OutputError: as `read_file`.
    """
    try:
        return record_of(read_file(path), path).get("generation")
    except OutputError:
        if path.exists():
            raise
        return None


def _generations_of(paths: list[Path]) -> set[str]:
    """The generations of some parts; parts that are damaged or of somebody else are passed over."""
    found: set[str | None] = set()
    for path in paths:
        with suppress(UsageError, OutputError):
            found.add(_generation_of(path))
    return {generation for generation in found if generation}
