"""Where the media and pictures of rows are on this disk, and what of them a browser may be shown."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.fetch.urls import local_path
from llava_mini_cli.paths import is_file
from llava_mini_cli.plain_files import open_plain

LARGEST_PICTURE = 4 << 20  # bytes, of a small one beside the rows
JPEG = b"\xff\xd8\xff"
# What a browser may take a medium for; whatever else it is, it gets as bytes without a meaning.
SHOWN_TYPES: Mapping[str, str] = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".gif": "image/gif", ".webp": "image/webp",
    ".bmp": "image/bmp", ".avif": "image/avif",
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg",
    ".mkv": "video/x-matroska",
}  # fmt: skip
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_IN_URLS = "%/:?#[]@!$&'()*+,;=~"  # characters with a meaning there


@dataclass(frozen=True)
class MediaPlaces:
    """Finds files by the paths that rows have: as they are, and below other folders where they are not there."""

    output: Path  # the folder of the rows
    media: Path | None = None  # where the media are now

    def medium(self, row: Mapping[str, Any]) -> Path | None:
        """The file that a row is about; None where it is nowhere."""
        for path in self._candidates(row):
            if is_file(path):
                return path
        return None

    def _candidates(self, row: Mapping[str, Any]) -> list[Path]:
        given = [local_path(row[name]) for name in ("path", "file") if row[name]]
        names = [local_name(name) for name in given if not _URL.match(name)]
        names = [name for name in names if "\0" not in name]
        below = [Path(self.media, name.lstrip("/")) for name in reversed(names)] if self.media else []
        below += [Path(self.media, Path(name).name) for name in names[:1]] if self.media else []
        return [*below, *(Path(name) for name in names[:1]), *(self.output / name for name in names)]

    def picture(self, name: str) -> bytes | None:
        """A small picture beside the rows: a JPEG below their folder; None where there is none."""
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            return None
        try:
            real = (self.output / path).resolve(strict=True)
            if not real.is_relative_to(self.output.resolve()):
                return None
            with os.fdopen(open_plain(real), "rb") as file:
                data = file.read(LARGEST_PICTURE + 1)
        except OSError:
            return None
        return data if data.startswith(JPEG) and len(data) <= LARGEST_PICTURE else None


def link(name: str) -> str | None:
    """The URL of a medium on the web; None for local paths and other schemes."""
    return quote(name.encode("utf-8", "surrogateescape"), safe=_IN_URLS) if _WEB.match(name) else None


def file_url(path: Path) -> str:
    """The URL of a local file."""
    return "file://" + quote(os.fsencode(os.path.abspath(path)))  # noqa: PTH100 - any name


def shown_type(path: Path) -> str | None:
    """The media type by which a browser shows a file; None where it has none that is shown."""
    return SHOWN_TYPES.get(path.suffix.lower())
