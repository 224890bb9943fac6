"""The rows of `media` that count, of those that all parts hold: the newest of each path, and where its frames are.

Each file is looked at on the way; what cannot be read is told as `Damage`, and its part is left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.layout import (
    LATER_COLUMNS,
    VECTORS,
    ArchiveHeader,
    frame_schema,
    media_schema,
    part_name,
)
from llava_mini_cli.formats.archive.manifest import MANIFEST, FileFacts, Manifest, PartFacts, file_facts
from llava_mini_cli.formats.archive.verify import check_frames, check_media, read_table
from llava_mini_cli.formats.row import one_line


@dataclass(frozen=True)
class Damage:
    """A file of an archive that cannot be read."""

    part: int  # 0: the file tells of all of them
    file: str  # relative to the archive
    message: str
    may_pass: bool = False  # the system refused to read it, such as for want of a permission; the file may be whole


def manifest_of(folder: Path, header: ArchiveHeader | None) -> Manifest:
    """The parts that an archive consists of now."""
    return Manifest.read(folder, is_kept=header is not None and header.format_version > 1)


def newest_media(
    folder: Path, header: ArchiveHeader, manifest: Manifest, *, whole: bool = False
) -> tuple[pa.Table, list[Damage]]:
    """The newest row of each path, whatever its status; and what could not be read.

    `medium` and `part` say under which number and where the medium's frames are. A row that was written because the
    medium had moved or was touched lies elsewhere: `row_medium` and `row_part` are its own.

    Args:
        whole: parts of which any table is damaged are left out; otherwise those whose media or frames are.
    """
    tables: list[pa.Table] = []
    damage = [Damage(0, MANIFEST, manifest.damage)] if manifest.damage is not None else []
    for part, facts in manifest.parts.items():
        table, found = _part(folder, header, part, facts or {})
        damage += found
        if table is not None and not (whole and [each for each in found if not each.file.startswith(VECTORS)]):
            tables.append(table.append_column("part", pa.array(np.full(len(table), part, np.int64))))
    rows, odd = _checked(tables)
    newest = with_frames(newest_rows(rows), rows).sort_by("row_medium")  # as they were indexed, wherever they lie
    # As nanoseconds: Python's own datetime has none, and pandas is not always there.
    place = newest.schema.get_field_index("mtime")
    return newest.set_column(place, "mtime", newest["mtime"].cast(pa.int64())), damage + odd


def _checked(tables: list[pa.Table]) -> tuple[pa.Table, list[Damage]]:
    """One table of rows that can be; and the parts whose rows cannot."""
    empty = media_schema().append(pa.field("part", pa.int64())).empty_table()  # with columns that older parts lack
    rows = pa.concat_tables([empty, *tables], promote_options="default")
    damage: list[Damage] = []
    try:
        check_media(rows)  # at once: for many small tables it takes longer than reading them
    except pa.ArrowException as error:
        if len(tables) == 1:
            part = tables[0]["part"][0].as_py()
            return empty, [Damage(part, part_name(part, "media"), one_line(str(error)))]
        each = [_checked([table]) for table in tables]
        rows = pa.concat_tables([empty, *(table for table, _ in each)], promote_options="default")
        damage = [item for _, found in each for item in found]
    return rows, damage


def _part(folder: Path, header: ArchiveHeader, part: int, facts: PartFacts) -> tuple[pa.Table | None, list[Damage]]:
    """The rows of a part's media, if they and their frames can be read; and what cannot."""
    damage: list[Damage] = []

    def note(table: str, error: Exception) -> None:
        damage.append(Damage(part, part_name(part, table), one_line(str(error)), may_pass(error.__cause__ or error)))

    for table, known in facts.items():
        try:
            if file_facts(folder / part_name(part, table), table) != known:
                raise ValueError(_difference(folder / part_name(part, table), known))
        except (OSError, ValueError) as error:
            note(table, error)
    if {each.file for each in damage} & {part_name(part, table) for table in ("media", "frames")}:
        return None, damage
    try:
        path, columns = folder / part_name(part, "media"), media_schema()
        media = read_table(path, columns, columns.names, LATER_COLUMNS)
    except (OSError, ValueError, pa.ArrowException) as error:
        note("media", error)
        return None, damage
    try:
        check_frames(folder / part_name(part, "frames"), frame_schema(header.shapes), media)
    except ArchiveError as error:
        note("frames", error)
        return None, damage
    return media, damage


def _difference(path: Path, known: FileFacts) -> str:
    size = path.stat().st_size
    return "it is not what was written" if size == known.size else f"{size} of {known.size} bytes are there"


def not_dropped(newest: pa.Table) -> pa.Table:
    """The rows of media that are part of the archive, or that failed."""
    return newest.filter(pc.invert(equal(newest["status"], "dropped")))


def may_pass(error: BaseException | None) -> bool:
    """True if the system refused to read a file, rather than the file being damaged or gone."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)


def equal(column: Any, value: Any) -> Any:
    """Which rows of a column hold a value."""
    return pc.equal(column, pa.scalar(value, column.type))  # pyright: ignore[reportCallIssue, reportArgumentType]


def newest_rows(media: pa.Table) -> pa.Table:
    """The row with the highest number for each path; of rows with the same number, that of the highest part."""
    if not len(media):
        return media
    codes = media["path"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((media["part"].to_numpy(), media["medium"].to_numpy(), codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True)
    return media.take(np.sort(order[last]))


def with_frames(newest: pa.Table, rows: pa.Table) -> pa.Table:
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
