"""What the files of an archive must be before anything is made of them, since an archive may come from anybody.

Knows nothing of what they mean: plain files, columns of the types that are written, values where they are needed.
"""

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.plain_files import open_plain

LARGEST_HEADER = 1 << 20  # bytes
_WIDEST = 1 << 24  # numbers in a vector
_NUMBERS = ("fps", "start", "end", "dedupe")  # settings that are numbers where they are there
_ALWAYS = ("medium", "path", "status")  # columns of `media` without a null


def check_header(parsed: Mapping[str, Any]) -> None:
    """Raises `KeyError`, `TypeError` or `ValueError` for fields of a header that are missing or of another type."""
    for name in ("model", "model_digest", "model_revision", "version"):
        if name in parsed and not (name == "model_revision" and parsed[name] is None):
            _check_name(name, parsed[name])
    if parsed.get("features") not in (None, "float32", "float16", "int8"):
        raise ValueError(f"features are not {parsed['features']!r}")
    shapes = parsed["shapes"]
    clip = [] if shapes["clip"] is None else [shapes["clip"]]
    if len(shapes["token"]) != 2 or len(shapes["features"]) != 3:
        raise ValueError("shapes are of two and three numbers")
    for width in (*shapes["token"], *clip, *shapes["features"]):
        if type(width) is not int or not 0 < width <= _WIDEST:
            raise ValueError(f"{width!r} is no width of a vector")
    settings = parsed.get("settings", {})
    for name, value in settings.items():
        if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not isfinite(value)):
            raise ValueError(f"the setting '{name}' is not {value!r}")
    for name in (*_NUMBERS, "max_frames"):
        value = settings.get(name)
        if type(value) not in (int, type(None)) and (name == "max_frames" or type(value) is not float):
            raise ValueError(f"the setting '{name}' is not {value!r}")


def _check_name(name: str, value: Any) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} is not {value!r}")
    os.fsencode(value)  # half of a pair is in no name


def plain(path: Path) -> Path:
    """A path, if a plain file is there; for libraries that would wait for a pipe. Raises `OSError`."""
    os.close(open_plain(path))
    return path


def read_table(
    path: Path, expected: pa.Schema, filled: Sequence[str], columns: Sequence[str] | None = None
) -> pa.Table:
    """Some columns of a file, or all that are expected and there, with their values checked.

    In this thread: there are many small files, and starting threads for each costs more than reading it.

    Args:
        expected: the types of the columns.
        filled: columns that have a value in each row.

    Raises:
        OSError: the file cannot be read.
        pa.ArrowException: it is damaged, or a column is missing or of another type, or lacks a value.
    """
    with pq.ParquetFile(plain(path), page_checksum_verification=True) as file:
        names = columns or [name for name in expected.names if name in file.schema_arrow.names]
        check_types(file.schema_arrow, expected, (*names, *filled))
        table = file.read(columns=list(names), use_threads=False)
    table.validate(full=True)
    check_filled(table, filled)
    return table


def check_types(found: pa.Schema, expected: pa.Schema, names: Sequence[str]) -> None:
    """Raises `pa.ArrowInvalid` for columns that are missing, there twice, or of another type."""
    for name in names:
        if len(found.get_all_field_indices(name)) != 1 or not found.field(name).type.equals(expected.field(name).type):
            raise pa.ArrowInvalid(f"no column '{name}' of the type {expected.field(name).type}")


def check_filled(table: pa.Table, names: Sequence[str]) -> None:
    """Raises `pa.ArrowInvalid` for columns that lack a value."""
    for name in names:
        if table[name].null_count:
            raise pa.ArrowInvalid(f"a row without '{name}'")


def read_media(path: Path, expected: pa.Schema) -> pa.Table:
    """The rows of a file of `media`, with the columns that it has of those there are. Raises as `read_table`."""
    table = read_table(path, expected, _ALWAYS)
    check_types(table.schema, expected, ["frames"])
    frames = table.filter(pc.equal(table["status"], "ok"))["frames"]  # pyright: ignore[reportCallIssue, reportArgumentType]
    if frames.null_count or (len(frames) and pc.min(frames).as_py() < 0):
        raise pa.ArrowInvalid("a medium without a number of frames")
    return table


def read_frames(path: Path, expected: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Whole and floating-point numbers of each frame. Raises as `read_table`, and for times that are none."""
    table = read_table(path, expected, columns, columns)
    for name in columns:
        if not pc.all(pc.is_finite(table[name])).as_py() and len(table):
            raise pa.ArrowInvalid(f"'{name}' that is none")
    return table


def check_frames(path: Path, media: pa.Table) -> None:
    """Raises `ArchiveError` where the frames of a part's media are not there; reads the footer alone."""
    own = media if "frames_of" not in media.column_names else media.filter(media["frames_of"].is_null())
    wanted = pc.sum(pc.filter(own["frames"], pc.equal(own["status"], "ok"))).as_py() or 0  # pyright: ignore[reportCallIssue, reportArgumentType]
    if not wanted:
        return
    try:
        there = pq.read_metadata(plain(path)).num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArchiveError(one_line(str(error))) from error
    if there < wanted:
        raise ArchiveError(f"{there} of {wanted} frames are there")
