"""Writing so that a file is there whole or not at all, even when the machine stops. Knows nothing of rows."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llava_mini_cli.errors import OutputError
from llava_mini_cli.paths import is_folder
from llava_mini_cli.safe_files import Temporary, sweep, sync_folder


@contextmanager
def errors_of(output: Path) -> Generator[None]:
    """Turns an `OSError` inside the block into an `OutputError` that names the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path, *, synced: bool = True) -> Generator[BinaryIO]:
    """A stream to a file that is put in place, synced, when the block ends well; otherwise nothing stays.

    Args:
        synced: False does not wait for the disk: after a loss of power the file may be missing or empty.

    Raises `NotRegularError` where a link or anything else that is no regular file has the name.
    """
    temporary = Temporary(path)
    try:
        yield temporary.stream
        temporary.put(synced=synced)
        if synced:
            sync_folder(path.parent)
    finally:
        temporary.discard()


def write_own_file(path: Path, data: bytes, *, synced: bool = True) -> None:
    """A small file with a name that the program chose, as `whole_file` puts it there. Raises `OutputError`."""
    with errors_of(path), whole_file(path, synced=synced) as stream:
        stream.write(data)


def write_file(path: Path, data: bytes) -> None:
    """The same at a path that the user typed: a link to it is followed, a device or a pipe is written to."""
    with errors_of(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()
        sweep(target.parent)
        with whole_file(target) as stream:
            stream.write(data)


def check_target(path: Path) -> None:
    """Raises `OutputError` where nothing could be written to a path; writes nothing."""
    if not is_folder(path.parent):
        raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    with errors_of(path):
        target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        raise OutputError(f"cannot write '{path}': permission denied")


def check_folder(path: Path) -> None:
    """Raises `OutputError` where a folder is not there and cannot be made, or nothing can be written into it."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not is_folder(there):
        raise OutputError(f"cannot write '{path}': '{there}' is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write '{path}': permission denied")
