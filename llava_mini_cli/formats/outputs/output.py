"""The outputs' common ground: rows go in one at a time, and leaving the `with` block finishes and unlocks them.

Knows no format and no file.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO, NamedTuple, Protocol, Self

from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.row import Row


class Lock(Protocol):
    """Something that a run holds until it lets it go."""

    def release(self) -> None: ...


class PartsPlace(NamedTuple):
    """Where other processes may prepare parts of an output."""

    folder: str  # an absolute path, with a name that was made for this run
    schema: bytes  # of the rows, as Arrow writes it


class Output:
    """Takes rows, and knows in `done` which ones are there already."""

    def __init__(self, done: Done, lock: Lock | None = None) -> None:
        self.done = done
        self._held = lock

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError` where it cannot be written."""
        raise NotImplementedError

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Adds the rows of one answer, all of them or none where that can be had. Raises `OutputError`."""
        for row in rows:
            self.write(row)

    def place(self) -> PartsPlace | None:
        """Where others may prepare parts, for `take_in`; None where rows go through `write` alone."""
        return None

    def take_in(self, name: str) -> None:
        """Adds the rows of a part that was prepared in `place`. Raises `OutputError`."""
        raise NotImplementedError

    def keep(self) -> None:
        """Has the rows so far outlive a kill, where they are held back to be written together."""

    def finish(self, error: BaseException | None) -> None:
        """Does what is left when the run has ended, by `error` or well; the lock is still held."""

    def release(self) -> None:
        """Lets the lock go and leaves everything else as it is: for whoever only wants to know what is done."""
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish(error)
        finally:
            self.release()


class Store(Output):
    """An output whose answers can be copied out."""

    def copy_answers(self, stream: BinaryIO) -> None:
        """Writes the rows that stand and are no errors."""
        raise NotImplementedError


@contextmanager
def released_on_failure(lock: Lock) -> Generator[None]:
    """Lets the lock go where the block fails: an output that could not be made holds nothing."""
    try:
        yield
    except BaseException:
        lock.release()
        raise
