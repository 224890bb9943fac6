"""The folder of prepared weights in the user's cache: files that are whole, one that is being written, and their bound.

    KEY.weights     whole: it got its name when all of it was on the disk; its time of change is its last use
    KEY.part        being written, locked as long as its writer lives; without that lock it is a left-over

The folder and its files are the user's own and nobody else's to write, or they are not used. Knows no torch.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_mini_cli.engine.prepared_index import DamagedError, read_index
from llava_mini_cli.paths import cache_folder
from llava_mini_cli.safe_files import NotRegularError, is_at, obstacle_at, open_regular

WHOLE = ".weights"
PART = ".part"
SPARE = 1 << 30  # bytes that stay free on the disk


class NotOwnError(OSError):
    """A folder or a file that somebody else made or may write; `strerror` says which it is."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(None, reason, str(path))
        self.strerror = reason


@dataclass(frozen=True)
class KeptFile:
    """A whole file of the folder."""

    path: Path
    size: int  # bytes
    used: float  # seconds since 1970
    about: dict[str, Any]  # what it says of itself; empty where it cannot be read


def folder() -> Path:
    """`llava-mini/prepared` in the user's cache; it may not be there."""
    return cache_folder("prepared")


def make_folder(path: Path) -> None:
    """Makes the folder where nothing is there, for this user alone.

    Raises:
        NotRegularError: a link or a file has its name. NotOwnError, OSError
    """
    path.mkdir(0o700, parents=True, exist_ok=True)
    check_folder(path)


def check_folder(path: Path) -> None:
    """Makes sure that the folder, which is there, is one that nobody else can write. Raises as `make_folder`."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotRegularError(path, obstacle_at(path) or "it is a file, not a folder")
    _check_own(path, status)


def open_own(path: Path, *, create: bool = False) -> int:
    """A descriptor of the user's own file, for reading; with `create` for writing, made where nothing is there.

    Raises:
        NotRegularError, NotOwnError; OSError: it is not there, or cannot be opened.
    """
    descriptor = open_regular(path, writing=create, create=create, alone=create)
    try:
        if create and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
        _check_own(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise NotOwnError(path, "it belongs to somebody else")
    if status.st_mode & 0o022:
        raise NotOwnError(path, "others may write it")


def lock_part(path: Path, *, create: bool = True) -> int | None:
    """The descriptor of a file that is to be written, locked for this process; None where another one holds it.

    Raises:
        FileNotFoundError: it is not there, and `create` is False. OSError
    """
    while True:
        descriptor = open_own(path, create=True) if create else open_own(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        if is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # whoever held it has given it its final name, or removed it


def remove_left_overs(place: Path) -> None:
    """Takes away what killed runs were writing, and nothing that is being written."""
    for path in place.glob(f"*{PART}"):
        with suppress(OSError):
            descriptor = lock_part(path, create=False)
            if descriptor is not None:
                path.unlink()
                os.close(descriptor)


def kept_files(place: Path) -> list[KeptFile]:
    """The whole files of this user in the folder, the one that was not used for longest first."""
    return sorted(_kept_files(place), key=lambda file: file.used)


def _kept_files(place: Path) -> Iterator[KeptFile]:
    for path in place.glob(f"*{WHOLE}"):
        with suppress(OSError):  # somebody else's, or removed at this moment
            descriptor = open_own(path)
            try:
                status = os.fstat(descriptor)
                yield KeptFile(path, status.st_size, status.st_mtime, _about(descriptor))
            finally:
                os.close(descriptor)


def _about(descriptor: int) -> dict[str, Any]:
    try:
        return read_index(descriptor).about
    except DamagedError:
        return {}


def make_room(place: Path, needed: int, bound: int) -> str | None:
    """Removes the files that were not used for longest until a new one fits the bound beside the rest.

    Returns:
        None, or why it is not to be written; then nothing is removed.
    """
    if needed > bound:
        return f"{_gib(needed)} are more than --prepared-size {_gib(bound)}"
    free = shutil.disk_usage(place).free
    files = kept_files(place)
    surplus = sum(file.size for file in files) + needed - bound
    going: list[KeptFile] = []
    for file in files:
        if surplus <= 0:
            break
        going.append(file)
        surplus -= file.size
    freed = sum(file.size for file in going)
    if free + freed < needed + SPARE:
        return f"{_gib(needed)} are needed, and the disk has {_gib(free)} free"
    for file in going:
        with suppress(FileNotFoundError):
            file.path.unlink()
    return None


def mark_used(descriptor: int) -> None:
    """Makes this moment the last use of a file."""
    with suppress(OSError):  # a disk that is mounted for reading alone
        os.utime(descriptor, (time.time(), time.time()))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
