"""What the files of an archive must be before anything is made of them, since an archive may come from anybody.

Each file passes here when it is opened: a plain file, the columns that are written, values that can be, and no more
bytes than the rows need. Knows nothing of what they mean.
"""

import os
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite, prod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.plain_files import open_plain

LARGEST_HEADER = 1 << 20  # bytes
MOST_ROWS = 1 << 24  # of one file
MOST_TEXT = 512 << 20  # bytes of a table with texts, unpacked
LONGEST = 1e9  # seconds; 31 years
_PAGES = 1 << 20  # bytes of a column and row group beyond its values: levels, headers
_WIDEST = {"token": 1 << 20, "clip": 1 << 16, "features": 1 << 23}  # numbers in the vectors of a frame
_NUMBERS = ("fps", "start", "end", "dedupe")  # settings that are numbers where they are there
_ALWAYS = ("medium", "path", "status")  # columns of `media` without a null
_FILLED = {
    "frames": ("medium", "time", "last_time"),
    "features": ("medium", "time", "features"),
    "captions": ("medium",),
}
_OF_GOOD = ("frames", "media")  # the same of media that could be indexed
_compute: Any = pc
_tests: Any = pa.types

# The least and the largest that a number may be; null is allowed.
RANGES: Mapping[str, tuple[float, float]] = {
    "time": (-LONGEST, LONGEST), "last_time": (-LONGEST, LONGEST), "start": (-LONGEST, LONGEST),
    "end": (-LONGEST, LONGEST), "duration_s": (0, LONGEST), "fps_sampled": (0, 1e6), "width": (0, 1 << 30),
    "height": (0, 1 << 30), "frames": (0, 1 << 40), "frames_sampled": (0, 1 << 40), "size": (0, 1 << 62),
    "medium": (0, 1 << 62), "frames_of": (0, 1 << 62),
}  # fmt: skip
# What a text may be; null is allowed.
WORDS: Mapping[str, frozenset[str]] = {
    "status": frozenset({"ok", "error", "dropped"}), "media": frozenset({"image", "video"})
}  # fmt: skip
_NAMES = ("path", "file_name")  # texts without a NUL byte


def check_header(parsed: Mapping[str, Any]) -> None:
    """Raises `KeyError`, `TypeError` or `ValueError` for fields of a header that are missing or of another type."""
    for name in ("model", "model_digest", "model_revision", "version"):
        if name in parsed and not (name == "model_revision" and parsed[name] is None):
            _check_name(name, parsed[name])
    if parsed.get("features") not in (None, "float32", "float16", "int8"):
        raise ValueError(f"features are not {parsed['features']!r:.100}")
    shapes = parsed["shapes"]
    widths = {name: list(shapes[name]) for name in ("token", "features")}
    if len(widths["token"]) != 2 or len(widths["features"]) != 3:
        raise ValueError("shapes are of two and three numbers")
    widths["clip"] = [] if shapes["clip"] is None else [shapes["clip"]]
    for name, numbers in widths.items():
        for width in numbers:
            if type(width) is not int or not 0 < width <= _WIDEST[name]:
                raise ValueError(f"{width!r:.100} is no width of a vector")
        if prod(numbers) > _WIDEST[name]:
            raise ValueError(f"{numbers} are too many numbers for a frame")
    settings = parsed.get("settings", {})
    for name, value in settings.items():
        if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not isfinite(value)):
            raise ValueError(f"the setting '{name:.100}' is not {value!r:.100}")
    for name in (*_NUMBERS, "max_frames"):
        value = settings.get(name)
        if type(value) not in (int, type(None)) and (name == "max_frames" or type(value) is not float):
            raise ValueError(f"the setting '{name}' is not {value!r:.100}")
        if value is not None and abs(value) > LONGEST:
            raise ValueError(f"the setting '{name}' is {value!r:.100}")


def _check_name(name: str, value: Any) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} is not {value!r:.100}")
    os.fsencode(value)  # half of a pair is in no name


def plain(path: Path) -> Path:
    """A path, if a plain file is there; for libraries that would wait for a pipe. Raises `OSError`."""
    os.close(open_plain(path))
    return path


@contextmanager
def opened(
    path: Path, expected: pa.Schema, columns: Sequence[str], later: Collection[str] = (), **options: Any
) -> Generator[pq.ParquetFile]:
    """A table's file whose columns may be read: they are there, of their types, and of no more bytes than rows need.

    Texts of which there may be more than is to be in memory come as dictionaries: what is there once is there once.

    Args:
        later: columns that may be missing.

    Raises:
        OSError: the file cannot be read, or is no plain file. pa.ArrowException: it is damaged, or of something else.
    """
    metadata = pq.read_metadata(plain(path))
    found = metadata.schema.to_arrow_schema()
    names = [name for name in columns if name not in later or name in found.names]
    _check_types(found, expected, names)
    total = _check_bytes(metadata, expected)
    texts = [name for name in names if _tests.is_string(expected.field(name).type)]
    many = texts if total * metadata.num_rows > MOST_TEXT else []
    options = {"page_checksum_verification": True, "read_dictionary": many} | options
    with pq.ParquetFile(path, metadata=metadata, **options) as file:
        yield file


def read_table(path: Path, expected: pa.Schema, columns: Sequence[str], later: Collection[str] = ()) -> pa.Table:
    """Some columns of a file. Raises as `opened`, and for texts that are none.

    In this thread: there are many small files, and starting threads for each costs more than reading it.
    """
    with opened(path, expected, columns, later) as file:
        names = [name for name in columns if name not in later or name in file.schema_arrow.names]
        table = _with_texts(file.read(columns=names, use_threads=False), expected)
    table.validate(full=True)
    return table


def check_values(table: pa.Table | pa.RecordBatch, filled: Sequence[str] = ()) -> None:
    """Raises `pa.ArrowInvalid` for numbers out of their range, and for texts that can be no such thing.

    Args:
        filled: columns that have a value in each row.
    """
    for name in table.schema.names:
        column: Any = table.column(name)
        if name in RANGES and not _lie_in(column, *RANGES[name]):
            raise pa.ArrowInvalid(f"'{name}' that is none")
        if name in WORDS and (odd := set(_compute.unique(column).to_pylist()) - WORDS[name] - {None}):
            raise pa.ArrowInvalid(f"'{name}' is not {odd.pop()!r:.100}")
        if name in _NAMES and _compute.any(_compute.match_substring(column, "\0")).as_py():
            raise pa.ArrowInvalid(f"a NUL byte in '{name}'")
        if name in filled and column.null_count:
            raise pa.ArrowInvalid(f"a row without '{name}'")


def check_rows(table: str, rows: pa.Table | pa.RecordBatch) -> None:
    """The same for rows of the other tables."""
    check_values(rows, _FILLED[table])
    if table == "captions":
        check_values(rows.filter(rows["start"].is_valid()), ["end"])


def check_media(media: pa.Table) -> None:
    """The same for rows of `media`, of one part or of several."""
    check_values(media, _ALWAYS)
    live = media.filter(_compute.not_equal(media["status"], "dropped"))
    check_values(live.select(["file_name"]), ["file_name"])
    good = live.filter(_compute.equal(live["status"], "ok")).select(_OF_GOOD)
    check_values(good, _OF_GOOD)


def _lie_in(numbers: Any, least: float, largest: float) -> bool:
    """False for NaN, too."""
    fits = _compute.and_(_compute.greater_equal(numbers, least), _compute.less_equal(numbers, largest))
    return _compute.all(fits).as_py() is not False


def _check_types(found: pa.Schema, expected: pa.Schema, names: Sequence[str]) -> None:
    for name in names:
        kind = expected.field(name).type
        if len(found.get_all_field_indices(name)) != 1 or not found.field(name).type.equals(kind):
            raise pa.ArrowInvalid(f"no column '{name}' of the type {kind}")


def _check_bytes(metadata: Any, expected: pa.Schema) -> int:
    """The bytes of the values of a file, by what it says of itself. Raises `pa.ArrowInvalid` for too many.

    Of row groups as a whole: Arrow ends the process over some that say odd things of a column.
    """
    if metadata.num_rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"{metadata.num_rows} rows, more than {MOST_ROWS}")
    widths = [_width(field.type) for field in expected]
    texts = MOST_TEXT if None in widths else 0
    width, total = sum(width or 0 for width in widths), 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        total += group.total_byte_size
        most = texts or _PAGES * len(widths) + 2 * width * group.num_rows
        if not 0 <= group.total_byte_size <= most or (texts and total > texts):
            raise pa.ArrowInvalid("it unpacks to more than its rows need")
    return total


def _width(kind: Any) -> int | None:
    """Bytes of a value; None for texts."""
    if _tests.is_fixed_size_list(kind):
        return kind.list_size * (kind.value_type.bit_width // 8) + 8  # and the levels
    if _tests.is_list(kind):
        return 16  # of nulls: the embeddings of a model without any
    return None if _tests.is_string(kind) else kind.bit_width // 8 + 8


def _with_texts(table: pa.Table, expected: pa.Schema) -> pa.Table:
    """The table with its texts as such, unless they are more than may be in memory."""
    for place, name in enumerate(table.schema.names):
        column: Any = table.column(name)
        if not _tests.is_dictionary(column.type):
            continue
        for chunk in column.chunks:
            chunk.validate(full=True)
        lengths = (_compute.take(_compute.binary_length(chunk.dictionary), chunk.indices) for chunk in column.chunks)
        if sum(_compute.sum(each).as_py() or 0 for each in lengths) > MOST_TEXT:
            raise pa.ArrowInvalid(f"column '{name}' unpacks to more than {MOST_TEXT >> 20} MiB")
        table = table.set_column(place, name, column.cast(expected.field(name).type))
    return table


def check_frames(path: Path, expected: pa.Schema, media: pa.Table) -> None:
    """Raises `ArchiveError` where the frames of a part's media are not there; reads the footer alone."""
    own = media if "frames_of" not in media.column_names else media.filter(media["frames_of"].is_null())
    wanted = _compute.sum(_compute.filter(own["frames"], _compute.equal(own["status"], "ok"))).as_py() or 0
    if not wanted:
        return
    try:
        with opened(path, expected, expected.names) as file:
            there = file.metadata.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArchiveError(one_line(str(error))) from error
    if there < wanted:
        raise ArchiveError(f"{there} of {wanted} frames are there")
