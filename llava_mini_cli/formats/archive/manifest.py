"""The parts of an archive that count, `parts.json`: replaced as a whole, which is the one moment at which rows change.

Files of a part that it does not name were never there, or are not any more; the next writer takes them away. Archives
of format 1 have no such file: each part counts whose file of `media` is there.
"""

import json
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from llava_mini_cli.formats.archive.layout import (
    TABLES,
    VECTORS,
    files_of,
    last_part,
    part_name,
    part_numbers,
)
from llava_mini_cli.formats.disk import write_own_file
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.plain_files import open_plain, parse_json, read_bytes

MANIFEST = "parts.json"
_LARGEST = 64 << 20  # bytes: 300,000 parts
_MOST_CHECKED = 256 << 20  # bytes of one file
_END = 8  # bytes behind a Parquet file's footer: its length, and a mark


class FileFacts(NamedTuple):
    """What tells whether a file is the one that was written."""

    size: int  # bytes
    check: int | None  # CRC-32 of a whole file of `media`, of another table's footer; None for plain numbers


PartFacts = Mapping[str, FileFacts]  # by table


@dataclass(frozen=True)
class Manifest:
    """The parts that count, ascending, with what is known of their files; None where nothing is."""

    parts: Mapping[int, PartFacts | None]
    last: int  # the highest number that was ever given to a part; none is given twice
    damage: str | None = None  # why the file could not be read, if so; then each part that is there counts

    @classmethod
    def read(cls, folder: Path, *, is_kept: bool) -> Self:
        """The parts of an archive.

        Args:
            is_kept: False for an archive that has no such file (format 1).
        """
        if is_kept:
            try:
                return cls._parse(parse_json(read_bytes(folder / MANIFEST, _LARGEST)))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                return replace(cls._of_files(folder), damage=one_line(str(error)) or type(error).__name__)
        return cls._of_files(folder)

    @classmethod
    def _of_files(cls, folder: Path) -> Self:
        return cls(dict.fromkeys(part_numbers(folder, "media")), last_part(folder))

    @classmethod
    def _parse(cls, parsed: Any) -> Self:
        parts = {_whole(int(name)): _facts(facts) for name, facts in parsed["parts"].items()}
        return cls(dict(sorted(parts.items())), max(_whole(parsed["last"]), *parts, 0))

    def changed(self, new: Mapping[int, PartFacts], gone: Collection[int] = ()) -> Self:
        """The same with some more parts, and without others."""
        stay = {number: facts for number, facts in self.parts.items() if number not in gone}
        return replace(self, parts=stay | dict(new), last=max(self.last, *new, *gone, 0), damage=None)

    def with_facts(self, folder: Path) -> Self:
        """The same with what there is to know of each part's files."""
        return replace(self, parts={number: facts_of(folder, number) for number in self.parts}, damage=None)

    def write(self, folder: Path) -> None:
        """From now on these parts are the archive. Raises `OutputError`."""
        parts = {str(number): facts for number, facts in self.parts.items()}
        write_own_file(folder / MANIFEST, json.dumps({"last": self.last, "parts": parts}).encode() + b"\n")


def live_files(folder: Path, table: str) -> list[Path]:
    """The files of a table that count, the oldest first; a part may have none."""
    found = Manifest.read(folder, is_kept=os.path.lexists(folder / MANIFEST))
    return [folder / part_name(number, table) for number in found.parts]


def facts_of(folder: Path, number: int) -> PartFacts | None:
    """What there is to know of the files of a part; None where the system refuses to read one."""
    try:
        return {path.parent.name: file_facts(path, path.parent.name) for path in files_of(folder, number)}
    except OSError:
        return None


def file_facts(path: Path, table: str) -> FileFacts:
    """What tells whether a file of a table is the one that is there now.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    descriptor = open_plain(path)
    try:
        size = os.fstat(descriptor).st_size
        return FileFacts(size, None if table == VECTORS else _check(descriptor, size, whole=table == "media"))
    finally:
        os.close(descriptor)


def _check(descriptor: int, size: int, *, whole: bool) -> int:
    """The CRC-32 of a file, or of the footer of a Parquet file; of no more than `_MOST_CHECKED` bytes."""
    footer = int.from_bytes(os.pread(descriptor, _END, max(0, size - _END))[:4], "little") + _END
    start = 0 if whole else max(0, size - footer)
    start = max(start, size - _MOST_CHECKED)
    check = 0
    while start < size:
        block = os.pread(descriptor, min(1 << 20, size - start), start)
        if not block:
            break
        check = zlib.crc32(block, check)
        start += len(block)
    return check


def _facts(parsed: Any) -> PartFacts | None:
    """Raises `ValueError`, `TypeError` or `AttributeError` for what are no facts."""
    if parsed is None:
        return None
    facts: dict[str, FileFacts] = {}
    for table, (size, check) in parsed.items():
        if table not in (*TABLES, VECTORS):
            raise ValueError(f"there is no table '{table[:100]}'")
        facts[table] = FileFacts(_whole(size), None if check is None else _whole(check))
    return facts


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(f"{number!r:.100} is no number of a part or of bytes")
    return number
