"""A bounded folder of files that a run fetched. Files in use stay; the oldest others go when there are too many bytes.

Files that are being written count as well: where one more byte would be too many, one of them is taken back and begun
again once there is room. A run has a folder of its own below the cache folder, for its user alone, locked while the run
lives and removed when it ends; those of runs that were killed are removed by the next one. Safe to use from several
threads.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Condition, Event
from types import TracebackType
from typing import Self

from llava_mini_cli.errors import FetchError, OutputError, kind_of
from llava_mini_cli.formats.source import FetchOptions, NoRoomError, Packed, Source
from llava_mini_cli.paths import cache_folder
from llava_mini_cli.safe_files import is_at, open_regular

_LOCK = "lock"
_FOLDER = re.compile(r"run-[a-z0-9_]{8}")  # as tempfile names them


@dataclass
class _Entry:
    path: Path
    uses: int = 0
    pinned: bool = False
    size: int = 0  # bytes, also of what is there of it while it is being written
    done: "Future[None]" = field(default_factory=lambda: Future[None]())


class FileCache:
    """The fetched files of one run."""

    def __init__(self, options: FetchOptions) -> None:
        self.stopped = Event()
        self.options = options
        self._changed = Condition()
        self._entries: dict[str, _Entry] = {}  # oldest first
        self._names: dict[Path, str] = {}
        self._waiting: list[_Entry] = []  # for room, oldest first; nothing of them is on the disk
        self._bytes = 0  # of all entries
        self._busy = 0  # bytes of those in use that are not pinned
        self._folder: Path | None = None
        self._lock: int | None = None

    def get(self, source: Source, *, pinned: bool = False) -> Path:
        """The file of a source, fetched when it is not here; in use until it is released.

        A pinned one is a table or a shard. Whoever waits for room does not wait for it, since it is in use until all
        that it names is done.

        Raises:
            FetchError: it cannot be had.
            OutputError: the cache cannot be written.
        """
        with self._changed:
            folder = self._open_folder()
            entry = self._entries.get(source.name)
            is_new = entry is None
            if entry is None:
                digest = hashlib.sha256(source.name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
                entry = self._entries[source.name] = _Entry(folder / (digest + _suffix(source)))
                self._names[entry.path] = source.name
            self._change(entry, uses=entry.uses + 1, pinned=entry.pinned or pinned)
        try:
            if is_new:
                self._fetch(source, entry)
            entry.done.result()
        except BaseException:
            self.release(entry.path)
            raise
        return entry.path

    def _fetch(self, source: Source, entry: _Entry) -> None:
        """Fills a new entry."""
        part = entry.path.with_name(f".{entry.path.name}.part")
        try:
            while not self._is_written(source, entry, part):
                pass
            part.replace(entry.path)
            size = entry.path.stat().st_size
            self.options.check_size(size)  # once more, for what was not counted as it came
            with self._changed:
                self._change(entry, size=size)
                self._evict()
                self._changed.notify_all()
            entry.done.set_result(None)
        except OSError as error:
            self._fail(source, entry, part, _of_disk(part.parent, error))
        except Exception as error:  # noqa: BLE001 - raised again by `get`, in every thread that waits
            self._fail(source, entry, part, error)

    def _is_written(self, source: Source, entry: _Entry, part: Path) -> bool:
        """Writes a source; False where it takes room that was not there, and is there now."""
        options = replace(self.options, meter=partial(self._grow, entry))
        try:
            if not isinstance(source, Packed):
                source.write_to(part, options, self.stopped)
                return True
            archive = self.get(source.archive, pinned=True)
            try:
                source.unpack(archive, part, options)
            finally:
                self.release(archive)
            return True
        except NoRoomError as error:
            _remove(part)
            self._wait_for_room_of(entry, error.size)
            return False

    def _grow(self, entry: _Entry, size: int, expected: int) -> None:
        """Makes room for a file that is about to have so many bytes. Raises `NoRoomError` where others leave none."""
        with self._changed:
            if self._entries.get(self._names.get(entry.path, "")) is not entry:  # its thread was left behind
                raise FetchError("timeout", "nobody waits for it any more")
            if not entry.pinned and not self._fits(entry, expected):
                raise NoRoomError(expected)
            self._change(entry, size=max(entry.size, size))
            self._evict()

    def _fits(self, entry: _Entry, size: int) -> bool:
        return self._busy - entry.size + size <= self.options.cache_bytes

    def _wait_for_room_of(self, entry: _Entry, size: int) -> None:
        """Returns once there is room for a file. Meanwhile no other one begins, so that its turn comes."""

        def is_its_turn() -> bool:
            return self.stopped.is_set() or (self._waiting[0] is entry and self._fits(entry, size))

        with self._changed:
            self._change(entry, size=0)
            self._waiting.append(entry)
            self._changed.notify_all()
            self._changed.wait_for(is_its_turn)
            self._waiting.remove(entry)
            self._changed.notify_all()
        if self.stopped.is_set():
            raise FetchError("timeout", "the run has stopped")

    @property
    def lacks_room(self) -> bool:
        """True while a file waits for room that others take."""
        return bool(self._waiting)

    def _fail(self, source: Source, entry: _Entry, part: Path, error: Exception) -> None:
        """Takes a new entry back; whoever asked for it gets the error."""
        _remove(part)
        _remove(entry.path)
        with self._changed:
            self._forget(source.name)
            self._changed.notify_all()
        entry.done.set_exception(error)

    def release(self, path: Path) -> None:
        """Ends one use of a file; a path that is not of the cache is passed over."""
        with self._changed:
            entry = self._entries.get(self._names.get(path, ""))
            if entry is not None:
                self._change(entry, uses=entry.uses - 1)
                self._evict()
                self._changed.notify_all()

    def wait_for_room(self, stopped: Event) -> None:
        """Returns once the media in use are below the bound, or when `stopped` is set and `wake` called."""
        with self._changed:
            self._changed.wait_for(lambda: stopped.is_set() or (not self._waiting and self._has_room()))

    def wake(self) -> None:
        """Makes whoever waits look again."""
        with self._changed:
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._busy < self.options.cache_bytes

    def _change(
        self, entry: _Entry, *, size: int | None = None, uses: int | None = None, pinned: bool | None = None
    ) -> None:
        """Changes an entry, and the sums that it is part of."""
        self._count(entry, -1)
        entry.size = entry.size if size is None else size
        entry.uses = entry.uses if uses is None else uses
        entry.pinned = entry.pinned if pinned is None else pinned
        self._count(entry, 1)

    def _count(self, entry: _Entry, sign: int) -> None:
        self._bytes += sign * entry.size
        if entry.uses and not entry.pinned:
            self._busy += sign * entry.size

    def _evict(self) -> None:
        """Removes the oldest files that nobody uses until the rest is within the bound."""
        if self._bytes <= self.options.cache_bytes:
            return
        for name, entry in list(self._entries.items()):
            if self._bytes <= self.options.cache_bytes:
                return
            if not entry.uses and entry.done.done():
                self._forget(name)
                entry.path.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name)
        self._count(entry, -1)
        self._names.pop(entry.path)

    def _open_folder(self) -> Path:
        if self._folder is None:
            parent = self.options.cache_dir or default_folder()
            try:
                parent.mkdir(0o700, parents=True, exist_ok=True)
                _remove_dead(parent)
                self._folder, self._lock = _new_folder(parent)
            except OSError as error:
                raise OutputError(f"cannot write the cache '{parent}': {error.strerror or error}") from None
        return self._folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.wake()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def default_folder() -> Path:
    """`llava-mini/fetched` below $XDG_CACHE_HOME or ~/.cache."""
    return cache_folder("fetched")


def _suffix(source: Source) -> str:
    """The beginning of a source's suffix, letters and digits alone: it comes from URLs and tables."""
    return "".join(char for char in source.suffix if char.isascii() and (char.isalnum() or char == "."))[:16]


def _remove(path: Path) -> None:
    """Takes away what a download left; some packages make a folder of one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _of_disk(folder: Path, error: OSError) -> FetchError | OutputError:
    """What it means that a file of the cache cannot be written: that passes, or no other one can be written either."""
    kind = kind_of(error)
    reason = f"cannot write the cache '{folder}': {error.strerror}"
    return FetchError(kind, reason) if kind in ("no_resources", "out_of_memory") else OutputError(reason)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock, which is held. Raises `OSError` where there can be none."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if is_at(folder / _LOCK, lock):
            return folder, lock
        os.close(lock)  # another run that began in between took the folder for a dead one


def _remove_dead(parent: Path) -> None:
    """Removes the folders of runs that ended without doing so: nobody holds their lock."""
    for folder in parent.glob("run-*"):
        with suppress(OSError):  # being made or removed by another run at this moment, or not ours
            if not _is_of_a_run(folder):
                continue
            descriptor = open_regular(folder / _LOCK, writing=True)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_of_a_run(folder: Path) -> bool:
    """True for a folder that a run made: of its name, for this user alone, with a lock that is an empty plain file."""
    status, lock = folder.lstat(), (folder / _LOCK).lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    is_lock = stat.S_ISREG(lock.st_mode) and lock.st_uid == os.geteuid() and lock.st_size == 0
    return is_own and is_lock and _FOLDER.fullmatch(folder.name) is not None
