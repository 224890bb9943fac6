"""Files in folders that a stranger may have prepared: no link is followed, and nothing but a regular file is opened.

This is for every file whose name the program chooses: companions, locks, temporary files, captions beside media, parts
in an output folder. A path that the user typed may be a link; it is resolved once, before anything here sees it.

A temporary file has a random name and is locked as long as its writer lives, so that a later run can tell what a
killed one left behind from what another run is writing at this moment.
"""

import errno
import fcntl
import os
import re
import socket
import stat
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

_KINDS = (
    (stat.S_ISLNK, "it is a link, and links are not followed here"),
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe"),
    (stat.S_ISSOCK, "it is a socket"),
)
HOST = blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()  # stands for this machine in names
_TEMPORARY = re.compile(r"\.llava-mini-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")
STALE = 3600.0  # seconds without a write after which another machine's temporary file may be a left-over


class NotRegularError(OSError):
    """Something other than a regular file has the name; `strerror` says what."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def is_at(path: Path, descriptor: int) -> bool:
    """True if the open file is still the one at `path`; a link to it does not count."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def obstacle_at(path: Path) -> str | None:
    """The reason why no regular file can be written at `path`; None where one is there, or nothing.

    Raises `OSError` where the disk does not say.
    """
    try:
        return _obstacle(path.lstat().st_mode)
    except FileNotFoundError:
        return None


def _obstacle(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "it is a device")


def check_regular(path: Path, *, alone: bool = False) -> None:
    """Raises `NotRegularError` unless a regular file is at `path`, or nothing.

    Args:
        alone: a file that has a second name elsewhere (a hard link) is refused, too, since it is written in place.
    """
    reason = obstacle_at(path)
    if reason is None and alone and path.exists() and path.lstat().st_nlink > 1:
        reason = "it has another name elsewhere (a hard link)"
    if reason is not None:
        raise NotRegularError(path, reason)


def open_regular(path: Path, *, writing: bool = False, create: bool = False, alone: bool = False) -> int:
    """A descriptor of a regular file, opened without following a link and without waiting for anybody.

    Args:
        writing: for reading and writing; otherwise for reading.
        create: where nothing is there, an empty file is made.
        alone: as for `check_regular`.

    Raises:
        NotRegularError: something else is there. OSError: it cannot be opened.
    """
    check_regular(path, alone=alone)
    access = os.O_RDWR if writing else os.O_RDONLY
    flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o666)
    reason = _obstacle(os.fstat(descriptor).st_mode)  # of what was opened, if it is not what was looked at
    if reason is not None:
        os.close(descriptor)
        raise NotRegularError(path, reason)
    os.set_blocking(descriptor, True)
    return descriptor


def make_own_folder(path: Path) -> None:
    """A folder at `path`, made where nothing is there. Raises `NotRegularError` where anything else is, links too."""
    try:
        path.mkdir()
    except FileExistsError:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise NotRegularError(path, _obstacle(mode) or "it is a file, not a folder") from None


def check_tree(folder: Path) -> None:
    """Raises `NotRegularError` for a link, a pipe or a device below a folder that a library writes into by name.

    Hidden folders are passed over: no library writes there.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            reason = None if stat.S_ISDIR(mode) else _obstacle(mode)
            if reason is not None:
                raise NotRegularError(path, reason)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power; a file system that cannot do so is left to itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Temporary:
    """A new file beside `target`, which takes its place in the end: `put`, or `discard`."""

    def __init__(self, target: Path) -> None:
        """Raises `NotRegularError` where something other than a regular file is at `target`, `OSError`."""
        self._target = target
        self._before = _status_of(target)
        while True:
            self.path = target.with_name(f".llava-mini-{HOST}-{token_hex(8)}.tmp")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666 if self._before is None else 0o600)
            if self._is_held(descriptor):
                break
            os.close(descriptor)  # another run that began at this moment took it for a left-over
            self.discard()
        self.stream: BinaryIO = open(descriptor, "w+b")  # noqa: SIM115, PTH123

    def _is_held(self, descriptor: int) -> bool:
        """True unless another run takes the file away; without locks nobody does."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return is_at(self.path, descriptor)

    def put(self, *, synced: bool = True) -> None:
        """Everything is on the disk under the target's name after this; its permissions are those of what was there.

        Args:
            synced: False does not wait until it is on the disk.

        Raises:
            NotRegularError: meanwhile something else has one of the two names. OSError: the disk refuses.
        """
        self.stream.flush()
        self._take_over_permissions()
        if synced:
            os.fsync(self.stream.fileno())
        check_regular(self._target)
        if not is_at(self.path, self.stream.fileno()):
            raise NotRegularError(self.path, "its temporary file was taken away or replaced")
        self.path.replace(self._target)
        self.stream.close()

    def _take_over_permissions(self) -> None:
        """Gives nobody more than the replaced file did: another group gets nothing."""
        if self._before is None:
            return
        descriptor, mode = self.stream.fileno(), stat.S_IMODE(self._before.st_mode) & 0o777
        if os.fstat(descriptor).st_gid != self._before.st_gid:
            try:
                os.fchown(descriptor, -1, self._before.st_gid)
            except OSError:
                mode &= ~0o070
        with suppress(OSError):  # a file system without permissions
            os.fchmod(descriptor, mode)

    def discard(self) -> None:
        """Takes the file away, if it was not put in place. Safe to call twice."""
        if hasattr(self, "stream"):
            with suppress(OSError):
                self.stream.close()
        with suppress(OSError):
            self.path.unlink()


def _status_of(target: Path) -> os.stat_result | None:
    check_regular(target)
    try:
        return target.lstat()
    except FileNotFoundError:
        return None


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Takes away the temporary files that killed runs of this user left in a folder, and none that is being written.

    Args:
        alone: the caller holds a lock without which nobody writes into the folder, so that all of them are left-overs.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):  # its writer holds it, or it is somebody else's
            _remove_left_over(path, alone=alone)


def _remove_left_over(path: Path, *, alone: bool) -> None:
    try:
        descriptor = open_regular(path, writing=True)
    except PermissionError:  # it was about to replace a file that nobody may write
        descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            return
        if not alone:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Some network disks keep the locks of each machine to itself.
            if _host_of(path) != HOST and time.time() - status.st_mtime < STALE:
                return
        if is_at(path, descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def _host_of(path: Path) -> str:
    match = _TEMPORARY.fullmatch(path.name)
    return match[1] if match else ""
