"""Packed sequences of flat tokens: who sees whom, laid out in padded tables for `attention`. Indices only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LENGTH_RATIO = 1.4  # of the longest to the shortest shared part of sequences that attend as one batch
ROWS, LENGTH, TOKENS = 4, 8, 512  # sizes of batches are rounded up to multiples of these
LONGEST = 2  # questions of a sequence that are laid out apart from the shorter ones


@dataclass
class Sequences:
    """Packed sequences whose tokens lie in one flat list, in any order: which of them each sequence is made of."""

    shared: list[Sequence[int]] = field(default_factory=list)  # what all questions see, in order
    own: list[list[Sequence[int]]] = field(default_factory=list)  # the tokens of each question, in order

    def add(self, shared: Sequence[int], own: list[Sequence[int]]) -> None:
        self.shared.append(shared)
        self.own.append(own)

    def layout(self, tokens: int) -> dict[str, Any]:
        """The tables for attention over `tokens` flat tokens, in few different sizes (`rounded`).

        Sequences of similar length form a group; its tokens are laid out as a padded table of what is shared,
        `[R, P]`, and tables of questions, `[R, n, L]`, one after the other, and so the groups.

        Returns:
            `index`: int64 `[M]`, which flat token stands at each position of these tables; `there`: bool `[M]`, False
            where it is padding, which ends them; `back`: int64 `[N]`, where each flat token stands, and behind the
            `tokens` ones that there are a place of padding; `groups`: `shared`, (R, P), `own`, an (n, L) for each
            table of questions, and `lengths`, int64 `[R]`, if some are below P.
        """
        groups: list[dict[str, Any]] = []
        index: list[NDArray[np.int64]] = []
        there: list[NDArray[np.bool_]] = []
        for members in by_length([len(shared) for shared in self.shared]):
            rows = rounded(len(members), ROWS)
            none = [()] * (rows - len(members))
            tables = [[*(self.shared[m] for m in members), *none]]
            tables += _by_rank([*(self.own[m] for m in members), *([] for _ in none)])
            shapes: list[tuple[int, int]] = []
            for table in tables:
                places, real = padded(table, LENGTH)
                index.append(places.reshape(-1))
                there.append(real.reshape(-1))
                shapes.append((len(table) // rows, places.shape[1]))
            group: dict[str, Any] = {"shared": (rows, shapes[0][1]), "own": shapes[1:]}
            lengths = [len(shared) for shared in tables[0]]
            if min(lengths) < shapes[0][1]:
                group["lengths"] = torch.tensor(lengths)
            groups.append(group)
        places: NDArray[np.int64] = np.concatenate([*index, [0]])  # closed by a place of padding
        real: NDArray[np.bool_] = np.concatenate([*there, [False]])
        back = np.full(rounded(tokens, TOKENS), len(places) - 1, dtype=np.int64)
        back[places[real]] = np.flatnonzero(real)
        found = {"index": places, "there": real, "back": back}
        return {"groups": groups} | {name: torch.from_numpy(table) for name, table in found.items()}


def _by_rank(own: list[list[Sequence[int]]]) -> list[list[Sequence[int]]]:
    """Each row's few longest questions as one table and its others as another: less is padded.

    Returns:
        Tables of as many questions for each row, row by row; empty ones where a row has fewer.
    """
    number = max(len(questions) for questions in own)
    ranked = [sorted(questions, key=len, reverse=True) + [()] * (number - len(questions)) for questions in own]
    cuts = [(first, last) for first, last in ((0, min(LONGEST, number)), (LONGEST, number)) if first < last]
    return [[question for row in ranked for question in row[first:last]] for first, last in cuts]


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length, shortest first, so that little is padded."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not groups or lengths[index] > LENGTH_RATIO * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(index)
    return groups


def rounded(number: int, step: int) -> int:
    """The next multiple of `step`: oneDNN makes a kernel for every new size of a matrix product, which costs more time
    than a small product does, so there have to be few."""
    return -(-number // step) * step


def padded(rows: Sequence[Sequence[int]], step: int = 1) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ragged rows as int64 `[len(rows), longest]` filled up with 0, and where they are not padding.

    The longest is rounded up to a multiple of `step`.
    """
    lengths = np.array([len(row) for row in rows])
    there = np.arange(rounded(max(int(lengths.max()), 1), step))[None] < lengths[:, None]
    table = np.zeros(there.shape, dtype=np.int64)
    table[there] = [value for row in rows for value in row]
    return table, there
