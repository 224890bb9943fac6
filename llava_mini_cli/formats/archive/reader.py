"""An archive as it was when it was opened: its live media and their frames. Reading goes on while a run writes.

Each file is looked at when the archive is opened (`manifest`, `verify`). A part that cannot be read is noted in
`damage` and left out. Knows nothing of scores or questions.
"""

import base64
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.layout import (
    CLIP_SUM,
    SUMS,
    VECTORS,
    ArchiveHeader,
    caption_schema,
    feature_schema,
    frame_schema,
    part_name,
)
from llava_mini_cli.formats.archive.locks import reading
from llava_mini_cli.formats.archive.newest import Damage, equal, manifest_of, newest_media
from llava_mini_cli.formats.archive.quantized import from_int8, numbers_of
from llava_mini_cli.formats.archive.sums import SUMMED, VectorSums
from llava_mini_cli.formats.archive.verify import (
    check_rows,
    opened,
    plain,
    read_table,
)
from llava_mini_cli.formats.row import one_line

_TEXTS = frozenset({"file_name", "error", "error_type", "error_stage"})
FEATURE_FRAMES = 32  # read at once


@dataclass(frozen=True)
class StoredMedium:
    """One live medium of an archive."""

    number: int
    part: int
    path: str
    file_name: str
    size: int | None
    mtime_ns: int | None
    media: str  # image or video
    duration_s: float | None
    width: int
    height: int
    frames: int
    frames_sampled: int
    fps_sampled: float | None
    warning: str | None
    digest: str | None = None  # of what the file held


@dataclass(frozen=True)
class StoredFailure:
    """A medium that could not be indexed, and why."""

    path: str
    file_name: str
    size: int | None
    mtime_ns: int | None
    error_stage: str
    error_type: str
    error: str
    digest: str | None = None


@dataclass(frozen=True)
class FrameColumns:
    """The frames of one part, without their vectors; in no order but that a medium's own frames ascend."""

    medium: NDArray[np.int64]
    time: NDArray[np.float64]
    last_time: NDArray[np.float64]


@dataclass
class Archive:
    """An archive that was opened for reading."""

    folder: Path
    header: ArchiveHeader
    media: pa.Table  # live and readable, in the order in which they were indexed; the columns of `media` and `part`
    failures: pa.Table  # the same of media that failed
    damage: list[Damage] = field(default_factory=list[Damage])
    recall: float | None = None  # of the approximate index, where that was used

    @property
    def parts(self) -> list[int]:
        """The parts that hold live media."""
        return np.unique(self.media["part"].to_numpy()).tolist()

    def medium(self, row: int) -> StoredMedium:
        """A row of `media`."""
        found = self.media.slice(row, 1).to_pylist()[0]
        return _medium(found)

    def each_medium(self) -> Iterator[StoredMedium]:
        """All rows of `media`, lazily."""
        for batch in self.media.to_batches(max_chunksize=1024):
            yield from (_medium(row) for row in batch.to_pylist())

    def each_failure(self) -> Iterator[StoredFailure]:
        """The media that could not be indexed."""
        for row in self.failures.to_pylist():
            known = {name: _given(row, name) for name in StoredFailure.__dataclass_fields__ if name in row}
            yield StoredFailure(mtime_ns=row["mtime"], **known)

    def restrict(self, rows: NDArray[np.bool_]) -> "Archive":
        """The archive with these of its media alone."""
        return Archive(self.folder, self.header, self.media.filter(pa.array(rows)), self.failures, self.damage)

    def matching(self, is_wanted: Callable[[str, str], bool]) -> "Archive":
        """The archive with the media whose path and file name are wanted."""

        def some(table: pa.Table) -> pa.Table:
            columns: list[Any] = [table[name].to_pylist() for name in ("path", "file_name")]
            return table.filter(pa.array([is_wanted(*names) for names in zip(*columns, strict=True)], pa.bool_()))

        return Archive(self.folder, self.header, some(self.media), some(self.failures), self.damage)

    def leave_out(self, part: int, error: ArchiveError) -> None:
        """Notes that something of a part cannot be read, each file once."""
        file, _, words = str(error).partition(": ")
        if file not in [each.file for each in self.damage]:
            self.damage.append(Damage(part, file, words))

    def frames(self, part: int) -> FrameColumns:
        """Raises `ArchiveError` for a damaged file."""
        names = ("medium", "time", "last_time")
        try:
            path = self.folder / part_name(part, "frames")
            table = read_table(path, frame_schema(self.header.shapes), names)
            check_rows("frames", table)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(part, "frames", error) from error
        return FrameColumns(*(table[name].to_numpy() for name in names))

    def _checked(self, part: int, table: str) -> Path:
        """The name of a file. Raises `ArchiveError` where it is known to be damaged, before anything looks into it."""
        name = part_name(part, table)
        for damage in self.damage:
            if damage.file == name:
                raise ArchiveError(f"{name}: {damage.message}")
        return self.folder / name

    def mean_vector(self) -> NDArray[np.float32]:
        """The mean of all embeddings, dropped ones included, `[clip]`; zeros where there are none."""
        total = np.zeros(self.header.shapes.clip or 0, np.float32)
        rows = 0
        for part in self.parts:
            try:
                text, there = self._described(part, CLIP_SUM)
                if text is not None:
                    total += np.frombuffer(base64.b64decode(text), "<f4")
                    rows += there
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._damaged(part, "frames", error) from error
        return total / np.float32(max(rows, 1))

    def _described(self, part: int, name: str) -> tuple[bytes | None, int]:
        """What the metadata of a part's file of `frames` say, if they do; and how many rows it has."""
        found = pq.read_metadata(plain(self.folder / part_name(part, "frames")))
        return (found.metadata or {}).get(name.encode()), found.num_rows

    def vector_sums(self, part: int) -> VectorSums | None:
        """What tells whether the part's plain embeddings are those that were written; None in older archives.

        Raises `ArchiveError`.
        """
        try:
            text, _ = self._described(part, SUMS)
            return None if text is None else VectorSums.parse(text)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(part, "frames", error) from error

    def captions(self, medium: StoredMedium) -> list[dict[str, Any]]:
        """The captions of a medium, in order; none where none were asked for. Raises `ArchiveError`."""
        path = self._checked(medium.part, "captions")
        if not path.exists():
            return []
        try:
            table = read_table(path, caption_schema(), ["medium", "start", "end", "text"])
            check_rows("captions", table)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(medium.part, "captions", error) from error
        return table.filter(equal(table["medium"], medium.number)).to_pylist()

    def vector_file(self, part: int, rows: int) -> Path | None:
        """The part's embeddings as plain float16 `[rows, clip]`; None where the file is missing or cut."""
        path = self.folder / part_name(part, VECTORS)
        try:
            whole = path.stat().st_size == rows * 2 * (self.header.shapes.clip or 0)
        except OSError:
            return None
        return path if whole else None

    def vector_rows(self, part: int, rows: NDArray[np.int32]) -> NDArray[np.float16]:
        """Some of a part's embeddings `[n, clip]`. Raises `ArchiveError`."""
        path, width, sums = self.folder / part_name(part, VECTORS), self.header.shapes.clip or 0, self.vector_sums(part)
        try:
            plain_numbers = np.memmap(plain(path), "<f2", "r").reshape(-1, width)
            if sums is not None:
                for first in np.unique(rows // SUMMED * SUMMED).tolist():
                    sums.check(first, plain_numbers[first : first + SUMMED].tobytes())
            return plain_numbers[rows]
        except (OSError, ValueError, IndexError) as error:
            if sums is not None:
                self.leave_out(part, self._damaged(part, VECTORS, error))
            try:  # the table has the same numbers
                return np.concatenate([np.zeros((0, width), np.float16), *self.vectors(part)])[rows]
            except IndexError as error:
                raise self._damaged(part, "frames", error) from error

    def vectors(self, part: int) -> Iterator[NDArray[np.float16]]:
        """The same embeddings from Parquet, a batch `[n, clip]` at a time. Raises `ArchiveError`."""
        width = self.header.shapes.clip
        assert width is not None
        try:
            path = self.folder / part_name(part, "frames")
            with opened(path, frame_schema(self.header.shapes), ["clip"]) as file:
                for batch in file.iter_batches(batch_size=4096, columns=["clip"]):
                    column: Any = batch.column(0)
                    yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(part, "frames", error) from error

    def embeddings(self, medium: StoredMedium) -> NDArray[np.float16] | None:
        """A medium's embeddings `[frames, clip]`, in order; None where there are none. Raises `ArchiveError`."""
        if self.header.shapes.clip is None:
            return None
        rows = np.flatnonzero(self.frames(medium.part).medium == medium.number).astype(np.int32)
        if len(rows) != medium.frames:
            name = part_name(medium.part, "frames")
            raise ArchiveError(f"{name}: {len(rows)} of {medium.frames} frames of {medium.path} are there")
        return self.vector_rows(medium.part, rows)

    def features(self, medium: StoredMedium) -> Iterator[tuple[NDArray[np.generic], NDArray[np.float64]]]:
        """Patch features `[n, parts, patches, width]` (float16 or float32) and times `[n]` of a medium, in order.

        Raises:
            ArchiveError: they are damaged, or not all there.
        """
        found, path = 0, self._checked(medium.part, "features")
        try:
            expected = feature_schema(self.header.shapes, self.header.features or "float32")
            with opened(path, expected, expected.names, memory_map=True) as file:
                for group in range(file.metadata.num_row_groups):
                    for features, times in self._group_features(file, group, medium.number):
                        found += len(times)
                        yield features, times
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(medium.part, "features", error) from error
        if found != medium.frames:
            name = part_name(medium.part, "features")
            raise ArchiveError(f"{name}: {found} of {medium.frames} frames of {medium.path} are there")

    def _group_features(
        self, file: pq.ParquetFile, group: int, medium: int
    ) -> Iterator[tuple[NDArray[np.generic], NDArray[np.float64]]]:
        """The features of one row group; a group that holds nothing of the medium is not read."""
        owners = file.read_row_group(group, columns=["medium"])["medium"].to_numpy()
        if not (owners == medium).any():
            return
        for batch in file.iter_batches(batch_size=FEATURE_FRAMES, row_groups=[group]):
            mine = equal(batch["medium"], medium)
            batch = batch.filter(mine)
            if batch.num_rows:
                check_rows("features", batch)
                yield self._unpacked(batch), batch["time"].to_numpy()

    def _unpacked(self, batch: pa.RecordBatch) -> NDArray[np.generic]:
        parts, patches, width = self.header.shapes.features
        kind: Any = {"float32": "<f4", "float16": "<f2", "int8": "i1"}[self.header.features or ""]
        features = numbers_of(batch["features"], kind).reshape(batch.num_rows, parts, patches, width)
        if self.header.features != "int8":
            return features
        return from_int8(features, numbers_of(batch["scales"], "<f4").reshape(batch.num_rows, parts, width))

    def _damaged(self, part: int, table: str, error: Exception) -> ArchiveError:
        return ArchiveError(f"{part_name(part, table)}: {one_line(str(error))}")


@contextmanager
def open_archive(folder: Path) -> Generator[Archive]:
    """An archive for reading; `--compact` is refused until the block ends, other writers are not.

    Raises:
        UsageError: there is none. ArchiveError: its header is damaged. OutputLocked: it is being compacted.
    """
    header = ArchiveHeader.read(folder)
    with reading(folder):
        newest, damage = newest_media(folder, header, manifest_of(folder, header))
        good, bad = (newest.filter(equal(newest["status"], status)) for status in ("ok", "error"))
        yield Archive(folder, header, good, bad, damage)


def _medium(row: dict[str, Any]) -> StoredMedium:
    names = {"number": "medium", "mtime_ns": "mtime"}
    return StoredMedium(**{name: _given(row, names.get(name, name)) for name in StoredMedium.__dataclass_fields__})


def _given(row: dict[str, Any], name: str) -> Any:
    """A value of a medium; no text where a name or a reason is null, which no run writes."""
    return "" if row[name] is None and name in _TEXTS else row[name]


def local_name(text: str) -> str:
    """The name of a file as the disk has it, from what `row.printable` made of it; `text` where none of it is there."""
    if "\\x" not in text or os.path.lexists(text):
        return text
    name = re.sub(r"\\x([89a-f][0-9a-f])", lambda byte: bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape"), text)
    return name if os.path.lexists(name) else text
