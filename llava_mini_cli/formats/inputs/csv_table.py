"""CSV and TSV tables, row by row, through Python's csv module. Values are text; nothing is guessed about them."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TextIO

from llava_mini_cli.errors import UsageError, first_line
from llava_mini_cli.formats.inputs.table import TableRow, check_width, reading_error
from llava_mini_cli.plain_files import open_plain

LONGEST_FIELD = 1 << 26  # characters, of a whole row as well; a quote that is never closed costs no more than this


class CsvTable:
    """A table whose first line names its columns. Quoted fields may hold newlines; bytes that are no UTF-8 survive.

    Raises:
        UsageError: the file cannot be read, or has no such first line.
    """

    unit = "line"

    def __init__(self, path: str, name: str, folder: str) -> None:
        self.path, self.name, self.folder = path, name, folder
        self._delimiter = "\t" if path.lower().endswith(".tsv") else ","
        csv.field_size_limit(LONGEST_FIELD)
        try:
            with self._open() as stream:
                header = next(csv.reader(_Lines(stream), delimiter=self._delimiter, strict=True), None)
        except (OSError, csv.Error) as error:
            raise UsageError(reading_error(name, error)) from None
        if not header:
            raise UsageError(f"the table '{name}' is empty: its first line must name its columns")
        check_width(header, name)
        twice = sorted(column for column, count in Counter(header).items() if count > 1)
        if twice:
            raise UsageError(f"the table '{name}' has two columns named '{twice[0]}'")
        self.columns = tuple(header)

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """Every column is text."""
        return dict.fromkeys(columns, "string")

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Each row's values of `columns`."""
        width = len(self.columns)
        place = {column: number for number, column in enumerate(self.columns)}
        places = [place[column] for column in columns]
        pick: Callable[[list[str]], Sequence[str]] = itemgetter(*places)
        if len(places) == 1:  # then itemgetter gives the value alone
            pick = itemgetter(slice(places[0], places[0] + 1))
        with self._open() as stream:
            lines = _Lines(stream)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            next(reader)
            while True:
                line = lines.begin_row()
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield line, (), first_line(error)
                    continue
                if len(row) == width:
                    yield line, pick(row), None
                elif row:  # a blank line is no row
                    yield line, (), f"{len(row)} fields where the first line has {width}"

    def _open(self):  # noqa: ANN202 - the type of a text stream is open()'s own
        return open(open_plain(self.path), encoding="utf-8-sig", errors="surrogateescape", newline="")  # noqa: PTH123


class _Lines:
    """The lines of a text, counted; those of one row are bounded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number = 0
        self._left = LONGEST_FIELD

    def begin_row(self) -> int:
        """The number of the line that comes next."""
        self._left = LONGEST_FIELD
        return self._number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Raises `csv.Error` at the end of a row that is too long."""
        line = self._stream.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._left -= len(line)
        if self._left < 0:
            while line and not line.endswith(("\n", "\r")):
                line = self._stream.readline(LONGEST_FIELD)
            raise csv.Error(f"more than {LONGEST_FIELD} characters")
        return line
