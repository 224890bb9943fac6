"""The files that an output consists of, and what is new in them: parts of Parquet, whole lines of JSON, records of CSV.

A run may write while they are read. A part of Parquet appears whole; of JSON lines and CSV a last line that has no end
yet is left for later.
"""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.archive.layout import HEADER
from llava_mini_cli.formats.archive.manifest import live_files
from llava_mini_cli.plain_files import open_plain

Kind = Literal["parquet", "jsonl", "csv", "archive"]

BLOCK = 64 << 20  # bytes of lines that are read at a time
LONGEST_LINE = 16 << 20  # bytes; a longer one is no row of ours
_SUFFIXES: dict[str, Kind] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


@dataclass(frozen=True)
class Output:
    """Rows on disk, by the path that somebody typed."""

    path: Path
    kind: Kind

    @property
    def folder(self) -> Path:
        """The folder that pictures beside the rows are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    def files(self) -> list[Path]:
        """The files that hold the rows now, the oldest first."""
        if self.kind == "archive":
            return live_files(self.path, "media")
        if self.kind != "parquet":
            return [self.path]
        if self.path.is_dir():
            return _parts(self.path)
        return [self.path] * self.path.is_file() + _parts(self.path.with_name(f"{self.path.name}.parts"))


def open_rows(path: Path) -> Output:
    """What kind of output lies at a path. Raises `UsageError` where there is none."""
    try:
        if (path / HEADER).is_file():
            return Output(path, "archive")
        if path.is_dir():
            if not _parts(path):
                raise UsageError(f"'{path}' holds no part of an output: no .parquet file, and it is no archive")
            return Output(path, "parquet")
        kind = _SUFFIXES.get(path.suffix.lower())
        output = Output(path, kind) if kind else None
        if output and output.files() and all(file.exists() for file in output.files()):
            for file in output.files():
                os.close(open_plain(file))
            return output
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if os.path.lexists(path):
        raise UsageError(
            f"'{path}': the rows of view are in .parquet, .jsonl, .ndjson or .csv, in a folder or an archive"
        )
    raise UsageError(f"'{path}' is not there")


def _parts(folder: Path) -> list[Path]:
    """Parquet files of a folder by name; hidden ones are unfinished."""
    try:
        found = [entry for entry in os.scandir(folder) if entry.name.endswith(".parquet") and entry.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(Path(entry.path) for entry in found if entry.is_file())


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file is the one that was read, and whether it grew."""

    inode: int
    size: int
    mtime: int  # nanoseconds

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        found = path.stat()
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


def blocks(path: Path, kind: Kind, offset: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines (records of CSV) of a file from an offset on, some at a time, each with the offset behind it."""
    with os.fdopen(open_plain(path), "rb") as file:
        while True:
            file.seek(offset)
            block = _whole(file, kind)
            if not block:
                return
            offset += len(block)
            yield block, offset


def _whole(file: BinaryIO, kind: Kind) -> bytes:
    block = file.read(BLOCK)
    while True:
        end = _end_of_records(block) if kind == "csv" else block.rfind(b"\n") + 1
        if end:
            return block[:end]
        more = file.read(BLOCK)
        if not more:
            return b""
        block += more


def _end_of_records(block: bytes) -> int:
    """Where the last whole record of CSV ends: behind a line end that an even number of quotes is in front of."""
    end = len(block)
    quotes = block.count(b'"')
    while (line_end := block.rfind(b"\n", 0, end)) >= 0:
        quotes -= block.count(b'"', line_end, end)
        if quotes % 2 == 0:
            return line_end + 1
        end = line_end
    return 0


def header_of(path: Path) -> tuple[list[str], int]:
    """The names of a CSV file's columns, and the offset behind them; without a whole header none."""
    with os.fdopen(open_plain(path), "rb") as file:
        line = file.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        return [], 0
    text = line.decode("utf-8-sig", "replace")
    return next(csv.reader(io.StringIO(text))), len(line)
