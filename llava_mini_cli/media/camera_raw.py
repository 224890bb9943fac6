"""Camera raw files, told by their content: what is seen of one without developing it is an embedded thumbnail.

TIFF 6.0, its supplement for sub-images, and the DNG specification's tags. Decodes nothing.
"""

import struct
from collections.abc import Iterator
from typing import IO

SUFFIXES = (
    "3fr arw cr2 cr3 crw dcr dng erf gpr iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"  # in folders
)
_OF_RAW = frozenset(f".{name}" for name in SUFFIXES.split())
SIGNATURES = (  # of those that are no plain TIFF: name, position, bytes
    ("CR2", 8, b"CR\x02"),
    ("CR3", 4, b"ftypcrx "),
    ("CRW", 6, b"HEAPCCDR"),
    ("IIQ", 0, b"IIII"),
    ("IIQ", 0, b"MMMM"),
    ("MRW", 0, b"\0MRM"),
    ("ORF", 0, b"IIRO"),
    ("ORF", 0, b"IIRS"),
    ("ORF", 0, b"MMOR"),
    ("RAF", 0, b"FUJIFILMCCD-RAW"),
    ("RW2", 0, b"IIU\0"),
    ("X3F", 0, b"FOVb"),
)
_SUB_IMAGES, _INTERPRETATION = 330, 262
_MOSAICS = frozenset({32803, 34892})  # colour filter array, linear raw
_TYPES = {3: "H", 4: "I", 13: "I"}  # of the tags that are read: whole numbers of 2 and 4 bytes
_MOST_IMAGES = 64  # that are looked at; a file may link them in a circle


def raw_kind(file: IO[bytes], head: bytes, suffix: str) -> str | None:
    """The name of a raw format, such as CR2; None for what is no raw file.

    Args:
        head: the file's first 16 bytes, at least. suffix: of its name, such as .nef.

    Raises:
        OSError: the file cannot be read.
    """
    for name, at, sign in SIGNATURES:
        if head.startswith(sign, at):
            return name
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None:
        return None
    if suffix.lower() in _OF_RAW:
        return suffix[1:].upper()
    return "DNG" if any(kind in _MOSAICS for kind in _interpretations(file, order)) else None


def _interpretations(file: IO[bytes], order: str) -> Iterator[int]:
    """How the pixels of each image of a TIFF file are to be understood, sub-images among them."""
    file.seek(4)
    waiting, seen = list(_numbers(file.read(4), order, "I")), set[int]()
    while waiting and len(seen) < _MOST_IMAGES:
        offset = waiting.pop(0)
        if offset in seen or not offset:
            continue
        seen.add(offset)
        file.seek(offset)
        for count in _numbers(file.read(2), order, "H"):
            entries = file.read(12 * count)
            waiting += _numbers(file.read(4), order, "I")
            for at in range(0, len(entries) - 11, 12):
                tag, values = _tag(file, entries[at : at + 12], order)
                if tag == _INTERPRETATION:
                    yield from values
                elif tag == _SUB_IMAGES:
                    waiting += values


def _tag(file: IO[bytes], entry: bytes, order: str) -> tuple[int, tuple[int, ...]]:
    """A tag and its values, as far as they are small whole numbers."""
    tag, kind, count = struct.unpack(f"{order}HHI", entry[:8])
    letter = _TYPES.get(kind)
    if tag not in (_INTERPRETATION, _SUB_IMAGES) or letter is None:
        return tag, ()
    count = min(count, _MOST_IMAGES)
    if count * struct.calcsize(letter) <= 4:
        return tag, _numbers(entry[8 : 8 + count * struct.calcsize(letter)], order, letter)
    file.seek(*_numbers(entry[8:], order, "I"))
    return tag, _numbers(file.read(count * struct.calcsize(letter)), order, letter)


def _numbers(data: bytes, order: str, letter: str) -> tuple[int, ...]:
    """As many numbers as are there; none of a file that has ended."""
    count = len(data) // struct.calcsize(letter)
    return struct.unpack(f"{order}{count}{letter}", data[: count * struct.calcsize(letter)])
