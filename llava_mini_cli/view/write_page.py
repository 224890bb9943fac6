"""A page in a folder, or in one file, that opens from disk without a server.

The rows lie in files of a thousand; a small table of facts about all of them is loaded with the page, so that filters
and orders need no text.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree
from typing import Any

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.safe_files import make_own_folder
from llava_mini_cli.view.facets import CHUNK, Facets, chunk_script
from llava_mini_cli.view.media import JPEG, LARGEST_PICTURE, MediaPlaces, file_url
from llava_mini_cli.view.page.document import SCRIPT, STYLES, asset, document
from llava_mini_cli.view.shown_rows import shown_row
from llava_mini_cli.view.table import RowTable

MOST_ROWS = 100_000
PICTURES_A_FOLDER = 1000
PAGE, FACETS = "index.html", "facets.js"


def check_page_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises `OutputError` where a page cannot be written: something else is there, or a page and no `overwrite`."""
    with errors_of(folder):
        there = set(os.listdir(folder)) if folder.is_dir() else set[str]()
    if there - {PAGE, FACETS, STYLES, SCRIPT, "rows", "pictures"}:
        raise OutputError(f"'{folder}' holds other things than a page; name a new folder")
    if there and not overwrite:
        raise OutputError(f"'{folder}' holds a page already; --overwrite writes it anew")


def write_page(table: RowTable, places: MediaPlaces, folder: Path, title: str) -> int:
    """Writes a page of all rows into a folder; the document itself comes last. Returns the number of its rows.

    Raises:
        UsageError: there are too many rows.
        OutputError: the folder cannot be written.
    """
    numbers = [row[0] for row in table.ask("SELECT n FROM rows ORDER BY n")]
    if len(numbers) > MOST_ROWS:
        raise UsageError(
            f"{len(numbers):,} rows are too many for a page from disk ({MOST_ROWS:,}); without -o they are served"
        )
    with errors_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAGE).unlink(missing_ok=True)
        for name in ("rows", "pictures"):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                rmtree(folder / name)
            make_own_folder(folder / name)
    facets = Facets()
    pictures = _Pictures(table, places, folder / "pictures")
    for start in range(0, len(numbers), CHUNK):
        rows = table.rows(numbers[start : start + CHUNK])
        names = pictures.keep(rows)
        shown = [
            shown_row(row, places, name, lambda n, path: file_url(path), every_type=True)
            for row, name in zip(rows, names, strict=True)
        ]
        for n, row in enumerate(shown, start):
            row["n"] = n
            facets.add(row)
        write_own_file(folder / "rows" / f"{start // CHUNK:04}.js", chunk_script(start // CHUNK, shown).encode())
    write_own_file(folder / FACETS, facets.script(table.measure()).encode())
    for name in (STYLES, SCRIPT):
        write_own_file(folder / name, asset(name))
    write_own_file(folder / PAGE, document(title, "disk", [FACETS]))
    return len(numbers)


class _Pictures:
    """The small pictures of rows as files, each picture once."""

    def __init__(self, table: RowTable, places: MediaPlaces, folder: Path) -> None:
        self._table = table
        self._places = places
        self._folder = folder
        self._names: dict[bytes, str] = {}  # by the digest of the picture

    def keep(self, rows: Sequence[dict[str, Any]]) -> list[str | None]:
        """Writes the pictures of some rows; their addresses, relative to the page."""
        inside: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            if row["picture"] == "":
                inside[row["part"]].append(row["place"])
        stored = {
            (part, place): picture
            for part, wanted in inside.items()
            for place, picture in self._table.pictures(part, wanted)
        }
        return [self._address(picture) for picture in self._each(rows, stored)]

    def _each(
        self, rows: Sequence[dict[str, Any]], stored: dict[tuple[int, int], bytes | None]
    ) -> Iterator[bytes | None]:
        for row in rows:
            if row["picture"] is None:
                yield None
            elif row["picture"] == "":
                yield stored.get((row["part"], row["place"]))
            else:
                yield self._places.picture(row["picture"])

    def _address(self, picture: bytes | None) -> str | None:
        if picture is None or not picture.startswith(JPEG) or len(picture) > LARGEST_PICTURE:
            return None
        digest = blake2b(picture, digest_size=16).digest()
        if digest not in self._names:
            count = len(self._names)
            name = f"{count // PICTURES_A_FOLDER:03}/{count:06}.jpg"
            path = self._folder / name
            with errors_of(path):
                path.parent.mkdir(exist_ok=True)
                with path.open("xb") as file:
                    file.write(picture)
            self._names[digest] = name
        return f"pictures/{self._names[digest]}"
