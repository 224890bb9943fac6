"""Writing to an archive: parts are filled medium by medium and put in place when they are large or old enough.

A medium is in the archive once its part is; until then a run that is killed leaves nothing of it. Nothing that is in
place is ever rewritten here: a changed or dropped file gets a new row that stands for its path from then on.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.archive.layout import (
    CAPTION_COLUMNS,
    HEADER,
    MEDIA_COLUMNS,
    READERS,
    TABLES,
    VECTORS,
    ArchiveHeader,
    last_part,
    part_name,
    part_numbers,
)
from llava_mini_cli.formats.archive.locks import writing
from llava_mini_cli.formats.archive.part import ArchivePartWriter, FrameRows
from llava_mini_cli.formats.archive.reader import newest_media, not_dropped
from llava_mini_cli.formats.disk import errors_of
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.paths import is_folder, is_there

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


class ArchiveWriter:
    """An archive that was opened for writing, under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = ArchiveHeader.read(folder) if is_there(folder / HEADER) else None  # None: a new archive
        newest, damage = newest_media(folder)
        self.damage = damage  # media in these parts are not known, so they are indexed again
        self.known = _known(newest)
        self._next_part = last_part(folder) + 1
        # What a damaged part holds is not known, and it may be read again one day: its numbers are left free.
        self._next_medium = (pc.max(newest["medium"]).as_py() or 0) + 1 + len(damage) * MOST_MEDIA
        self._open: list[ArchivePartWriter] = []  # the last one takes new media
        self._places: dict[int, ArchivePartWriter] = {}  # of media in flight

    def start(self, header: ArchiveHeader) -> None:
        """Settles the header of the rows to come; nothing is written before.

        Raises:
            UsageError: the archive was made with another model or other settings.
        """
        if self.header is None:
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
        return known.status == "ok" or not retry_errors

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
        stamped = dict.fromkeys(MEDIA_COLUMNS) | dict(row) | {"medium": medium, "indexed_at": datetime.now(UTC)}
        part.add_medium(
            stamped, [dict.fromkeys(CAPTION_COLUMNS) | dict(caption) | {"medium": medium} for caption in captions]
        )
        self.known[row["path"]] = Known(row.get("size"), row.get("mtime"), row["status"])
        for open_part in list(self._open):
            if _is_full(open_part) and open_part not in self._places.values():
                self._open.remove(open_part)
                open_part.commit()

    def drop(self, path: str) -> None:
        """Takes a path out of the archive."""
        self.finish(self.begin(), {"path": path, "status": "dropped"})
        del self.known[path]

    def close(self) -> None:
        """Puts everything in place that is complete; frames of media that are not are left-overs there."""
        try:
            while self._open:
                self._open.pop(0).commit()
        finally:
            self.discard()

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
        _sweep(folder)
        writer = ArchiveWriter(folder)
        try:
            yield writer
        except OutputError:
            writer.discard()
            raise
        finally:
            writer.close()


def make_folder(folder: Path) -> None:
    """Raises `UsageError` for a folder with something else in it, `OutputError` where none can be made."""
    if is_there(folder) and not is_folder(folder):
        raise UsageError(f"-o '{folder}' is a file; an archive is a folder")
    with errors_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others and not (folder / HEADER).exists():
            raise UsageError(f"-o '{folder}' holds other things ('{others[0]}'); an archive is a folder of its own")
        (folder / READERS).touch()


def _sweep(folder: Path) -> None:
    """Takes away what a killed run left: temporary files, and files of parts that never came to be."""
    there = set(part_numbers(folder, "media"))
    for table in (*TABLES, VECTORS):
        for number in set(part_numbers(folder, table)) - there:
            with suppress(OSError):
                (folder / part_name(number, table)).unlink()
        for path in (folder / table).glob(".part-*.tmp"):
            with suppress(OSError):
                path.unlink()


def _is_full(part: ArchivePartWriter) -> bool:
    old = time.monotonic() - part.began >= PART_SECONDS
    return part.rows >= PART_ROWS or part.nbytes >= PART_BYTES or old


def _known(newest: pa.Table) -> dict[str, Known]:
    """The newest row of each path that is part of the archive, or failed."""
    live = not_dropped(newest)
    columns = (live[name].to_pylist() for name in ("path", "size", "mtime", "status"))
    return {path: Known(size, mtime, status) for path, size, mtime, status in zip(*columns, strict=True)}
