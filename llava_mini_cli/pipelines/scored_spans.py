"""Scores of frames -> moments: neighbouring hits become one span with one score. Arithmetic only.

A moment is a frame that no neighbour beats, with as many frames around it as score nearly as high. How near is told by
how far the best frame stands out of what is usual in the archive, so that it does not depend on the scale of one CLIP.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 0.25  # of the way from a moment's best score down to the usual one: frames above it belong to the moment
LEAST = 0.02  # of cosine; so much is noise


@dataclass(frozen=True)
class ScoredSpan:
    """Consecutive frames of one medium, as rows of what the scores were given for."""

    first: int
    best: int
    last: int
    score: float  # of the best frame


def spans(
    medium: NDArray[np.int64], scores: NDArray[np.float32], usual: float, most: int, least_score: float
) -> list[ScoredSpan]:
    """The best moments, best first.

    Args:
        medium: [n] whose frame each row is; the frames of a medium stand together, in order of time.
        scores: [n].
        usual: what a frame of the archive scores on average.
        most: how many moments.
        least_score: of a moment's best frame.
    """
    found: list[ScoredSpan] = []
    taken = np.zeros(len(scores), bool)
    for best in _peaks(medium, scores, least_score):
        if len(found) == most:
            break
        if taken[best]:
            continue
        peak = float(scores[best])
        span = _around(best, peak - max(LEAST, SHARE * (peak - usual)), medium, scores, taken)
        taken[span[0] : span[1] + 1] = True
        found.append(ScoredSpan(span[0], best, span[1], peak))
    return found


def _peaks(medium: NDArray[np.int64], scores: NDArray[np.float32], least_score: float) -> Iterator[int]:
    """Rows that neither neighbour in their medium beats, the best first; of equal neighbours the first."""
    if not len(scores):
        return
    together = medium[1:] == medium[:-1]
    beaten_by_last = np.append(False, together & (scores[:-1] >= scores[1:]))
    beaten_by_next = np.append(together & (scores[1:] > scores[:-1]), False)
    peaks = np.flatnonzero(~beaten_by_last & ~beaten_by_next & (scores >= least_score))
    order = np.argsort(-scores[peaks], kind="stable")
    yield from (int(row) for row in peaks[order])


def _around(
    best: int, cut: float, medium: NDArray[np.int64], scores: NDArray[np.float32], taken: NDArray[np.bool_]
) -> tuple[int, int]:
    def joins(row: int) -> bool:
        return bool(medium[row] == medium[best] and scores[row] >= cut and not taken[row])

    first = last = best
    while first > 0 and joins(first - 1):
        first -= 1
    while last + 1 < len(scores) and joins(last + 1):
        last += 1
    return first, last
