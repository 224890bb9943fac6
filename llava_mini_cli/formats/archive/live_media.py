"""The live media of an archive: the newest row of each path, and where its frames are.

A part that cannot be read is told of and left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.layout import media_schema, part_name, part_numbers
from llava_mini_cli.formats.row import one_line


@dataclass(frozen=True)
class Damage:
    """A part of an archive that cannot be read."""

    part: int
    file: str  # relative to the archive
    message: str
    may_pass: bool = False  # the system refused to read it, such as for want of a permission; the file may be whole


def newest_media(folder: Path) -> tuple[pa.Table, list[Damage]]:
    """The newest row of each path, whatever its status; and what could not be read.

    `medium` and `part` say under which number and where the medium's frames are. A row that was written because the
    medium had moved or was touched lies elsewhere: `row_medium` and `row_part` are its own.
    """
    tables: list[pa.Table] = []
    damage: list[Damage] = []
    for part in part_numbers(folder, "media"):
        name = part_name(part, "media")
        try:
            table = read_table(folder / name)
            _check_frames(folder, part, table)
        except (OSError, pa.ArrowException) as error:
            damage.append(Damage(part, name, one_line(str(error)), may_pass(error)))
            continue
        except ArchiveError as error:
            damage.append(Damage(part, part_name(part, "frames"), str(error), may_pass(error.__cause__)))
            continue
        tables.append(table.append_column("part", pa.array(np.full(len(table), part, np.int64))))
    empty = media_schema().append(pa.field("part", pa.int64())).empty_table()  # with columns that older parts lack
    rows = pa.concat_tables([empty, *tables], promote_options="default")
    newest = _with_frames(_newest(rows), rows)
    # As nanoseconds: Python's own datetime has none, and pandas is not always there.
    place = newest.schema.get_field_index("mtime")
    return newest.set_column(place, "mtime", newest["mtime"].cast(pa.int64())), damage


def not_dropped(newest: pa.Table) -> pa.Table:
    """The rows of media that are part of the archive, or that failed."""
    return newest.filter(pc.invert(equal(newest["status"], "dropped")))


def may_pass(error: BaseException | None) -> bool:
    """True if the system refused to read a file, rather than the file being damaged or gone."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A small file, in this thread: there are many, and starting threads for each costs more than reading it."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=columns, use_threads=False)


def _check_frames(folder: Path, part: int, media: pa.Table) -> None:
    """Raises `ArchiveError` where the frames of a part's media are not there; reads the footer alone."""
    own = media if "frames_of" not in media.column_names else media.filter(media["frames_of"].is_null())
    wanted = pc.sum(pc.filter(own["frames"], equal(own["status"], "ok"))).as_py() or 0
    if not wanted:
        return
    try:
        there = pq.read_metadata(folder / part_name(part, "frames")).num_rows
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(one_line(str(error))) from error
    if there < wanted:
        raise ArchiveError(f"{there} of {wanted} frames are there")


def _newest(media: pa.Table) -> pa.Table:
    """The row with the highest number for each path; of rows with the same number, that of the highest part."""
    if not len(media):
        return media
    codes = media["path"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((media["part"].to_numpy(), media["medium"].to_numpy(), codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True)
    return media.take(np.sort(order[last]))


def _with_frames(newest: pa.Table, rows: pa.Table) -> pa.Table:
    """The rows with `medium` and `part` of their frames; one whose frames are not there any more is left out."""
    places = {name: newest.schema.get_field_index(name) for name in ("medium", "part")}
    for name in places:
        newest = newest.append_column(f"row_{name}", newest[name])
    moved = newest["frames_of"].is_valid().to_numpy()
    if not moved.any():
        return newest
    own = rows.filter(rows["frames_of"].is_null())
    number, part = own["medium"].to_numpy(), own["part"].to_numpy()
    order = np.lexsort((part, number))
    wanted = pc.coalesce(newest["frames_of"], newest["medium"]).to_numpy()
    last = np.searchsorted(number[order], wanted, "right") - 1  # in the highest part that has it
    found = np.isin(wanted, number)
    there = np.where(moved & found, part[order][np.maximum(last, 0)] if len(part) else -1, newest["part"].to_numpy())
    newest = newest.set_column(places["medium"], "medium", pa.array(wanted))
    return newest.set_column(places["part"], "part", pa.array(there)).filter(pa.array(~moved | found))


def equal(column: Any, value: Any) -> Any:
    """Which rows of a column hold a value."""
    return pc.equal(column, pa.scalar(value, column.type))  # pyright: ignore[reportCallIssue, reportArgumentType]
