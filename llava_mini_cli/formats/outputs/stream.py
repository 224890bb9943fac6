"""Rows as they come to standard output, a pipe or a device: nothing is there already, and nothing can be taken back."""

from typing import BinaryIO

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.outputs.appended import RecordFormat
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.output import Output
from llava_mini_cli.formats.row import Row


class StreamOutput(Output):
    """Writes and flushes one record a row, so that a reader sees each answer as it comes."""

    def __init__(self, stream: BinaryIO, name: str, form: RecordFormat, *, owned: bool = False) -> None:
        super().__init__(Done())
        self._stream = stream
        self._name = name  # for messages
        self._form = form
        self._owned = owned  # whether the stream is ours to close
        self._begun = False

    def write(self, row: Row) -> None:
        """Writes a row.

        Raises:
            OutputError: the disk is full, or the stream cannot be written.
            BrokenPipeError: whoever read the stream went away.
        """
        record = memoryview((b"" if self._begun else self._form.header) + self._form.encode(row))
        self._begun = True
        try:
            while record:
                record = record[self._stream.write(record) :]  # an unbuffered stream may take less than all
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write '{self._name}': {error.strerror}") from error

    def finish(self, error: BaseException | None) -> None:
        """Closes a stream that was opened for this output."""
        if self._owned:
            self._stream.close()
