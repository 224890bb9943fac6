"""Rows as CSV: a header, then one record a row, in which a null is an empty field and probabilities are JSON.

A record may span lines, inside quotation marks. Knows nothing of where the records go.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import Self

from llava_mini_cli.formats.outputs.done import KEY_PATTERN, RowDigest, RowMark, end_of
from llava_mini_cli.formats.outputs.jsonl import as_json
from llava_mini_cli.formats.outputs.known_contents import DIGEST_PATTERN
from llava_mini_cli.formats.row import COLUMNS, KeptColumn, Row
from llava_mini_cli.formats.shown_text import for_json, safe_cell, without_controls

_NAMES = [column.name for column in COLUMNS]
_KEY = _NAMES.index("fingerprint")
_DIGEST = _KEY + 1
_BEFORE_DIGESTS = ",".join(name for name in _NAMES if name != "digest").encode()  # how a header began
_WHOLE_KEY = re.compile(KEY_PATTERN)
_WHOLE_DIGEST = re.compile(DIGEST_PATTERN)
_STATUS, _TYPE = _NAMES.index("status"), _NAMES.index("error_type")


class CsvRecords:
    """The format of a CSV file; see `appended.RecordFormat`."""

    def __init__(
        self, kept: tuple[KeptColumn, ...], more: Sequence[str] = (), *, digests: bool = True, safe: bool = False
    ) -> None:
        """`more`: columns that were asked for; `digests`: False leaves out that column; `safe`: no cell is a formula
        for a spreadsheet.
        """
        self._kept = kept
        self._more = more
        self._safe = safe
        self._digests = digests
        self._buffer = StringIO()
        # With both characters in the end of a record, a field that holds either of them is quoted.
        self._writer = csv.writer(self._buffer, lineterminator="\r\n")
        self.header = self._record(self._some([*_NAMES, *more, *(column.name for column in kept)]))

    def like(self, first: bytes) -> Self:
        """The format of a file with this first line."""
        return type(self)(self._kept, self._more, digests=not first.startswith(_BEFORE_DIGESTS), safe=self._safe)

    def encode(self, row: Row) -> bytes:
        """One record, ending in a line feed."""
        return self._record(self._some([_field(value) for value in row.as_dict().values()]))

    def _some(self, fields: list[object]) -> list[object]:
        """The fields that the file has columns for."""
        return fields if self._digests else fields[:_DIGEST] + fields[_DIGEST + 1 :]

    def _record(self, fields: list[object]) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._writer.writerow([self._shown(one) if isinstance(one, str) else one for one in fields])
        return self._buffer.getvalue().removesuffix("\r\n").encode() + b"\n"

    def _shown(self, text: str) -> str:
        text = without_controls(text)
        return safe_cell(text) if self._safe else text

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
        """The key of a row and its end. Raises `ValueError` for another kind of record."""
        fields = _fields(record.decode())
        is_row = len(fields) >= len(COLUMNS) - (not self._digests) and fields[_STATUS] in ("ok", "error")
        if not is_row or not _WHOLE_KEY.fullmatch(fields[_KEY]):
            raise ValueError("no row")
        return fields[_KEY], end_of(fields[_STATUS], fields[_TYPE])

    def digest(self, record: bytes) -> RowDigest | None:
        """The key and the digest of a row; None where it has no digest."""
        fields = _fields(record.decode()) if self._digests else []
        return (fields[_KEY], fields[_DIGEST]) if fields and _WHOLE_DIGEST.fullmatch(fields[_DIGEST]) else None


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
        return for_json(json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_json))
    return as_json(value)
