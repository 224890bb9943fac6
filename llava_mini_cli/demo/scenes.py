"""Scenes with known truth: a few coloured shapes on a 3 x 3 layout, drawn at random by seed.

Knows nothing of pixels (`render`), of time (`videos`) or of language (`questions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar
from zlib import crc32

import numpy as np

Option = TypeVar("Option")
Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
BACKGROUNDS = ("black", "grey", "white")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
RADIUS = {"small": 0.090, "large": 0.148}  # of a shape, as a fraction of the canvas edge
MAX_THINGS = 4
CANVAS: dict[Split, tuple[int, ...]] = {  # edge of the canvas in pixels; held-out sizes are never trained on
    "train": (72, 80, 96, 128, 160),
    "validation": (72, 80, 96, 128, 160),
    "heldout": (112, 192, 256),
}
HELD_OUT_SHARE = 5  # one layout of two or more cells in this many is kept for the held-out split


@dataclass(frozen=True)
class Thing:
    """One shape. `x`, `y`: centre as fractions of the canvas edge, y growing downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def row(self) -> int:
        return min(int(self.y * 3), 2)

    @property
    def column(self) -> int:
        return min(int(self.x * 3), 2)

    @property
    def cell(self) -> int:
        """The number of its cell, 0 to 8 in reading order."""
        return self.row * 3 + self.column

    @property
    def place(self) -> str:
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """The contents of one picture. Things stand in reading order of their cells, one to a cell."""

    things: tuple[Thing, ...]
    background: str


def generator(split: Split, index: int) -> np.random.Generator:
    """The random stream of example `index` of a split; streams of two splits never meet."""
    return np.random.default_rng([SPLITS.index(split), index])


def is_held_out(cells: tuple[int, ...]) -> bool:
    """True if a layout (the sorted occupied cells, 0..8) belongs to the held-out split alone."""
    return len(cells) > 1 and crc32(bytes(cells)) % HELD_OUT_SHARE == 0


LAYOUTS: dict[int, tuple[tuple[int, ...], ...]] = {
    n: tuple(combinations(range(9), n)) for n in range(1, MAX_THINGS + 1)
}
TRAIN_LAYOUTS = {n: tuple(c for c in all_ if not is_held_out(c)) for n, all_ in LAYOUTS.items()}
HELD_OUT_LAYOUTS = {n: tuple(c for c in all_ if is_held_out(c)) or all_ for n, all_ in LAYOUTS.items()}


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of `options`, each equally likely."""
    return options[int(rng.integers(len(options)))]


def place_in_cell(rng: np.random.Generator, cell: int, size: str) -> tuple[float, float]:
    """A centre inside a cell, so that the whole shape stays in it."""
    slack = 1 / 6 - RADIUS[size]
    dx, dy = rng.uniform(-slack, slack, 2)
    return (cell % 3 + 0.5) / 3 + float(dx), (cell // 3 + 0.5) / 3 + float(dy)


def distinct_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Different (colour, shape) pairs, `count` of them."""
    chosen = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    return [(COLOURS[int(i) % len(COLOURS)], SHAPES[int(i) // len(COLOURS)]) for i in chosen]


def random_scene(rng: np.random.Generator, split: Split, count: int | None = None) -> Scene:
    """A scene of 1 to 4 things with different (colour, shape) pairs, in a layout of the split."""
    number = int(rng.integers(1, MAX_THINGS + 1)) if count is None else count
    layouts = (HELD_OUT_LAYOUTS if split == "heldout" else TRAIN_LAYOUTS)[number]
    cells = pick(rng, layouts)
    things: list[Thing] = []
    for cell, (colour, shape) in zip(cells, distinct_kinds(rng, number), strict=True):
        size = pick(rng, SIZES)
        x, y = place_in_cell(rng, cell, size)
        things.append(Thing(shape, colour, size, x, y))
    return Scene(tuple(things), pick(rng, BACKGROUNDS))
