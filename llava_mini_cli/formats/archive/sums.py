"""Sums over plain embeddings, which tell whether they are those that were written: a changed byte changes its sum.

They are over as many rows as a scan has in a processor's cache at once, so that checking costs next to nothing.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

SUMMED = 512  # rows


class VectorSums:
    """The sums of a part's embeddings, each over `SUMMED` rows."""

    def __init__(self, sums: NDArray[np.uint64]) -> None:
        self._sums = sums

    @classmethod
    def of_file(cls, path: Path, row_bytes: int) -> Self:
        """Those of a file of rows. Raises `OSError`."""
        return cls(np.fromiter((_sum(block) for block in _blocks(path, SUMMED * row_bytes)), np.uint64))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """From the words of `text`. Raises `ValueError`."""
        return cls(np.frombuffer(base64.b64decode(text, validate=True), "<u8"))

    @property
    def data(self) -> bytes:
        """Little-endian numbers."""
        return self._sums.astype("<u8").tobytes()

    def check(self, first: int, block: bytes | memoryview) -> None:
        """Raises `ValueError` where the rows from `first` on, a multiple of `SUMMED` and no more, are other ones."""
        place = first // SUMMED
        if place >= len(self._sums) or _sum(block) != self._sums[place]:
            raise ValueError(f"the embeddings from row {first} on are not those that were written")


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block


def _sum(block: bytes | memoryview) -> np.uint64:
    """The sum of little-endian 64-bit numbers, zeros behind the last bytes; more than 64 bits are cut off."""
    whole = len(block) // 8 * 8
    total = np.frombuffer(block[:whole], "<u8").sum(dtype=np.uint64)
    rest = int.from_bytes(bytes(block[whole:]), "little")
    return np.uint64((int(total) + rest) & ((1 << 64) - 1))
