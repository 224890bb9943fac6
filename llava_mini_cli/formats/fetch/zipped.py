"""A file in a zip archive that a table names, `zip://MEMBER::ARCHIVE`: the archive is fetched whole, one file unpacked.

Whatever an archive claims is bounded: the bytes that are unpacked are counted as they are written, and its directory
is read only up to a size.
"""

import zipfile
import zlib
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath
from threading import Event, Lock

from llava_mini_cli.errors import FetchError, first_line, kind_of
from llava_mini_cli.formats.fetch.new_file import CHUNK, NewFile
from llava_mini_cli.formats.fetch.urls import without_signature
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.formats.media_root import below
from llava_mini_cli.formats.source import FetchOptions, Source
from llava_mini_cli.plain_files import open_plain

_MOST_AT_ONCE = 1 << 26  # bytes that are read at once: the directory of about a million files
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # of which a part is unpacked at a time
_unpacking = Lock()  # one directory in memory at a time


@dataclass(frozen=True, eq=False)
class _InZip:
    name: str  # the URL as given
    member: str

    @property
    def suffix(self) -> str:
        """The suffix of the member's name, with its dot, or nothing."""
        return PurePosixPath(self.member).suffix

    @property
    def item(self) -> ItemIdentity:
        """The URL, as of every download."""
        return without_signature(self.name), None, None


@dataclass(frozen=True, eq=False)
class ZippedHere(_InZip):
    """A file in a zip archive on this disk."""

    path: str  # of the archive
    roots: tuple[str, ...] = ()  # folders that it must lie below: see `below`

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Unpacks it to a new file. Raises as `Source.write_to` does."""
        archive = Path(below(self.path, self.roots))
        unpack(archive, self.member, path, options)


@dataclass(frozen=True, eq=False)
class ZippedThere(_InZip):
    """A file in a zip archive that is fetched."""

    archive: Source

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Fetches the archive beside the file, and unpacks it. Raises as `Source.write_to` does."""
        archive = path.with_name(f"{path.name}.zip")
        try:
            self.archive.write_to(archive, options, stopped)
            self.unpack(archive, path, options)
        finally:
            archive.unlink(missing_ok=True)

    def unpack(self, archive: Path, path: Path, options: FetchOptions) -> None:
        """Unpacks it to a new file from the archive's own. Raises as `Source.write_to` does."""
        unpack(archive, self.member, path, options)


class _BoundedReader(BufferedReader):
    """A file of which not too much is read into memory at once, whatever its own numbers say."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_AT_ONCE:
            raise FetchError("too_large", f"{size} bytes are too many for the directory of a zip archive")
        try:
            return super().read(size)
        except OSError as error:
            raise FetchError(kind_of(error), (error.strerror or str(error)).lower()) from None

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:
            raise zipfile.BadZipFile("a place outside of the archive") from None


def unpack(archive: Path, member: str, path: Path, options: FetchOptions) -> None:
    """Writes a member of a zip archive to a new file.

    Raises:
        FetchError: the archive cannot be read or holds no such member, or the member is too large.
        NoRoomError: there is no room for it now.
        OSError: the new file cannot be written.
    """
    with _BoundedReader(_open(archive)) as reader, _unpacking:
        try:
            _unpack(reader, member, path, options)
        except KeyError:
            raise FetchError("not_found", f"no '{member}' in the zip archive") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError) as error:
            raise FetchError("corrupt", f"the zip archive is damaged: {first_line(error)}") from None
        except (RuntimeError, NotImplementedError, ValueError) as error:  # encrypted, or odd
            raise FetchError("unreadable", f"the zip archive cannot be read: {first_line(error)}") from None


def _open(archive: Path) -> FileIO:
    """The archive's file. Raises `FetchError`."""
    try:
        return FileIO(open_plain(archive))
    except (OSError, ValueError) as error:
        kind = kind_of(error) if isinstance(error, OSError) else "not_found"
        raise FetchError(kind, (getattr(error, "strerror", None) or str(error)).lower()) from None


def _unpack(reader: BufferedReader, member: str, path: Path, options: FetchOptions) -> None:
    with zipfile.ZipFile(reader) as archive:
        info = archive.getinfo(member)
        if info.compress_type not in _METHODS:
            raise NotImplementedError(f"a method of compression, number {info.compress_type}")
        options.check_size(0, info.file_size)
        with archive.open(info) as source, NewFile(path, options) as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
