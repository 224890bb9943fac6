"""The rows of an output in a table of DuckDB's, in a temporary file.

Pictures stay where they are; everything else that a page shows is in the table, so that a filter touches no file of the
output, and a run may go on writing.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

import duckdb

from llava_mini_cli.errors import UsageError
from llava_mini_cli.view.columns import COLUMNS, SHOWN, TRACK_COLUMNS
from llava_mini_cli.view.reading import Reader
from llava_mini_cli.view.sources import Output

MEMORY = "2GB"  # that DuckDB takes at most; beyond it, it uses its temporary file
BINS = 64  # of a track, over the length of its video
_TRACKS = f"""
SELECT row.n, least({BINS} - 1, floor(track.time / row.length * {BINS}))::INTEGER AS bin, max(track.p)
FROM track JOIN (
    SELECT n, medium, hash(question) AS question,
        coalesce(nullif(duration, 0), (SELECT max(time) FROM track WHERE track.medium = rows.medium) + 1e-3) AS length
    FROM rows WHERE n IN (SELECT unnest($n))
) row ON track.medium = row.medium AND track.question = row.question
WHERE track.time >= 0 AND track.p IS NOT NULL AND row.length > 0 GROUP BY ALL
"""
_NAMES = ", ".join(f'"{name}"' for name in SHOWN)
_ROWS = f"SELECT {_NAMES} FROM rows WHERE n IN (SELECT unnest($n))"
_PICTURES = """
SELECT file_row_number, thumbnail FROM read_parquet($path, file_row_number = true)
WHERE file_row_number BETWEEN $first AND $last
"""
PICTURES_AHEAD = 32  # a look into a Parquet file costs as much for them as for one
PICTURES_KEPT = 2000


def filled(given: Mapping[int, float]) -> list[float | None]:
    """All `BINS` of a track; one in which no frame was looked at has the value of the nearest that has one.

    That is so up to half of the widest gap between two, since a stretch that was not looked at at all has none.
    """
    bins = sorted(given)
    reach = max((second - first for first, second in pairwise(bins)), default=2 * BINS) // 2 + 1
    nearest = [min(bins, key=lambda bin, place=place: abs(bin - place)) for place in range(BINS)]
    return [given[bin] if abs(bin - place) <= reach else None for place, bin in enumerate(nearest)]


class RowTable:
    """The rows of one output, and the probabilities of a track beside them. For any number of threads."""

    def __init__(self, output: Output, track: Output | None = None) -> None:
        """An empty table; `refresh` fills it."""
        self.output = output
        self._closing = Event()
        self._reading: duckdb.DuckDBPyConnection | None = None
        self._kept: OrderedDict[tuple[int, int], bytes | None] = OrderedDict()  # pictures, by part and place
        self._picture_lock = Lock()
        self._lock = Lock()  # one thread reads files at a time
        self._folder = tempfile.TemporaryDirectory(prefix="llava-mini-view-")
        aside = Path(self._folder.name)
        self._database = duckdb.connect(
            aside / "rows.duckdb",
            config={
                "memory_limit": MEMORY,
                "temp_directory": str(aside / "spilled"),
                "autoinstall_known_extensions": False,  # nothing is fetched
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
            },
        )
        self._database.execute("SET parquet_metadata_cache = true")
        for name, columns in (("rows", COLUMNS), ("track", TRACK_COLUMNS)):
            made = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
            self._database.execute(f"CREATE TABLE {name} ({made})")
        self._rows = Reader(output, "rows", aside, self._closing)
        self._track = None if track is None else Reader(track, "track", aside, self._closing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what still runs, and removes the temporary file."""
        self._closing.set()
        if (reading := self._reading) is not None:
            reading.interrupt()
        with self._lock:
            self._database.close()
            self._folder.cleanup()

    @property
    def version(self) -> int:
        """A number that is another after every change."""
        return self._rows.changes + (self._track.changes if self._track else 0)

    @property
    def unread(self) -> dict[Path, str]:
        """The files of which nothing could be read, and why."""
        return self._rows.unread | (self._track.unread if self._track else {})

    def refresh(self) -> bool:
        """Reads what is new in the files, and forgets the rows of those that are gone. True if anything changed."""
        with self._lock:
            if self._closing.is_set():
                return False
            before = self.version
            with self._database.cursor() as self._reading:
                for reader in filter(None, (self._rows, self._track)):
                    reader.refresh(self._reading)
            self._reading = None
            return self.version != before

    def check(self) -> None:
        """Raises `UsageError` where files could not be read and there is no row of them."""
        for name, reader in (("rows", self._rows), ("track", self._track)):
            if reader and reader.unread and not self.ask(f"SELECT count(*) FROM {name}")[0][0]:
                path, why = next(iter(reader.unread.items()))
                raise UsageError(f"'{path}' cannot be read: {why}")

    def ask(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a query gives."""
        with self._database.cursor() as cursor:
            return cursor.execute(sql, values).fetchall()

    def arrays(self, sql: str, values: dict[str, Any]) -> dict[str, Any]:
        """The columns that a query gives, as NumPy arrays by name; numbers alone, and none of them null."""
        with self._database.cursor() as cursor:
            return cursor.execute(sql, values).fetchnumpy()

    def measure(self) -> str:
        """What the rows' numbers are."""
        return "Score" if self.ask("SELECT bool_or(scored) FROM rows")[0][0] else "Probability"

    def rows(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Rows by their numbers, in this order, each with its `track`; those that are gone are left out."""
        wanted = list(numbers)
        with self._database.cursor() as cursor:
            found = cursor.execute(_ROWS, {"n": wanted})
            names = [column[0] for column in found.description]
            by_number = {row[0]: dict(zip(names, row, strict=True)) for row in found.fetchall()}
            if self._track:
                tracks: dict[int, dict[int, float]] = {}
                for n, bin, p in cursor.execute(_TRACKS, {"n": wanted}).fetchall():
                    tracks.setdefault(n, {})[bin] = round(p, 3)
                for n, given in tracks.items():
                    by_number[n]["track"] = filled(given)
        return [by_number[n] for n in wanted if n in by_number]

    def picture(self, part: int, place: int) -> bytes | None:
        """The picture that a row of a Parquet file holds, read together with those of the next rows, and kept."""
        with self._picture_lock:
            if (part, place) not in self._kept:
                for other, picture in self.pictures(part, range(place, place + PICTURES_AHEAD)):
                    self._kept[part, other] = picture
                while len(self._kept) > PICTURES_KEPT:
                    self._kept.popitem(last=False)
            return self._kept.get((part, place))

    def pictures(self, part: int, places: Sequence[int]) -> list[tuple[int, bytes | None]]:
        """The pictures of several rows of one Parquet file, with their places."""
        path = self._rows.files.get(part)
        if path is None:
            return []
        try:
            found = self.ask(_PICTURES, {"path": str(path), "first": min(places), "last": max(places)})
        except duckdb.Error:  # the file has gone, or another one has its name
            return []
        wanted = set(places)
        return [(place, picture) for place, picture in found if place in wanted]
