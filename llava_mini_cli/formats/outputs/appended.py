"""An output that grows a whole record at a time: JSON lines and CSV.

Each row is written as soon as it is there, so that others can read along. A record that was cut short, by a full disk
or a killed run, is cut off again. Records that newer ones replace are taken out when a run ends. Knows nothing of
what a record looks like: that is the format's.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Protocol, Self

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.outputs.companion import ANEW, Companion, RunInfo, check_same_settings
from llava_mini_cli.formats.outputs.done import Done, RowDigest, RowMark, place_of, standing, standing_answers
from llava_mini_cli.formats.outputs.output import Store, released_on_failure
from llava_mini_cli.formats.row import Row
from llava_mini_cli.safe_files import is_at, open_regular, sweep


class RecordFormat(Protocol):
    """The way in which a row is written and known again."""

    @property
    def header(self) -> bytes:
        """The bytes that the file begins with."""
        ...

    def like(self, first: bytes) -> Self:
        """The format of a file with this first line: one that was begun before rows had digests goes on without."""
        ...

    def encode(self, row: Row) -> bytes: ...

    def split(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The whole records; a last one that was cut short is left out."""
        ...

    def mark(self, record: bytes) -> RowMark:
        """Raises `ValueError` for what is no row of ours."""
        ...

    def digest(self, record: bytes) -> RowDigest | None:
        """None for a row without one."""
        ...


class AppendedOutput(Store):
    """Rows in a file of their own, locked from the beginning and untouched until the first row."""

    def __init__(self, path: Path, form: RecordFormat, run: RunInfo, *, overwrite: bool, retry_errors: bool) -> None:
        self._companion = Companion(path)
        super().__init__(Done(retry_errors=retry_errors), self._companion)
        self._path = path
        self._form = form
        self._run = run
        self._overwrite = overwrite
        self._stream: BinaryIO | None = None  # None until the first row
        self._whole = 0  # bytes of whole records in the file, the header with them
        with released_on_failure(self._companion):
            self._look_at_what_is_there()

    def _look_at_what_is_there(self) -> None:
        if self._overwrite or not self._path.exists():
            return
        with errors_of(self._path), self._reading() as stream:
            self._form = self._form.like(stream.readline())
            stream.seek(0)
            self.done.add(self._marks(stream))
            if not len(self.done) and not self._companion.record and os.fstat(stream.fileno()).st_size > self._whole:
                # Only a run of ours leaves a row half-written, and it has said so beside the file before.
                raise UsageError(f"'{self._path}' was not written by llava-mini; {ANEW}")
        there = self._whole
        self.done.read_digests = lambda: self._read_digests(there)
        if len(self.done):
            check_same_settings(self._companion.record, self._run, self._path)

    def _marks(self, stream: BinaryIO) -> Iterator[RowMark]:
        """The mark of each whole record. The bytes of whole answers are counted: another one goes."""
        header = stream.read(len(self._form.header))
        if header != self._form.header:
            if self._form.header.startswith(header):
                return  # empty, or a header that was cut short
            raise UsageError(f"'{self._path}' holds other columns: {ANEW}")
        self._whole, begun = len(header), 0
        for number, record in enumerate(self._form.split(stream), 1):
            try:
                mark = self._form.mark(record)
            except ValueError as error:
                raise UsageError(f"'{self._path}', record {number}: not written by llava-mini; {ANEW}") from error
            begun += len(record)
            _, place, of = place_of(mark[0])
            if place == of:
                self._whole, begun = self._whole + begun, 0
            yield mark

    def _reading(self) -> BinaryIO:
        return open(open_regular(self._path), "rb")  # noqa: PTH123

    def _read_digests(self, end: int) -> Iterator[RowDigest]:
        """Of the rows up to a place in the file, which may grow meanwhile."""
        with errors_of(self._path), self._reading() as stream:
            place = len(stream.read(len(self._form.header)))
            for record in self._form.split(stream):
                place += len(record)
                if place > end:
                    return
                digest = self._form.digest(record)
                if digest is not None:
                    yield digest

    def write(self, row: Row) -> None:
        """Appends a row. Raises `OutputError` when it cannot be written; then nothing of it is in the file."""
        self.write_answer([row])

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Appends rows at once."""
        stream = self._stream or self._begin()
        if not is_at(self._path, stream.fileno()):
            raise OutputError(f"'{self._path}' was deleted or replaced during the run; the same command starts again")
        self._append(stream, b"".join(map(self._form.encode, rows)))

    def _begin(self) -> BinaryIO:
        """Opens the file for the first row: what is there stays, or goes if it is to be overwritten."""
        with errors_of(self._path):
            descriptor = open_regular(self._path, writing=True, create=True)
            stream = open(descriptor, "r+b", buffering=0)  # noqa: SIM115, PTH123
            self._stream = stream
            stream.truncate(self._whole)
            stream.seek(self._whole)
        generation = self._companion.record.get("generation") if self._whole else None
        self._companion.save(self._run.record(generation or token_hex(8)))
        if not self._whole:
            self._append(stream, self._form.header)
        return stream

    def _append(self, stream: BinaryIO, record: bytes) -> None:
        left = memoryview(record)
        with errors_of(self._path):
            try:
                while left:
                    left = left[stream.write(left) :]  # an unbuffered file may take less than all
            except BaseException:
                stream.truncate(self._whole)
                stream.seek(self._whole)
                raise
        self._whole += len(record)

    def _sync(self) -> None:
        if self._stream is not None:
            with errors_of(self._path):
                os.fsync(self._stream.fileno())

    def finish(self, error: BaseException | None) -> None:
        """Syncs, and takes out what newer rows replace if the run came to its end; the lock is still held."""
        try:
            if not isinstance(error, OutputError):
                self._sync()
            if error is None:
                self._cut_torn_record()
                if self.done.replaced:
                    self._take_out_replaced()
                sweep(self._path.parent)
        finally:
            if self._stream is not None:
                self._stream.close()

    def _cut_torn_record(self) -> None:
        """Cuts off a record that a killed run left unfinished, where this run had no row to write behind it."""
        if self._stream is None and not self._overwrite and self._path.exists():
            with errors_of(self._path), open(open_regular(self._path, writing=True), "r+b") as stream:  # noqa: PTH123
                if os.fstat(stream.fileno()).st_size > self._whole:
                    stream.truncate(self._whole)

    def copy_answers(self, stream: BinaryIO) -> None:
        """Writes the rows that stand and are no errors."""
        with self._reading() as rows:
            marks = standing_answers(self._marks(rows))
            rows.seek(len(self._form.header))
            stream.writelines(record for record, mark in zip(self._form.split(rows), marks, strict=True) if mark)

    def _take_out_replaced(self) -> None:
        """Writes the rows that stand into a new file, which takes the place of the old one."""
        self.done.forget()  # its memory is needed now
        with errors_of(self._path), self._reading() as old, whole_file(self._path) as new:
            marks = standing(self._marks(old))
            old.seek(0)
            new.write(old.read(len(self._form.header)))
            new.writelines(record for record, mark in zip(self._form.split(old), marks, strict=True) if mark)
