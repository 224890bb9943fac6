"""Writing to an archive: parts are filled medium by medium and put in place when they are large or old enough.

A medium is in the archive once the manifest names its part; until then a run that is killed leaves nothing of it that
counts. Nothing that is in place is ever rewritten here: a changed or dropped file gets a new row that stands for its
path from then on.
"""

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llava_mini_cli.errors import PASSING_KINDS, OutputError, UsageError
from llava_mini_cli.formats.archive.layout import (
    CAPTION_COLUMNS,
    FORMAT_VERSION,
    HEADER,
    MEDIA_COLUMNS,
    NEAR,
    READERS,
    TABLES,
    VECTORS,
    ArchiveHeader,
    Shapes,
    files_of,
    part_numbers,
)
from llava_mini_cli.formats.archive.locks import take_away, writing
from llava_mini_cli.formats.archive.manifest import MANIFEST, Manifest, PartFacts
from llava_mini_cli.formats.archive.newest import Damage, manifest_of, newest_media
from llava_mini_cli.formats.archive.part import ArchivePartWriter, FrameRows
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.disk import errors_of
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.paths import is_folder, is_there
from llava_mini_cli.safe_files import open_regular, sweep

NOTHING = ArchiveHeader("", None, "", Shapes((1, 1), None, (1, 1, 1)), None)  # of an archive that is not there yet

PART_ROWS = 16_384  # frames
PART_BYTES = 1 << 30
MOST_MEDIA = 1 << 32  # more than a part can hold
PART_SECONDS = 60.0  # of work that a power cut may cost


@dataclass(frozen=True)
class Known:
    """The newest state of a path in an archive."""

    size: int | None
    mtime_ns: int | None
    status: str  # ok or error
    digest: str | None = None  # of what the file holds
    place: int | None = field(default=None, compare=False)  # of its row, if it was there when the archive was opened
    error_type: str | None = None

    def is_finished(self, *, retry_errors: bool) -> bool:
        """False for an error of the moment, and for others where they are to be tried again."""
        return self.status == "ok" or not (retry_errors or self.error_type in PASSING_KINDS)


class ArchiveWriter:
    """An archive that was opened for writing, under its lock."""

    def __init__(self, folder: Path, header: ArchiveHeader | None, manifest: Manifest) -> None:
        """`header`: None for a new archive."""
        self.folder = folder
        self.header = header
        self.is_converted = header is not None and header.format_version < FORMAT_VERSION  # by `settled`, just now
        self._manifest = manifest
        newest, self.damage = _newest(folder, header, manifest)
        self.known = _known(newest)
        self._newest = newest
        self._moved: dict[str, ItemIdentity] = {}  # paths of media that are known again, and what they are now
        self._next_part = manifest.last + 1
        # What a damaged part holds is not known, and it may be read again one day: its numbers are left free.
        self._next_medium = (pc.max(newest["row_medium"]).as_py() or 0) + 1 + len(self.damage) * MOST_MEDIA
        self._open: list[ArchivePartWriter] = []  # the last one takes new media
        self._places: dict[int, ArchivePartWriter] = {}  # of media in flight
        self._waits = False  # full parts, to be put in place together with those that are not

    def start(self, header: ArchiveHeader) -> None:
        """Settles the header of the rows to come; nothing is written before.

        Raises:
            UsageError: the archive was made with another model or other settings.
        """
        if self.header is None:
            self._manifest.write(self.folder)
            header.write(self.folder)
            self.header = header
        difference = self.header.difference(header)
        if difference is not None:
            raise UsageError(f"'{self.folder}': {difference}; index into another folder, or remove this one")

    def holds(self, item: ItemIdentity, *, retry_errors: bool = False) -> bool:
        """True if a medium is there as it is now; one that failed counts unless it is to be tried again."""
        known = self.known.get(item[0])
        if known is None or (known.size, known.mtime_ns) != item[1:]:
            return False
        return known.is_finished(retry_errors=retry_errors)

    def recall(self, item: ItemIdentity, file_name: str, content: str | None, *, retry_errors: bool) -> str | None:
        """The path under which a medium is there that was moved or touched since, each once; None where there is none.

        It was moved if nothing is at its old path any more. `record_moved` then writes where it is.
        """
        for path in () if content is None else (item[0], *self._alike.get((file_name, content), ())):
            known = self.known.get(path)
            if known is None or known.place is None or known.digest != content or path in self._moved:
                continue
            if not known.is_finished(retry_errors=retry_errors):
                continue
            if path == item[0] or is_gone(local_name(path)):
                self._moved[path] = item
                return path
        return None

    @cached_property
    def _alike(self) -> dict[tuple[str, str], list[str]]:
        """Paths by the name below the folder that was given, and the digest."""
        found: dict[tuple[str, str], list[str]] = {}
        columns = (self._newest[name].to_pylist() for name in ("path", "file_name", "digest"))
        for path, file_name, digest in zip(*columns, strict=True):
            if digest is not None:
                found.setdefault((file_name, digest), []).append(path)
        return found

    def record_moved(self) -> None:
        """Writes where the media are that `recall` gave, and how old; their frames stay where they are."""
        for path, item in self._moved.items():
            self._move(path, item)
        self._moved.clear()

    def _move(self, path: str, item: ItemIdentity) -> None:
        place = self.known[path].place
        assert place is not None
        row = self._newest.slice(place, 1).drop_columns(["part", "row_medium", "row_part"]).to_pylist()[0]
        frames_of = row["medium"] if row["status"] == "ok" else None
        number, gone = self.begin(), self.begin()  # both, so that they are in one part
        self.finish(number, row | {"path": item[0], "mtime": item[2], "frames_of": frames_of})
        if path == item[0]:
            del self._places[gone]
        else:
            self.finish(gone, {"path": path, "status": "dropped"})
            del self.known[path]

    def begin(self) -> int:
        """The number of a new medium."""
        assert self.header is not None
        number = self._next_medium
        self._next_medium += 1
        if not self._open or _is_full(self._open[-1]):
            self._open.append(ArchivePartWriter(self.folder, self._next_part, self.header))
            self._next_part += 1
        self._places[number] = self._open[-1]
        return number

    def add_frames(self, medium: int, rows: FrameRows) -> None:
        """Some more frames of a medium."""
        self._places[medium].add_frames(medium, rows)

    def finish(self, medium: int, row: Mapping[str, Any], captions: Sequence[Mapping[str, Any]] = ()) -> None:
        """A medium is complete, or failed: `row` holds the columns of `media` that are known."""
        part = self._places.pop(medium)
        stamped = dict.fromkeys(MEDIA_COLUMNS) | {"indexed_at": datetime.now(UTC)} | dict(row) | {"medium": medium}
        part.add_medium(
            stamped, [dict.fromkeys(CAPTION_COLUMNS) | dict(caption) | {"medium": medium} for caption in captions]
        )
        known = Known(row.get("size"), row.get("mtime"), row["status"], row.get("digest"), None, row.get("error_type"))
        self.known[row["path"]] = known
        if self._waits:
            if _is_full(part):
                part.complete()
        elif full := [one for one in self._open if _is_full(one) and one not in self._places.values()]:
            self._put(full)

    def forget(self, medium: int) -> None:
        """A medium that was begun will not be finished; its frames are left-overs."""
        del self._places[medium]

    def drop(self, paths: Sequence[str]) -> None:
        """Takes paths out of the archive, all at once: nothing counts before `close`."""
        self._waits = True
        for path in paths:
            self.finish(self.begin(), {"path": path, "status": "dropped"})
            del self.known[path]

    def close(self) -> None:
        """Puts everything in place that is complete; frames of media that are not are left-overs there."""
        try:
            self._put(list(self._open))
        finally:
            self.discard()

    def _put(self, parts: Sequence[ArchivePartWriter]) -> None:
        """From now on these parts are in the archive, all of them at one moment."""
        new: dict[int, PartFacts] = {}
        for part in parts:
            facts = part.publish()
            if facts is not None:
                new[part.number] = facts
        if new:
            self._manifest = self._manifest.changed(new)
            self._manifest.write(self.folder)
        self._open = [part for part in self._open if part not in parts]

    def discard(self) -> None:
        """Takes away what is not in place."""
        while self._open:
            self._open.pop().discard()


@contextmanager
def open_for_writing(folder: Path) -> Generator[ArchiveWriter]:
    """An archive for writing, made where there is none. What is complete when the block ends is put in place.

    Raises:
        OutputLocked: another run is writing. UsageError: the folder holds something else. ArchiveError: the
            archive's header is damaged. OutputError: it cannot be written.
    """
    make_folder(folder)
    with writing(folder):
        header = ArchiveHeader.read(folder) if is_there(folder / HEADER) else None
        writer = ArchiveWriter(folder, header, settled(folder, header))
        try:
            yield writer
        except OutputError:
            writer.discard()
            raise
        finally:
            writer.close()


def settled(folder: Path, header: ArchiveHeader | None) -> Manifest:
    """The parts of an archive that is about to be written to, after what earlier runs left was taken away.

    An archive of format 1 is of the newest format from now on; a manifest that was damaged is made anew of the parts
    that are there, and still says why. Raises `OutputError`.
    """
    manifest = manifest_of(folder, header)
    if header is not None and (header.format_version < FORMAT_VERSION or manifest.damage is not None):
        damage, manifest = manifest.damage, manifest.with_facts(folder)
        if damage is not None:  # a number may be given out again that an approximate index knows
            take_away(folder, (folder / NEAR).glob("near.json"))
        manifest.write(folder)
        header.write(folder)  # after it older versions, which know nothing of a manifest, refuse the archive
        manifest = replace(manifest, damage=damage)
    for place in (folder, folder / NEAR, *(folder / table for table in (*TABLES, VECTORS))):
        sweep(place, alone=True)
    there = {number for table in (*TABLES, VECTORS) for number in part_numbers(folder, table)}
    take_away(folder, [path for number in there - set(manifest.parts) for path in files_of(folder, number)])
    for table in TABLES:  # of older versions, which named them so
        take_away(folder, (folder / table).glob(".part-*.tmp"))
    return manifest


def _newest(folder: Path, header: ArchiveHeader | None, manifest: Manifest) -> tuple[pa.Table, list[Damage]]:
    """Media of damaged parts are not known, so they are indexed again."""
    return newest_media(folder, header or NOTHING, manifest, whole=True)


def make_folder(folder: Path) -> None:
    """Raises `UsageError` for a folder with something else in it, `OutputError` where none can be made."""
    if is_there(folder) and not is_folder(folder):
        raise UsageError(f"-o '{folder}' is a file; an archive is a folder")
    with errors_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.name[0] != "." and path.name != MANIFEST]
        if others and not (folder / HEADER).exists():
            raise UsageError(f"-o '{folder}' holds other things ('{others[0]}'); an archive is a folder of its own")
    with errors_of(folder / READERS):
        os.close(open_regular(folder / READERS, create=True))


def _is_full(part: ArchivePartWriter) -> bool:
    old = time.monotonic() - part.began >= PART_SECONDS
    return part.rows >= PART_ROWS or part.nbytes >= PART_BYTES or old


def is_gone(path: str) -> bool:
    """True if it is certain that nothing has this name; a disk that does not answer may have it, a shard its member."""
    try:
        os.lstat(path)
    except (FileNotFoundError, ValueError):  # ValueError: no file can have such a name
        return True
    except OSError:  # such as NotADirectoryError: it lies inside a shard or a table, and that is there
        return False
    return False


def _known(newest: pa.Table) -> dict[str, Known]:
    """The newest row of each path that is part of the archive, or failed."""
    columns = (newest[name].to_pylist() for name in ("path", "size", "mtime", "status", "digest", "error_type"))
    rows = enumerate(zip(*columns, strict=True))
    return {
        path: Known(size, mtime, status, digest, place, error_type)
        for place, (path, size, mtime, status, digest, error_type) in rows
        if status != "dropped"
    }
