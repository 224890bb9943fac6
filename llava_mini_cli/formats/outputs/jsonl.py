"""Rows as JSON lines: every column in every line, null where there is nothing to say.

Knows nothing of where the lines go.
"""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Self

from llava_mini_cli.formats.outputs.done import ANSWER, KEY_PATTERN, RowDigest, RowMark, end_of
from llava_mini_cli.formats.outputs.known_contents import DIGEST_PATTERN
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.shown_text import for_json

# Inside a string a quotation mark is written with a backslash before it, so that these find columns and no text; and
# they find those of the row, which come before what was kept of the input. Twenty times as quick as parsing a line.
_KEY = re.compile(rf'[{{,]\s*"fingerprint":\s*"({KEY_PATTERN})"'.encode())
_DIGEST = re.compile(_KEY.pattern + rf',\s*"digest":\s*(?:null|"({DIGEST_PATTERN})")'.encode())
_STATUS = re.compile(rb'[{,]\s*"status":\s*"(ok|error)"')
_TYPE = re.compile(rb'[{,]\s*"error_type":\s*"(\w+)"')


class JsonLines:
    """The format of a JSONL file; see `appended.RecordFormat`."""

    header = b""

    def __init__(self, *, digests: bool = True) -> None:
        """`digests`: False leaves out that column."""
        self._digests = digests

    def like(self, first: bytes) -> Self:
        """The format of a file with this first line."""
        return type(self)(digests=_KEY.search(first) is None or _DIGEST.search(first) is not None)

    def encode(self, row: Row) -> bytes:
        """One row as one UTF-8 line, newline included."""
        columns = row.as_dict()
        if not self._digests:
            del columns["digest"]
        return for_json(json.dumps(columns, ensure_ascii=False, allow_nan=False, default=as_json)).encode() + b"\n"

    def split(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines that have an end."""
        return (line for line in lines if line.endswith(b"\n"))

    def mark(self, record: bytes) -> RowMark:
        """The key of a row and its end. Raises `ValueError` for another kind of line."""
        key, status = _KEY.search(record), _STATUS.search(record)
        if key is None or status is None:
            raise ValueError("no fingerprint or status")
        if status[1] == b"ok":
            return key[1].decode(), ANSWER
        kind = _TYPE.search(record)
        return key[1].decode(), end_of("error", kind and kind[1].decode())

    def digest(self, record: bytes) -> RowDigest | None:
        """The key and the digest of a row; None where it has no digest."""
        found = _DIGEST.search(record)
        return (found[1].decode(), found[3].decode()) if found is not None and found[3] else None


def as_json(value: object) -> object:
    """A value that JSON has no form of, as text: times in ISO 8601. Raises `TypeError` for anything else."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, date):  # datetimes without a zone among them
        return value.isoformat()
    raise TypeError(f"a row holds a {type(value).__name__}, which has no JSON form")
