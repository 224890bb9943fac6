"""Files that folders and globs hold, that look like media and are none, or are copies of media: told by their names.

Only where a suffix has two meanings (`.ts`: transport streams and TypeScript) is the beginning of a file looked at.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, repeat

Tell = Callable[[str, str], None]  # is told the path of a file that is passed over, and what it is

# Folders of thumbnails, of what was deleted and of what was torn apart, in lower case: those of Synology and QNAP, of
# Windows, macOS, Linux desktops, Android and Samba.
_COPIES = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@sharebin", "#recycle", ".@__thumb", "@__thumb", "trashbox", ".recycle"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "network trash folder"),
        *("__macosx", "temporary items", ".trashes", ".appledouble", ".temporaryitems"),
        *("lost+found", "lost.dir", ".trash", ".thumbnails", ".thumbs"),
    )
)
_NUMBERED = re.compile(r"\.trash-\d+|found\.\d{3}")  # of a user's on Linux, of a check of a disk on Windows
_SNAPSHOTS = frozenset({"#snapshot", "@recently-snapshot", "~snapshot"})  # a whole share each, many times

_IMAGES = "ai bpg cur dcm dds djvu emf eps exr fits hdr icns jxr pcx psb psd sgi svg svgz tga wdp wmf xcf"
_VIDEOS = "amv bik braw dvr-ms m2p mjpeg mjpg mpv mve nsv r3d roq smk swf tod tp trp vro wtv"
_LIKE_MEDIA = frozenset(f".{name}" for name in f"{_IMAGES} {_VIDEOS}".split())

# TypeScript and Qt's translations, Squirrel's sources, and logs that were put aside for the 264th time.
_TWO_MEANINGS = frozenset({".ts", ".mts", ".nut", ".264", ".265"})
_PACKETS = ((188, 0), (192, 4), (204, 0))  # length of a transport stream's packets, where their sign stands in them
_SIGN = 0x47
_LOOKED_AT = 4096  # bytes
_WILD = frozenset({"*", "**"})


class PassedOver:
    """Counts what was passed over, and lists it while it is found where somebody listens."""

    def __init__(self, listen: Tell | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._listen = listen

    def add(self, path: str, what: str) -> None:
        """Takes note of one file."""
        self.counts[what] += 1
        if self._listen is not None:
            self._listen(path, what)

    def once(self) -> Callable[[], Tell]:
        """For a folder that may be walked several times: gives `add` for the first walk, then what does nothing."""
        tells = chain([self.add], repeat(ignore))
        return lambda: next(tells)

    def __str__(self) -> str:
        """Counts by suffix, the largest first; nothing where nothing was passed over."""
        return ", ".join(f"{count:,} {what}" for what, count in self.counts.most_common())


def ignore(path: str, what: str) -> None:
    """Takes no note."""


def is_clutter(folder: str) -> bool:
    """True of the name of a folder that a system keeps thumbnails, deleted files or snapshots in."""
    name = folder.lower()
    return name in _COPIES or name in _SNAPSHOTS or _NUMBERED.fullmatch(name) is not None


def is_snapshots(folder: str) -> bool:
    """True of the name of a folder that is not worth entering, even to count."""
    return folder.lower() in _SNAPSHOTS


def suffix_of(name: str) -> str:
    """The suffix of a path in lower case, with its dot, or nothing."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a tenth of PurePath's time, for each file there is


def is_like_media(name: str) -> bool:
    """True of a name that ends as those of pictures and videos do that are not read."""
    return suffix_of(name) in _LIKE_MEDIA


def is_named(name: str, patterns: Sequence[str], matches: Callable[[str, str], bool]) -> bool:
    """True if a part of a glob, more than `*`, matches a name, or a glob is `*` and the name not hidden.

    Args:
        matches: tells whether a name matches a part of a glob.
    """
    parts = [part for pattern in patterns for part in pattern.strip("/").split("/") if part not in _WILD]
    if name.startswith("."):
        return any(part.startswith(".") and matches(name, part) for part in parts)
    return "*" in patterns or any(matches(name, part) for part in parts)


def is_text(path: str) -> bool:
    """True of a file whose suffix has two meanings and which is a text, no stream. One that cannot be read is none."""
    if suffix_of(path) not in _TWO_MEANINGS or not os.path.isfile(path):  # noqa: PTH113 - of any name
        return False
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            begin = file.read(_LOOKED_AT)
    except OSError:
        return False
    return bool(begin) and not _is_transport_stream(begin) and _is_text(begin)


def _is_transport_stream(begin: bytes) -> bool:
    return any(len(begin) > length and set(begin[at::length]) == {_SIGN} for length, at in _PACKETS)


def _is_text(begin: bytes) -> bool:
    """True if there is no control character but white space, or what begins is UTF-16."""
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return not any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in begin)
