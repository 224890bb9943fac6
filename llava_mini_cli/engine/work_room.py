"""The memory that work may take beside the weights: what a piece needs is counted before it is done.

A piece that needs more is refused as if memory had run out, so that it is done in halves or fails as a row. Left to
itself, the kernel would promise the memory, and kill the process once it is used.
"""

from collections.abc import Callable

from llava_mini_cli.engine.llm.generate import PREFILL_POSITIONS
from llava_mini_cli.engine.llm.kv_cache import GROWTH
from llava_mini_cli.engine.work_bytes import Work

SCORE_BYTES = 12  # of the score of one token, in the number format, in float32 and as a log-likelihood


class WorkRoom:
    """Asked before each piece of work; each method raises `MemoryError` where the piece does not fit."""

    def __init__(self, work: Work, most: int | None, cached: Callable[[], int]) -> None:
        """Args: most: bytes of a piece and of all keys and values; None: any. cached: the bytes of the latter now."""
        self._work = work
        self._most = most
        self._cached = cached

    @property
    def is_bounded(self) -> bool:
        """True if anything can be refused."""
        return self._most is not None

    def encode(self, frames: int, text: int) -> None:
        """So many frames at once, each with so many positions of text."""
        self._check(self._work.encoding(frames, text))

    def prefill(self, media: int, prefix: int, tails: int, rows: int) -> None:
        """Media at once, each with a prefix, all tails and rows of at most so many positions or rows."""
        kept = media * (prefix + tails + rows * GROWTH)
        at_once = min(prefix + tails, max(PREFILL_POSITIONS, tails))
        self._check(self._work.prefilling(media * at_once, kept))

    def score(self, positions: int, seen: int, scores: int) -> None:
        """Given texts of so many positions, each of which may see so many more; and scores that are there at once."""
        self._check(self._work.prefilling(positions, 0) + positions * (seen + positions) + SCORE_BYTES * scores)

    def grow(self, positions: int) -> None:
        """Room for so many more positions of keys and values."""
        self._check(self._work.prefilling(0, positions))

    def _check(self, size: int) -> None:
        if self._most is not None and size + self._cached() > self._most:
            raise MemoryError(f"{size >> 20} MiB are more than there is beside the model")
