"""JSONL tables: an object a line, read line by line. Blank lines are skipped, other lines are rows, good or bad."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.columns import kind_of_types
from llava_mini_cli.formats.inputs.json_record import LARGEST_RECORD, parse_json
from llava_mini_cli.formats.inputs.table import TableRow, check_width, reading_error
from llava_mini_cli.plain_files import open_plain

LOOKED_AT = 1000  # rows whose keys are the table's columns, unless all are looked at for --keep-columns


class JsonlTable:
    """A table whose columns are the keys of its first rows; a key that a row has not is null in it.

    Raises:
        UsageError: the file cannot be read, or no row of the first is good.
    """

    unit = "line"

    def __init__(self, path: str, name: str, folder: str, *, look_at_all: bool = False) -> None:
        self.path, self.name, self.folder = path, name, folder
        self._types: dict[str, set[type]] = {}
        problem = None
        try:
            for record in islice(self._records(), None if look_at_all else LOOKED_AT):
                if isinstance(record[1], str):
                    problem = problem or f"line {record[0]}: {record[1]}"
                    continue
                for column, value in record[1].items():
                    self._types.setdefault(column, set()).add(_type_of(value))
                check_width(self._types, name)
        except OSError as error:
            raise UsageError(reading_error(name, error)) from None
        if problem and not self._types:
            raise UsageError(f"the table '{name}' is not JSONL, an object a line ({problem})")
        self.columns = tuple(self._types)

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """The type that holds every value of a column; where they differ, and for objects and lists, text."""
        return {column: kind_of_types(self._types[column]) for column in columns}

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Each row's values of `columns`."""
        for line, record in self._records():
            if isinstance(record, str):
                yield line, (), record
            else:
                yield line, [record.get(column) for column in columns], None

    def _records(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Number of the line, and its object or what is wrong with it."""
        with open(open_plain(self.path), "rb") as stream:  # noqa: PTH123
            _skip_mark(stream)
            for number, line in enumerate(iter(partial(stream.readline, LARGEST_RECORD + 1), b""), 1):
                if not line.strip():
                    continue
                try:
                    record = parse_json(line)
                except ValueError as error:
                    _skip_rest(line, stream)
                    yield number, f"not valid JSON: {error}"
                    continue
                yield number, record if isinstance(record, dict) else "not an object"


def _skip_rest(line: bytes, stream: BinaryIO) -> None:
    """Passes over what is left of a line that is too long to be read."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(LARGEST_RECORD)


def _skip_mark(stream: BinaryIO) -> None:
    """Passes over a byte order mark."""
    if stream.read(3) != b"\xef\xbb\xbf":
        stream.seek(0)


def _type_of(value: object) -> type:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return str  # as text: no 64-bit column holds it
    return type(value)
