"""An output's files read into a table of DuckDB's: each once, and again only what is new in it."""

import tempfile
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import duckdb

from llava_mini_cli.formats.archive.manifest import live_files
from llava_mini_cli.view.columns import NAMES_A_MEDIUM, READ_AS_TEXT, selection, track_selection
from llava_mini_cli.view.sources import LONGEST_LINE, Output, Stamp, blocks, header_of

# Newest row of each medium, and beside it the captions of its stretches; a medium without captions is a row, too.
_ARCHIVE = """
SELECT medium.path AS path, medium.file_name, medium.media, said.start, said."end", said.prompt, said.text,
    medium.status, medium.error, medium.error_type, medium.error_stage, medium.warning, medium.duration_s, medium.width,
    medium.height
FROM (
    SELECT * FROM read_parquet($media, union_by_name = true)
    QUALIFY row_number() OVER (PARTITION BY path ORDER BY medium DESC) = 1
) medium LEFT JOIN {captions} said ON said.medium = coalesce(medium.frames_of, medium.medium)
WHERE medium.status != 'dropped' ORDER BY medium.medium, said.start
"""
FIRST_ROWS = 100_000  # of a Parquet file, which are there to be looked at while the others are read
_NO_CAPTIONS = '(SELECT NULL::BIGINT AS medium, NULL AS start, NULL AS "end", NULL AS prompt, NULL AS text)'


class Reader:
    """Fills one table from one output. Not for two threads at a time."""

    def __init__(self, output: Output, table: str, aside: Path, stop: Event) -> None:
        """`table` is `rows` or `track`; `aside` is a folder for the lines that are being read; `stop` ends reading."""
        self._stop = stop
        self._output = output
        self._table = table
        self._aside = aside
        self._read: dict[Path, tuple[Stamp, int]] = {}  # how each file was when it was read, and up to where
        self._parts: dict[Path, int] = {}  # the numbers by which rows name them
        self._numbers = count()
        self.files: dict[int, Path] = {}  # and the other way round
        self.changes = 0
        self.unread: dict[Path, str] = {}  # files that cannot be read, and why

    def refresh(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Reads what is new, and forgets the rows of files that are gone. A file that cannot be read is in `unread`."""
        now = self._output.files()
        if self._output.kind == "archive":
            return self._refresh_archive(cursor, now)
        for path in set(self._parts) - set(now):
            self._forget(cursor, path)
        self.unread = {path: why for path, why in self.unread.items() if path in now}
        for path in now:
            try:
                self._refresh_file(cursor, path)
                self.unread.pop(path, None)
            except (OSError, duckdb.Error) as error:
                self.unread[path] = str(error).splitlines()[0]
        return None

    def _refresh_file(self, cursor: duckdb.DuckDBPyConnection, path: Path) -> None:
        stamp = Stamp.of(path)
        read, offset = self._read.get(path, (None, 0))
        if read == stamp:
            return
        is_parquet = self._output.kind == "parquet"
        if read is None or is_parquet or read.inode != stamp.inode or stamp.size < offset:
            self._forget(cursor, path)
            offset = 0
        self._read[path] = stamp, offset
        if is_parquet:
            self._read_parquet(cursor, path)
        else:
            self._read_lines(cursor, path, stamp, offset)

    def _read_parquet(self, cursor: duckdb.DuckDBPyConnection, path: Path) -> None:
        there = _described(cursor, "read_parquet($path)", {"path": str(path)})
        rows: Any = cursor.execute("SELECT num_rows FROM parquet_file_metadata($path)", {"path": str(path)}).fetchone()
        parts = ["true"]
        if rows[0] > FIRST_ROWS:
            parts = [f"file_row_number < {FIRST_ROWS}", f"file_row_number >= {FIRST_ROWS}"]
        for part in parts:
            source = f"(SELECT * FROM read_parquet($path, file_row_number = true) WHERE {part})"
            self._insert(cursor, source, there, "file_row_number", path, path)
            if self._stop.is_set():
                return

    def _read_lines(self, cursor: duckdb.DuckDBPyConnection, path: Path, stamp: Stamp, offset: int) -> None:
        names: list[str] = []
        if self._output.kind == "csv":
            names, behind = header_of(path)
            offset = max(offset, behind)
            if not names:
                return
        for block, end in blocks(path, self._output.kind, offset):
            with tempfile.NamedTemporaryFile(dir=self._aside) as aside:
                aside.write(block)
                aside.flush()
                self._insert_lines(cursor, Path(aside.name), names, path)
            if self._stop.is_set():
                return
            self._read[path] = stamp, end

    def _insert_lines(self, cursor: duckdb.DuckDBPyConnection, aside: Path, names: list[str], path: Path) -> None:
        if self._output.kind == "csv":
            there = dict.fromkeys(names, "VARCHAR")
            source = (
                f"read_csv($path, header = false, columns = {_struct(names)}, auto_detect = false, delim = ',',"
                f" quote = '\"', escape = '\"', ignore_errors = true, max_line_size = {LONGEST_LINE})"
            )
        else:
            there = dict.fromkeys(READ_AS_TEXT, "VARCHAR")
            source = (
                f"read_json($path, format = 'newline_delimited', columns = {_struct(READ_AS_TEXT)},"
                f" ignore_errors = true, maximum_object_size = {LONGEST_LINE})"
            )
        self._insert(cursor, source, there, "row_number() OVER () - 1", path, aside)

    def _insert(
        self,
        cursor: duckdb.DuckDBPyConnection,
        source: str,
        there: dict[str, str],
        place: str,
        path: Path,
        read: Path,
        values: dict[str, Any] | None = None,
    ) -> None:
        named = [f'"{name}" IS NOT NULL' for name in NAMES_A_MEDIUM if name in there]
        if not named:
            raise duckdb.InvalidInputException("no output of llava-mini: no column is id, path or file_name")
        chosen = (selection if self._table == "rows" else track_selection)(there, place)
        found: Any = cursor.execute(f"SELECT coalesce(max(n) + 1, 0) FROM {self._table}").fetchone()
        parameters: dict[str, Any] = {"base": found[0], "part": self._part(path), "path": str(read)}
        if values is not None:
            parameters = {"base": found[0], "part": self._part(path)} | values
        query = f"INSERT INTO {self._table} BY NAME SELECT {chosen} FROM {source} WHERE {' OR '.join(named)}"
        cursor.execute(query, parameters)
        self.changes += 1

    def _refresh_archive(self, cursor: duckdb.DuckDBPyConnection, media: list[Path]) -> None:
        self.unread = {path: "it is not there, or no plain file" for path in media if not path.is_file()}
        media = [path for path in media if path not in self.unread]
        stamps = {path: (Stamp.of(path), 0) for path in media}
        if stamps == self._read:
            return
        cursor.execute(f"DELETE FROM {self._table}")
        captions = [path for path in live_files(self._output.path, "captions") if path.is_file()]
        values: dict[str, Any] = {"media": [str(path) for path in media]}
        if captions:
            values["captions"] = [str(path) for path in captions]
        try:
            if media:
                source = _ARCHIVE.format(captions="read_parquet($captions)" if captions else _NO_CAPTIONS)
                there = _described(cursor, f"({source})", values)
                self._insert(
                    cursor, f"({source})", there, "row_number() OVER () - 1", self._output.path, media[0], values
                )
            self._read = stamps
        except duckdb.Error as error:
            self.unread[self._output.path] = str(error).splitlines()[0]

    def _part(self, path: Path) -> int:
        if path not in self._parts:
            self._parts[path] = number = next(self._numbers)
            self.files[number] = path
        return self._parts[path]

    def _forget(self, cursor: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._read.pop(path, None)
        part = self._parts.pop(path, None)
        if part is not None:  # its number is not given again: a row that a page still shows has no other file's picture
            self.files.pop(part, None)
            cursor.execute(f"DELETE FROM {self._table} WHERE part = $part", {"part": part})
            self.changes += 1


def _described(cursor: duckdb.DuckDBPyConnection, source: str, values: dict[str, Any]) -> dict[str, str]:
    """Names and types of the columns of a table."""
    return {row[0]: row[1] for row in cursor.execute(f"DESCRIBE SELECT * FROM {source}", values).fetchall()}


def _struct(names: "tuple[str, ...] | list[str]") -> str:
    return "{" + ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in names) + "}"


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
