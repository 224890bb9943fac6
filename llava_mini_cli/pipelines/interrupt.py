"""SIGINT and SIGTERM as one exception, raised where a run may wait long and at points between, nowhere else.

The first signal raises `Interrupted` in the main thread: at once inside `allowed`, which is for loading a model, for
computing and for waiting, otherwise at the next `check`. So it never comes while a row is written, a lock is held or
an output is finished. A second signal ends the process at once.
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an `Exception`, so that no handler of failures swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Interrupts:
    """Catches both signals inside a `with` block of the main thread."""

    def __init__(self) -> None:
        self._arrived: int | None = None
        self._is_allowed = False
        self._before: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            # A handler of another kind than Python's own cannot be put back, so it stays as it is.
            self._before[number] = signal.signal(number, self._catch)  # pyright: ignore[reportArgumentType]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._arrived = number
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_DFL)
        if self._is_allowed:
            raise Interrupted(number)

    def check(self) -> None:
        """Raises `Interrupted` if a signal came that nothing has acted on yet."""
        if self._arrived is not None:
            raise Interrupted(self._arrived)

    @contextmanager
    def allowed(self) -> Generator[None]:
        """Lets a signal raise `Interrupted` anywhere in the block."""
        self._is_allowed = True
        try:
            self.check()
            yield
        finally:
            self._is_allowed = False
