"""Small pictures of rows as files in a folder, in front of an output whose rows then hold their paths.

A file's name is that of its medium and a digest of its picture: rows about the same frame share one file, two pictures
never share a name, and a run that does a row again writes the same file again. A file is there before its row is.
"""

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.formats.outputs.output import Output
from llava_mini_cli.formats.row import THUMBNAIL, Row, with_part_thumbnails, with_thumbnail
from llava_mini_cli.safe_files import sweep

REMEMBERED = 4096  # files that this run wrote last, and need not write again
_STEM_BYTES = 100  # of the medium's name in that of its picture
_UNUSUAL = re.compile(r"[^\w.-]+")


class ThumbnailFolder(Output):
    """Writes the pictures of rows, then the rows with their paths, as seen from the folder that the output is in."""

    def __init__(self, folder: Path, inner: Output, beside: Path) -> None:
        """`beside`: the folder that paths begin at."""
        super().__init__(inner.done, inner)
        self._inner = inner
        self._folder = folder
        # Without links on the way: .. behind a link leads elsewhere.
        self._path = os.path.relpath(os.path.realpath(folder), os.path.realpath(beside))
        self._written: dict[str, None] = {}  # the names, in the order in which they were last wanted
        self._is_made = False

    def write(self, row: Row) -> None:
        """Writes the picture of a row, and the row. Raises `OutputError`."""
        self._inner.write(self._placed(row))

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Writes the pictures of some rows, and the rows at once. Raises `OutputError`."""
        self._inner.write_answer([self._placed(row) for row in rows])

    def keep(self) -> None:
        """As the output does."""
        self._inner.keep()

    def finish(self, error: BaseException | None) -> None:
        """Finishes the output, and takes away what killed runs left among the pictures."""
        self._inner.finish(error)
        if self._is_made:
            sweep(self._folder)

    def _placed(self, row: Row) -> Row:
        """The row with the paths of its pictures."""
        if THUMBNAIL in row.kept:
            row = with_thumbnail(row, self._path_of(row, row.kept[THUMBNAIL]))
        if row.kept.get("evidence") is None:
            return row
        return with_part_thumbnails(row, lambda part: self._path_of(row, part.get(THUMBNAIL)))

    def _path_of(self, row: Row, picture: object) -> str | None:
        """The path of one of a row's pictures, which is there then."""
        if not isinstance(picture, bytes):
            return None
        name = file_name(row.file_name, picture)
        if name not in self._written:
            self._make_folder()
            write_own_file(self._folder / name, picture, synced=False)
        self._remember(name)
        return Path(self._path, name).as_posix()

    def _make_folder(self) -> None:
        if not self._is_made:
            with errors_of(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._is_made = True

    def _remember(self, name: str) -> None:
        self._written.pop(name, None)
        self._written[name] = None
        if len(self._written) > REMEMBERED:
            del self._written[next(iter(self._written))]


def file_name(medium: str, picture: bytes) -> str:
    """The name of a picture's file, such as `clip-9f86d081884c7d65.jpg`, whatever the medium's name holds."""
    stem = _UNUSUAL.sub("_", Path(medium).stem).encode()[:_STEM_BYTES].decode(errors="ignore")
    return f"{stem}-{blake2b(picture, digest_size=8).hexdigest()}.jpg"
