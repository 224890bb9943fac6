"""Found moments on disk or on standard output: JSON lines, CSV, Parquet, or paths alone. Small, so written at once."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from llava_mini_cli.config import MomentFormat
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.disk import write_file
from llava_mini_cli.formats.shown_text import for_json, safe_cell, without_controls

_SUFFIXES: dict[str, MomentFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A span of a video, or an image, that a query found. The fields are the columns, in order."""

    rank: int  # 1 is the best
    score: float  # cosine of the query and the best frame
    path: str
    file_name: str
    media: str  # image or video
    time: float | None  # seconds, of the best frame; null for an image
    start: float | None
    end: float | None
    frames: int  # that were looked at in it
    duration_s: float | None
    caption: str | None  # stored by --caption-every
    p_yes: float | None = None  # the model's own yes to --check, against no


FLOATS = ("score", "time", "start", "end", "duration_s", "p_yes")
COLUMNS = tuple(item.name for item in fields(Moment))


def format_of(path: Path | None, format: MomentFormat | None) -> MomentFormat:
    """By `-f`, else by the suffix, else JSON lines. Raises `UsageError`."""
    if path is None:
        if format == "parquet":
            raise UsageError("--format parquet needs a file: -o FILE.parquet")
        return format or "jsonl"
    known = _SUFFIXES.get(path.suffix.lower())
    if format is None and known is None:
        raise UsageError(f"-o '{path}': the suffix must be one of {', '.join(_SUFFIXES)}, or name the format with -f")
    return format or known or "jsonl"


def write_moments(
    moments: Sequence[Moment], path: Path | None, format: MomentFormat, *, csv_safe: bool = False
) -> None:
    """Writes all of them to a file, which appears whole, or to standard output. Raises `OutputError`.

    Args:
        csv_safe: no cell of CSV is a formula for a spreadsheet.
    """
    data = _csv(moments, safe=csv_safe) if format == "csv" else _ENCODERS[format](moments)
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_file(path, data)


def _jsonl(moments: Sequence[Moment]) -> bytes:
    return b"".join(for_json(json.dumps(asdict(moment), ensure_ascii=False)).encode() + b"\n" for moment in moments)


def _csv(moments: Sequence[Moment], *, safe: bool) -> bytes:
    def cell(value: object) -> object:
        if not isinstance(value, str):
            return value
        return safe_cell(without_controls(value)) if safe else without_controls(value)

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in asdict(moment).items()} for moment in moments)
    return text.getvalue().encode()


def _parquet(moments: Sequence[Moment]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"rank": pa.int64(), "frames": pa.int64()} | dict.fromkeys(FLOATS, pa.float64())
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in COLUMNS])
    sink = pa.BufferOutputStream()
    pq.write_table(  # pyright: ignore[reportUnknownMemberType]
        pa.Table.from_pylist([asdict(moment) for moment in moments], schema=schema), sink
    )
    return sink.getvalue().to_pybytes()


_ENCODERS: dict[MomentFormat, Callable[[Sequence[Moment]], bytes]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
}
