"""Rows as CSV: a header, then one record a row, in which a null is an empty field and probabilities are JSON.

A record may span lines, inside quotation marks. Knows nothing of where the records go.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from io import StringIO

from llava_mini_cli.formats.outputs.done import KEY_PATTERN, RowMark
from llava_mini_cli.formats.outputs.jsonl import as_json
from llava_mini_cli.formats.row import COLUMNS, KeptColumn, Row

_KEY = [column.name for column in COLUMNS].index("fingerprint")
_WHOLE_KEY = re.compile(KEY_PATTERN)
_STATUS = [column.name for column in COLUMNS].index("status")


class CsvRecords:
    """The format of a CSV file; see `appended.RecordFormat`."""

    def __init__(self, kept: tuple[KeptColumn, ...]) -> None:
        self._buffer = StringIO()
        # With both characters in the end of a record, a field that holds either of them is quoted.
        self._writer = csv.writer(self._buffer, lineterminator="\r\n")
        self.header = self._record([column.name for column in (*COLUMNS, *kept)])

    def encode(self, row: Row) -> bytes:
        """One record, ending in a line feed."""
        return self._record([_field(value) for value in row.as_dict().values()])

    def _record(self, fields: list[object]) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._writer.writerow(fields)
        return self._buffer.getvalue().removesuffix("\r\n").encode() + b"\n"

    def split(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The whole records; one is whole where every quotation mark is closed at the end of a line."""
        parts: list[bytes] = []
        is_quoted = False
        for line in lines:
            parts.append(line)
            is_quoted ^= line.count(b'"') % 2 == 1
            if line.endswith(b"\n") and not is_quoted:
                yield b"".join(parts)
                parts.clear()

    def mark(self, record: bytes) -> RowMark:
        """The key of a row and whether it is an error. Raises `ValueError` for another kind of record."""
        fields = _fields(record.decode())
        is_row = len(fields) >= len(COLUMNS) and fields[_STATUS] in ("ok", "error")
        if not is_row or not _WHOLE_KEY.fullmatch(fields[_KEY]):
            raise ValueError("no row")
        return fields[_KEY], fields[_STATUS] == "error"


def _fields(record: str) -> list[str]:
    """The fields of one record, of any length. Raises `ValueError` where it is none."""
    longest = csv.field_size_limit(sys.maxsize)  # the module's own, which tables of the input have set for themselves
    try:
        return next(csv.reader(StringIO(record, newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    finally:
        csv.field_size_limit(longest)


def _field(value: object) -> object:
    """A value as a field: dictionaries and lists as JSON, times as ISO 8601."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_json)
    return as_json(value)
