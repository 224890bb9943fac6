"""Who may do what with an archive at the same time: one writer, any number of readers, and `--compact` alone.

Locks are the system's (flock), so they end with the process that holds them, however it ends.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.formats.archive.layout import LOCK, READERS


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Holds the writer's lock inside the block. Raises `OutputLocked` where another run holds it."""
    with _held(folder / LOCK, fcntl.LOCK_EX, f"another run is writing to the archive '{folder}'"):
        yield


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Keeps readers out inside the block. Raises `OutputLocked` where one is at work."""
    with _held(folder / READERS, fcntl.LOCK_EX, f"the archive '{folder}' is being read; --compact waits for nobody"):
        yield


@contextmanager
def reading(folder: Path) -> Generator[None]:
    """Keeps `--compact` out inside the block; where no lock can be had, such as on a read-only disk, it cannot run."""
    try:
        descriptor = os.open(folder / READERS, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        busy = f"the archive '{folder}' is being compacted; try again when that is done"
        with suppress(OSError):
            _lock(descriptor, fcntl.LOCK_SH, busy)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path, kind: int, busy: str) -> Generator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write '{path.parent}': {error.strerror}") from error
    try:
        try:
            _lock(descriptor, kind, busy)
        except OSError as error:
            raise OutputError(f"cannot lock '{path.parent}': {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, busy: str) -> None:
    """Raises `OutputLocked` where somebody else holds it, `OSError` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLocked(busy) from None
