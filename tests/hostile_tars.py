"""Tar archives byte by byte, also such as no program writes."""

import json
from pathlib import Path

BLOCK = 512


def header(
    name: bytes, size: bytes | int = 0, kind: bytes = b"0", mtime: bytes = b"14524770400", more: bytes = b""
) -> bytes:
    """One header with its checksum. `size` as bytes is the field itself; `more` is what stands from byte 386 on."""
    field = b"%011o" % size if isinstance(size, int) else size
    block = bytearray(BLOCK)
    block[0 : min(len(name), 100)] = name[:100]
    for at, value in ((100, b"0000644"), (108, b"0000000"), (116, b"0000000"), (124, field), (136, mtime)):
        block[at : at + len(value)] = value
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[386 : 386 + len(more)] = more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data as it lies in an archive, in whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    """A header and what belongs to it."""
    return header(name, len(data), kind) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A pax record, with its own length in front."""
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A header of pax records."""
    return member(b"pax", b"".join(records), kind)


def base256(number: int) -> bytes:
    """A number as GNU tar writes those that are too large for digits, or below zero."""
    return (number + (0 if number >= 0 else 256**12) | (0x80 << 88 if number >= 0 else 0)).to_bytes(12, "big")


def jsonl(column: str, count: int) -> bytes:
    """So many different questions in one column, a line each."""
    return b"".join(json.dumps({column: f"Who is {number}?"}).encode() + b"\n" for number in range(count))


END = bytes(2 * BLOCK)


def write(path: Path, *parts: bytes, end: bytes = END) -> Path:
    """An archive of a good member and then the parts."""
    path.write_bytes(member(b"good.png", b"good") + b"".join(parts) + end)
    return path
