"""Rows as JSON lines: every column in every line, null where there is nothing to say; a whole line at a time.

Knows nothing of where the stream leads.
"""

import json
import os
import stat
from datetime import UTC, datetime
from types import TracebackType
from typing import BinaryIO, Self

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.row import Row


def to_line(row: Row) -> bytes:
    """One row as one UTF-8 line, newline included."""
    return json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False, default=_encode).encode() + b"\n"


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    raise TypeError(f"a row holds a {type(value).__name__}, which has no JSON form")


class JsonlWriter:
    """Writes and flushes one line a row, so that a reader sees each answer as it comes.

    A file must be opened unbuffered and empty, so that a line that did not fit can be cut off again.
    """

    def __init__(self, stream: BinaryIO, name: str, *, owned: bool) -> None:
        self._stream = stream
        self._name = name  # for messages
        self.done = Done()
        self._owned = owned  # whether the stream is ours to close
        self._whole = 0  # bytes of whole lines written

    def write(self, row: Row) -> None:
        """Appends a row.

        Raises:
            OutputError: the disk is full, or the file cannot be written.
            BrokenPipeError: whoever read the stream went away.
        """
        line = memoryview(to_line(row))
        size = len(line)
        try:
            while line:
                line = line[self._stream.write(line) :]  # an unbuffered file may take less than all
            self._stream.flush()
            self._whole += size
        except BrokenPipeError:
            raise
        except OSError as error:
            self._cut_torn_line()
            raise OutputError(f"cannot write '{self._name}': {error.strerror}") from error

    def _cut_torn_line(self) -> None:
        if self._is_file():
            self._stream.truncate(self._whole)

    def _is_file(self) -> bool:
        return self._owned and stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_file():
            os.fsync(self._stream.fileno())
        if self._owned:
            self._stream.close()
