"""Rows by what their media hold: for looking up what was moved, touched or copied back. Knows no file format.

A row's `digest` is `SIZE-CONTENT-QUESTION`: the size of the file in bytes, a digest of its bytes (`formats.content`),
and one of what was asked about it (`row_keys`).
"""

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from llava_mini_cli.formats.content import size_of

DIGEST_PATTERN = r"\d{1,18}-[0-9a-f]{20}-[0-9a-f]{20}"
_WORK_BYTES = 14  # of the work, with its occurrence


class KnownContents:
    """The works of rows by their digest, in arrays: 36 bytes a row."""

    def __init__(self, rows: Iterable[tuple[bytes, int, str]]) -> None:
        """Args: rows: work, state and digest of each."""
        sizes, digests, states, works = array("q"), array("Q"), array("Q"), bytearray()
        for work, state, digest in rows:
            sizes.append(size_of(digest))
            digests.append(_number(digest))
            states.append(state)
            works += work.ljust(_WORK_BYTES, b"\0")
        digests = np.frombuffer(digests, np.uint64)
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._sizes = np.unique(np.frombuffer(sizes, np.int64))
        self._states = np.frombuffer(states, np.uint64)[order]
        self._works = np.frombuffer(works, np.uint8).reshape(-1, _WORK_BYTES)[order]

    def has_size(self, size: int) -> bool:
        """True if a row is about a medium of this size."""
        place = int(np.searchsorted(self._sizes, size))
        return place < len(self._sizes) and int(self._sizes[place]) == size

    def find(self, digest: str) -> list[tuple[bytes, int]]:
        """Work and state of the rows with this digest, the older ones first."""
        number = np.uint64(_number(digest))
        begin, end = (int(np.searchsorted(self._digests, number, side)) for side in ("left", "right"))
        return [(_work(self._works[row].tobytes()), int(self._states[row])) for row in range(begin, end)]


def _number(digest: str) -> int:
    return int.from_bytes(blake2b(digest.encode(), digest_size=8).digest(), "big")


def _work(stored: bytes) -> bytes:
    """A work as `done` has it: without an occurrence where that is none."""
    return stored if any(stored[10:]) else stored[:10]
