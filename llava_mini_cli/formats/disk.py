"""Writing so that a file is there whole or not at all, even when the machine stops. Knows nothing of rows."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from llava_mini_cli.errors import OutputError
from llava_mini_cli.paths import is_folder


@contextmanager
def errors_of(output: Path) -> Generator[None]:
    """Turns an `OSError` inside the block into an `OutputError` that names the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path, temporary: Path | None = None) -> Generator[BinaryIO]:
    """A stream to a file that is put in place, synced, when the block ends well; otherwise nothing stays.

    The temporary file is in the same folder. By default it is `.NAME.tmp`, for files that one run at a time writes.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_file(path: Path, data: bytes) -> None:
    """A small file that is there whole or not at all; a device or a pipe is written to. Raises `OutputError`."""
    with errors_of(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with whole_file(path, _temporary(path)) as stream:
            stream.write(data)


def _temporary(path: Path) -> Path:
    """A name of this process beside a file; short, however long the file's own is, since 255 bytes are the most."""
    digest = blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return path.with_name(f".{digest}.{os.getpid()}.tmp")


def check_target(path: Path) -> None:
    """Raises `OutputError` where nothing could be written to a path; writes nothing."""
    if not is_folder(path.parent):
        raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    with errors_of(path):
        target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        raise OutputError(f"cannot write '{path}': permission denied")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power; a file system that cannot do so is left to itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """True if the open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
