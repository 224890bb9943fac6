"""The members of a tar archive without compression (ustar, GNU, pax), read header by header.

An archive may come from anybody, so every step goes on in the file and no more is read than a header can need: time is
bounded by the file's length, memory by one header. Python's tarfile reads a single block here (`TarInfo.frombuf`) and
does not walk from one to the next: its own walk goes back where a size is negative, calls itself once for each header
before a member, and reads as many bytes, and makes numbers of as many digits, as a header claims.
"""

import os
import tarfile
from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

BLOCK = 512  # bytes
LONGEST_NAME = 4096  # bytes, as of a path on Linux
LARGEST_HEADER = 1 << 20  # bytes of a long name or of pax records; attributes of files are at most 64 KiB each
_LONGEST_NUMBER = 32  # characters of a pax record that is a number
_LATEST = 1 << 62  # seconds; a time of change beyond it is none
_PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE})
_USED = frozenset({b"path", b"size", b"mtime"})  # pax records; those of sparse files are looked for as well
_SPARSE = b"GNU.sparse."

_Records = dict[bytes, bytes]


class TarDamage(Exception):
    """An archive that cannot be read on, and why."""


class TarMember(NamedTuple):
    """A member, or what stands for one that is not read."""

    name: str  # bytes that are no UTF-8 as surrogates
    offset: int  # of its content in the archive, bytes
    size: int  # bytes
    mtime: int | None  # seconds
    problem: str | None = None  # why it is not read


def tar_members(descriptor: int) -> Iterator[TarMember]:
    """Every member in order but the folders.

    Raises:
        TarDamage: a header is damaged or the archive is cut short, after the members before that place.
        OSError: the file cannot be read.
    """
    end = os.fstat(descriptor).st_size
    everywhere: _Records = {}  # of all members that follow
    here: _Records = {}  # of the next member; the first header that gives a record counts
    at = 0
    while (info := _header(descriptor, at)) is not None:
        data = _past_sparse_map(descriptor, at + BLOCK) if info.type == tarfile.GNUTYPE_SPARSE else at + BLOCK
        records = everywhere | here
        is_special = info.type in _PAX or info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        size = info.size if is_special else _size(info, records)
        if size < 0 or data + size > end:
            what = "a size below zero in" if size < 0 else "it ends within"
            raise TarDamage(f"{what} {f'the header at byte {at}' if is_special else _shown(info.name)}")
        if is_special and size > LARGEST_HEADER:
            raise TarDamage(f"a header of {size} bytes at byte {at}")
        if info.type == tarfile.XGLTYPE:
            everywhere |= _pax_records(descriptor, data, size)
        elif info.type in _PAX:
            here = _pax_records(descriptor, data, size) | here
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            here.setdefault(b"path", os.pread(descriptor, size, data).partition(b"\0")[0])
        elif info.type != tarfile.GNUTYPE_LONGLINK:
            if not info.isdir():
                yield _member(info, records, data, size)
            here = {}
        at = data + -(-size // BLOCK) * BLOCK


def _header(descriptor: int, at: int) -> tarfile.TarInfo | None:
    """What one block says; None at the end of the archive. Raises `TarDamage`."""
    block = os.pread(descriptor, BLOCK, at)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if len(block) == BLOCK and not any(block):
            return None
        whole = len(block) == BLOCK
        raise TarDamage(f"{error} at byte {at}" if whole else "its end is missing") from None


def _past_sparse_map(descriptor: int, at: int) -> int:
    """The place behind the blocks that go on with the map of a sparse file in GNU's old format."""
    is_last = os.pread(descriptor, 1, at - BLOCK + 482) == b"\0"
    while not is_last:
        block = os.pread(descriptor, BLOCK, at)
        if len(block) < BLOCK:
            raise TarDamage("it ends within the map of a sparse file")
        at += BLOCK
        is_last = block[504] == 0
    return at


def _size(info: tarfile.TarInfo, records: _Records) -> int:
    """The bytes of a member's content in the archive; those of a kind that has none are zero."""
    if not info.isreg() and info.type in tarfile.SUPPORTED_TYPES:
        return 0
    digits = records.get(b"size")
    if digits is None:
        return info.size
    if len(digits) > _LONGEST_NUMBER or not digits.isdigit():
        raise TarDamage(f"a size that is no number in {_shown(info.name)}")
    return int(digits)


def _pax_records(descriptor: int, at: int, size: int) -> _Records:
    """The records of a pax header that are of use here. Raises `TarDamage`."""
    data = os.pread(descriptor, size, at).rstrip(b"\0")
    records: _Records = {}
    begin = 0
    while begin < len(data):  # each is b"LENGTH KEY=VALUE\n"
        space = data.find(b" ", begin, begin + 8)
        digits = data[begin:space] if space > 0 else b""
        end = begin + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, min(end, len(data)))
        if equals < 0 or end > len(data) or data[end - 1] != ord("\n"):
            raise TarDamage(f"a pax record that is none at byte {at + begin}")
        key = data[space + 1 : equals]
        if key in _USED:
            records[key] = data[equals + 1 : end - 1]
        elif key.startswith(_SPARSE):
            records[_SPARSE] = b""
            if key == b"GNU.sparse.name":
                records[b"path"] = data[equals + 1 : end - 1]
        begin = end
    return records


def _member(info: tarfile.TarInfo, records: _Records, offset: int, size: int) -> TarMember:
    path = records.get(b"path")
    name = info.name if path is None else path.rstrip(b"/").decode("utf-8", "surrogateescape")
    problem = _why_not(info, records)
    if path is not None and (len(path) > LONGEST_NAME or b"\0" in path):
        problem = "a name with a NUL byte" if b"\0" in path else f"a name of more than {LONGEST_NAME} bytes"
        base, dot, extension = name.rpartition(".")
        name = f"{_shown(base)}@{offset}{dot}{_shown(extension)}"
    return TarMember(name, offset, size, _time(info, records), problem)


def _why_not(info: tarfile.TarInfo, records: _Records) -> str | None:
    """Why a member is none that is read; None for a plain file."""
    if info.islnk() or info.issym():
        return "a link, which is not read"
    if not info.isreg():
        return "a device, a pipe or the like, which is not read"
    if info.type == tarfile.GNUTYPE_SPARSE or _SPARSE in records:
        return "a sparse file, which is not read"
    return None


def _time(info: tarfile.TarInfo, records: _Records) -> int | None:
    """The time of change; None for what is none."""
    time: float = info.mtime
    if (text := records.get(b"mtime")) is not None:
        try:
            time = float(text[:_LONGEST_NUMBER])
        except ValueError:
            time = 0
    return int(time) if isfinite(time) and abs(time) < _LATEST else None


def _shown(name: str) -> str:
    """The beginning of a name, for messages and in place of a whole one; without NUL bytes."""
    return name[:100].replace("\0", "")
