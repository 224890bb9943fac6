"""Merging small parts and taking out rows that nothing refers to any more. The one thing that rewrites an archive.

Only on request. A merged part counts, and those that are in it do not any more, from the moment at which the manifest
is replaced; an end at any other moment leaves files that do not count, and that the next writer takes away.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.archive.layout import (
    FORMAT_VERSION,
    VECTORS,
    ArchiveHeader,
    caption_schema,
    feature_schema,
    files_of,
    frame_schema,
    media_schema,
    part_name,
)
from llava_mini_cli.formats.archive.locks import take_away, writing
from llava_mini_cli.formats.archive.manifest import Manifest, PartFacts
from llava_mini_cli.formats.archive.newest import Damage, equal, may_pass, newest_media, not_dropped
from llava_mini_cli.formats.archive.part import ArchivePartWriter
from llava_mini_cli.formats.archive.verify import check_rows, opened
from llava_mini_cli.formats.archive.writer import settled
from llava_mini_cli.formats.row import one_line

SMALL_ROWS = 8_192  # frames; parts with fewer are merged
MERGED_ROWS = 65_536  # frames at which a merged part is closed
BATCH_ROWS = 256  # frames held at once


@dataclass(frozen=True)
class Compacted:
    """The outcome of a compaction."""

    before: int  # parts that were rewritten
    after: int  # parts in their place
    lost: list[Damage]  # what of the former could not be read and is gone; their media are to be indexed again
    is_converted: bool = False  # the archive was of an older format before


@dataclass
class _Source:
    """A part that goes."""

    number: int
    live: pa.Table  # the rows of `media` that stay


class _UnreadableError(Exception):
    """A source whose rows turned out to be damaged."""

    def __init__(self, source: _Source, damage: Damage) -> None:
        super().__init__(damage.message)
        self.source = source
        self.damage = damage


def compact(folder: Path) -> Compacted:
    """Rewrites small parts and those with dropped or replaced media, and takes out parts that are damaged.

    Raises:
        OutputLocked: somebody writes to the archive.
        OutputError: the disk refuses, also to read a part that may be whole.
    """
    header = ArchiveHeader.read(folder)
    with writing(folder):
        manifest, is_converted = settled(folder, header), header.format_version < FORMAT_VERSION
        sources, damage = _sources(folder, header, manifest)
        lost = [item for item in damage if not item.file.startswith(VECTORS)]  # `frames` has the same numbers
        if len(sources) == 1 and not damage and not _has_dead_rows(folder, sources[0]):
            return Compacted(0, 0, [], is_converted)
        numbers, new = [source.number for source in sources], dict[int, PartFacts]()
        try:
            while sources:
                batch = [sources.pop(0)]
                while sources and sum(_rows(source) for source in batch) < MERGED_ROWS:
                    batch.append(sources.pop(0))
                number = max(manifest.last, *new, 0) + 1
                merged = _merge(folder, header, number, batch, lost)
                new |= {} if merged is None else {number: merged}
            manifest.changed(new, numbers).write(folder)
        except OutputError:
            take_away(folder, _files(folder, new))
            raise
        take_away(folder, _files(folder, numbers))
        return Compacted(len(numbers), len(new), lost, is_converted)


def _files(folder: Path, parts: Collection[int]) -> list[Path]:
    return [path for number in parts for path in files_of(folder, number)]


def _sources(folder: Path, header: ArchiveHeader, manifest: Manifest) -> tuple[list[_Source], list[Damage]]:
    """The parts that are worth rewriting; damaged ones are among them, and named."""
    newest, damage = newest_media(folder, header, manifest, whole=True)
    for refused in (item for item in damage if item.may_pass):
        raise OutputError(f"cannot compact the archive '{folder}': {refused.file}: {refused.message}")
    damaged = {item.part for item in damage}
    sources: list[_Source] = []
    stays = not_dropped(newest)
    owners = stays["part"].to_numpy()
    for number in manifest.parts:
        source = _Source(number, stays.filter(pa.array(owners == number)))
        if number in damaged or _frames(source) < SMALL_ROWS or _has_dead_rows(folder, source):
            sources.append(source)
    return sources, damage


def _frames(source: _Source) -> int:
    return int(np.sum([frames or 0 for frames in source.live["frames"].to_pylist()]))


def _rows(source: _Source) -> int:
    return _frames(source) + len(source.live)


def _has_dead_rows(folder: Path, source: _Source) -> bool:
    frames = folder / part_name(source.number, "frames")
    try:
        media = pq.read_metadata(folder / part_name(source.number, "media")).num_rows
        there = pq.read_metadata(frames).num_rows if frames.exists() else 0
    except (OSError, ValueError, pa.ArrowException):
        return True
    strangers = any(part != source.number for part in source.live["row_part"].to_pylist())
    return strangers or media != len(source.live) or there != _frames(source)


def _merge(
    folder: Path, header: ArchiveHeader, number: int, sources: list[_Source], lost: list[Damage]
) -> PartFacts | None:
    """One part in place of several, which does not count yet; None where nothing of them is left."""
    while any(len(source.live) for source in sources):
        try:
            return _write(folder, header, number, sources)
        except _UnreadableError as error:
            error.source.live = error.source.live.slice(0, 0)
            lost.append(error.damage)
    return None


def _write(folder: Path, header: ArchiveHeader, number: int, sources: list[_Source]) -> PartFacts | None:
    part = ArchivePartWriter(folder, number, header)
    try:
        for source in sources:
            if not len(source.live):
                continue
            for table in ("frames", "features", "captions"):
                for rows in _live_rows(folder, header, source, table):
                    part.append(table, rows)
            part.append("media", _as_own(source.live))
        return part.publish()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"cannot compact the archive '{folder}': {error}") from error
    finally:
        part.discard()


def _live_rows(folder: Path, header: ArchiveHeader, source: _Source, table: str) -> Iterator[pa.Table]:
    """Raises `_UnreadableError` for damage, `OSError` where the system refuses."""
    expected = _schema(header, table)
    name = part_name(source.number, table)
    if not (folder / name).exists():
        return
    live = source.live.filter(equal(source.live["status"], "ok"))["medium"].to_numpy()  # without those that failed
    try:
        with opened(folder / name, expected, expected.names) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=expected.names):
                check_rows(table, batch)
                mine = batch.filter(pa.array(np.isin(batch["medium"].to_numpy(), live)))
                rows = pa.Table.from_batches([mine]).cast(expected)
                if len(rows):
                    yield _renumbered(rows, source.live)
    except (OSError, ValueError, pa.ArrowException) as error:
        if may_pass(error):
            raise
        raise _UnreadableError(source, Damage(source.number, name, one_line(str(error)))) from error


def _schema(header: ArchiveHeader, table: str) -> pa.Schema:
    if table == "features":
        return feature_schema(header.shapes, header.features or "float32")
    return frame_schema(header.shapes) if table == "frames" else caption_schema()


def _as_own(live: pa.Table) -> pa.Table:
    """Rows of `media` for the part that their frames are in, under the numbers that they have themselves."""
    numbers = live.schema.get_field_index("medium"), live.schema.get_field_index("frames_of")
    live = live.set_column(numbers[0], "medium", live["row_medium"])
    live = live.set_column(numbers[1], "frames_of", pa.nulls(len(live), pa.int64()))
    return live.drop_columns(["part", "row_medium", "row_part"]).cast(media_schema())


def _renumbered(rows: pa.Table, live: pa.Table) -> pa.Table:
    """Rows of another table under the numbers that their media have now."""
    old, new = live["medium"].to_numpy(), live["row_medium"].to_numpy()
    if (old == new).all():
        return rows
    order = np.argsort(old)
    places = order[np.searchsorted(old[order], rows["medium"].to_numpy())]
    return rows.set_column(rows.schema.get_field_index("medium"), "medium", pa.array(new[places]))
