"""Search texts with known truth: a text as parts that can be checked against any scene."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.demo.image_questions import article, at_place, numbered
from llava_mini_cli.demo.scenes import COLOURS, MAX_THINGS, PLACES, SHAPES, SIZES, Scene, Thing, pick

UNSAID, NOTHING = -1, -2  # in coded parts: an attribute that is not mentioned; in coded scenes: no thing
FIELDS = 4  # colour, shape, size, place


@dataclass(frozen=True)
class TextPart:
    """The part of a text that is about one thing."""

    colour: str
    shape: str
    size: str | None = None
    place: str | None = None

    def words(self) -> str:
        """The part as someone would write it."""
        name = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return article(name) + (f" {at_place(self.place)}" if self.place else "")

    def fits(self, thing: Thing) -> bool:
        """True if the thing is as the part says."""
        pairs = ((self.colour, thing.colour), (self.shape, thing.shape), (self.size, thing.size))
        return all(said in (None, true) for said, true in (*pairs, (self.place, thing.place)))


Parts = tuple[TextPart, ...]


@dataclass(frozen=True)
class SearchText:
    """A text and what it says."""

    parts: tuple[TextPart, ...]
    is_caption: bool = False  # a whole sentence

    def words(self) -> str:
        """The text as someone would write it: `a red circle and a small blue square at the left`."""
        text = numbered([part.words() for part in self.parts])
        return text[0].upper() + text[1:] + "." if self.is_caption else text

    def is_true(self, scene: Scene) -> bool:
        """True if a scene shows everything that is said."""
        return all(any(part.fits(thing) for thing in scene.things) for part in self.parts)


def search_text(rng: np.random.Generator, scene: Scene) -> SearchText:
    """The caption, or a part of what the scene shows, as someone would search for it."""
    if rng.random() < 0.4:
        return SearchText(tuple(TextPart(t.colour, t.shape, t.size, t.place) for t in scene.things), is_caption=True)
    count = int(rng.integers(1, len(scene.things) + 1))
    parts: list[TextPart] = []
    for index in sorted(int(i) for i in rng.choice(len(scene.things), count, replace=False)):
        thing = scene.things[index]
        size = thing.size if rng.random() < 0.3 else None
        parts.append(TextPart(thing.colour, thing.shape, size, thing.place if rng.random() < 0.3 else None))
    return SearchText(tuple(parts))


def untrue_text(rng: np.random.Generator, text: SearchText, scene: Scene) -> SearchText:
    """The text with one part changed, so that the scene does not show it: another thing, place or size."""
    while True:
        at = int(rng.integers(len(text.parts)))
        draw, part = rng.random(), text.parts[at]
        if draw < 0.25:
            part = replace(part, colour=pick(rng, COLOURS), shape=pick(rng, SHAPES))
        elif draw < 0.45:
            part = replace(part, colour=pick(rng, COLOURS))
        elif draw < 0.65:
            part = replace(part, shape=pick(rng, SHAPES))
        elif draw < 0.95:
            part = replace(part, place=pick(rng, PLACES))
        else:
            part = replace(part, size=pick(rng, SIZES))
        changed = replace(text, parts=(*text.parts[:at], part, *text.parts[at + 1 :]))
        if not changed.is_true(scene):
            return changed


def coded_text(text: SearchText) -> NDArray[np.int64]:
    """`[4, 4]`: a row of class numbers for each part, `UNSAID` where it says nothing and in rows that are no part."""
    table = np.full((MAX_THINGS, FIELDS), UNSAID, dtype=np.int64)
    for row, part in enumerate(text.parts):
        size = UNSAID if part.size is None else SIZES.index(part.size)
        place = UNSAID if part.place is None else PLACES.index(part.place)
        table[row] = COLOURS.index(part.colour), SHAPES.index(part.shape), size, place
    return table


def coded_scene(scene: Scene) -> NDArray[np.int64]:
    """`[4, 4]`: a row of class numbers for each thing, `NOTHING` for things that are not there."""
    table = coded_text(SearchText(tuple(TextPart(t.colour, t.shape, t.size, t.place) for t in scene.things)))
    table[len(scene.things) :] = NOTHING
    return table


def truth_table(scenes: Sequence[NDArray[np.int64]], texts: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """True, in `[B, T]`, where a scene of `B` coded ones shows all that a text of `T` coded ones says."""
    things, said = np.stack(scenes)[:, None, None], np.stack(texts)[None, :, :, None]
    fits = ((said == UNSAID) | (said == things)).all(-1)  # [B, T, parts, things]
    return fits.any(-1).all(-1)
