"""Merging small parts and taking out rows that nothing refers to any more. The one thing that rewrites an archive.

Only on request, and alone: readers would lose the files under their hands. New parts are complete before old ones go,
so an end in between leaves media twice, of which the newer part counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.archive.layout import (
    ArchiveHeader,
    files_of,
    last_part,
    media_schema,
    part_name,
    part_numbers,
)
from llava_mini_cli.formats.archive.locks import alone, writing
from llava_mini_cli.formats.archive.near import forget
from llava_mini_cli.formats.archive.part import ArchivePartWriter
from llava_mini_cli.formats.archive.reader import Damage, equal, may_pass, newest_media, not_dropped
from llava_mini_cli.formats.row import one_line

SMALL_ROWS = 8_192  # frames; parts with fewer are merged
MERGED_ROWS = 65_536  # frames at which a merged part is closed
BATCH_ROWS = 256  # frames held at once


@dataclass(frozen=True)
class Compacted:
    """The outcome of a compaction."""

    before: int  # parts that were rewritten
    after: int  # parts in their place
    lost: list[Damage]  # of the former, those that could not be read and are gone; their media are to be indexed again


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
        OutputLocked: somebody reads the archive or writes to it. OutputError: the disk refuses, also to read a part
            that may be whole.
    """
    header = ArchiveHeader.read(folder)
    with writing(folder), alone(folder):
        sources, lost = _sources(folder)
        if len(sources) == 1 and not _has_dead_rows(folder, sources[0]):
            return Compacted(0, 0, [])
        count = len(sources)
        if sources:
            forget(folder)  # an approximate index knows parts by number, and these are given out again
        first = number = last_part(folder) + 1
        while sources:
            batch = [sources.pop(0)]
            while sources and sum(_frames(source) for source in batch) < MERGED_ROWS:
                batch.append(sources.pop(0))
            number += _merge(folder, header, number, batch, lost)
        return Compacted(count, number - first, lost)


def _sources(folder: Path) -> tuple[list[_Source], list[Damage]]:
    """The parts that are worth rewriting; damaged ones are among them, and named."""
    newest, damage = newest_media(folder)
    for refused in (item for item in damage if item.may_pass):
        raise OutputError(f"cannot compact the archive '{folder}': {refused.file}: {refused.message}")
    damaged = {item.part for item in damage}
    sources: list[_Source] = []
    stays = not_dropped(newest)
    owners = stays["part"].to_numpy()
    for number in part_numbers(folder, "media"):
        live = stays.filter(pa.array(owners == number))
        source = _Source(number, live if number not in damaged else live.slice(0, 0))
        if number in damaged or _frames(source) < SMALL_ROWS or _has_dead_rows(folder, source):
            sources.append(source)
    return sources, damage


def _frames(source: _Source) -> int:
    return int(np.sum([frames or 0 for frames in source.live["frames"].to_pylist()]))


def _has_dead_rows(folder: Path, source: _Source) -> bool:
    frames = folder / part_name(source.number, "frames")
    try:
        media = pq.read_metadata(folder / part_name(source.number, "media")).num_rows
        there = pq.read_metadata(frames).num_rows if frames.exists() else 0
    except (OSError, ValueError, pa.ArrowException):
        return True
    strangers = any(part != source.number for part in source.live["row_part"].to_pylist())
    return strangers or media != len(source.live) or there != _frames(source)


def _merge(folder: Path, header: ArchiveHeader, number: int, sources: list[_Source], lost: list[Damage]) -> bool:
    """One part in place of several; none, and False, where nothing of them is left."""
    while is_needed := any(len(source.live) for source in sources):
        try:
            _write(folder, header, number, sources)
            break
        except _UnreadableError as error:
            error.source.live = error.source.live.slice(0, 0)
            lost.append(error.damage)
    for source in sources:
        for path in files_of(folder, source.number):
            path.unlink()
    return is_needed


def _write(folder: Path, header: ArchiveHeader, number: int, sources: list[_Source]) -> None:
    part = ArchivePartWriter(folder, number, header)
    try:
        for source in sources:
            if not len(source.live):
                continue
            for table in ("frames", "features", "captions"):
                for rows in _live_rows(folder, source, table):
                    part.append(table, rows)
            part.append("media", _as_own(source.live))
        part.commit()
    except (OSError, ValueError, pa.ArrowException) as error:
        part.discard()
        raise OutputError(f"cannot compact the archive '{folder}': {error}") from error
    except _UnreadableError:
        part.discard()
        raise


def _live_rows(folder: Path, source: _Source, table: str) -> Iterator[pa.Table]:
    """Raises `_UnreadableError` for damage, `OSError` where the system refuses."""
    name = part_name(source.number, table)
    if not (folder / name).exists():
        return
    live = source.live.filter(equal(source.live["status"], "ok"))["medium"].to_numpy()  # without those that failed
    try:
        with pq.ParquetFile(folder / name, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                rows = pa.Table.from_batches([batch.filter(pa.array(np.isin(batch["medium"].to_numpy(), live)))])
                if len(rows):
                    yield _renumbered(rows, source.live)
    except (OSError, ValueError, pa.ArrowException) as error:
        if may_pass(error):
            raise
        raise _UnreadableError(source, Damage(source.number, name, one_line(str(error)))) from error


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
