"""Questions with true answers about one scene, and its caption. Yes and no are equally frequent.

Knows nothing of pixels or of the model; the wording itself stands in `wording`.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llava_mini_cli.demo.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, Split, Thing, pick
from llava_mini_cli.demo.wording import worded

IMAGE_KINDS = ("colour", "shape", "size", "place", "count", "relation", "background", "yesno", "json", "caption")
IMAGE_STEPS = ("places", "filled", "at")  # asked in training alone: what a relation and a caption are worked out from


@dataclass(frozen=True)
class DemoQuestion:
    """A question with its true answer. Figures are reported for each `kind`."""

    kind: str
    text: str
    answer: str
    about: tuple[Thing | None, ...] = ()  # the things of an image that it names, in order; None: it is not there


def numbered(items: list[str]) -> str:
    """The items as one list: `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def at_place(place: str) -> str:
    return f"in the {place}" if place == "centre" else f"at the {place}"


def caption(scene: Scene) -> str:
    """One sentence that holds the whole truth of a scene but the background, in reading order."""
    parts = [f"{article(f'{t.size} {t.colour} {t.shape}')} {at_place(t.place)}" for t in scene.things]
    text = numbered(parts)
    return text[0].upper() + text[1:] + "."


def references(scene: Scene, thing: Thing, without: str) -> list[str]:
    """Ways to name a thing that fit no other, none of which mentions the attribute `without`."""
    others = [t for t in scene.things if t is not thing]
    found: list[str] = []
    if without != "shape" and all(t.shape != thing.shape for t in others):
        found.append(f"the {thing.shape}")
    if without not in ("shape", "colour"):
        found.append(f"the {thing.colour} {thing.shape}")
    if without != "colour" and all(t.colour != thing.colour for t in others):
        found.append(f"the {thing.colour} shape")
    if without not in ("shape", "size") and all((t.size, t.shape) != (thing.size, thing.shape) for t in others):
        found.append(f"the {thing.size} {thing.shape}")
    if without != "place":
        found.append(f"the shape {at_place(thing.place)}")
    if not others:
        found.append("the shape")
    return found


def reference(rng: np.random.Generator, scene: Scene, without: str) -> tuple[Thing, str] | None:
    """A thing and a way to name it, or None where no thing has an unambiguous name."""
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        names = references(scene, thing, without)
        if names:
            return thing, pick(rng, names)
    return None


def attribute(rng: np.random.Generator, scene: Scene, split: Split, kind: str) -> DemoQuestion | None:
    """A question for the colour, shape, size or place of one thing."""
    chosen = reference(rng, scene, kind)
    if chosen is None:
        return None
    thing, name = chosen
    return DemoQuestion(kind, worded(rng, split, kind, ref=name), getattr(thing, kind), (thing,))


def count(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    """A question for the number of shapes in all, of a colour, or of a shape."""
    draw = rng.random()
    if draw < 0.4:
        group, number = "shapes", len(scene.things)
    elif draw < 0.7:
        colour = _often_present(rng, tuple(t.colour for t in scene.things), COLOURS)
        group, number = f"{colour} shapes", sum(t.colour == colour for t in scene.things)
    else:
        shape = _often_present(rng, tuple(t.shape for t in scene.things), SHAPES)
        plural = "crosses" if shape == "cross" else f"{shape}s"
        group, number = plural, sum(t.shape == shape for t in scene.things)
    return DemoQuestion("count", worded(rng, split, "count", group=group), str(number))


def _often_present(rng: np.random.Generator, present: tuple[str, ...], every: tuple[str, ...]) -> str:
    return pick(rng, present if rng.random() < 0.7 else every)


def relation_of(thing: Thing, other: Thing, axis: str) -> str | None:
    """`left`, `right`, `above` or `below`; None where the things share the column (axis x) or row (axis y)."""
    if axis == "x":
        return None if thing.column == other.column else ("left" if thing.column < other.column else "right")
    return None if thing.row == other.row else ("above" if thing.row < other.row else "below")


class Pair(NamedTuple):
    """Two things, their names, the axis and the true relation of the first to the second."""

    things: tuple[Thing, Thing]
    name: str
    other: str
    axis: str
    relation: str


def _pair(rng: np.random.Generator, scene: Scene) -> Pair | None:
    """Two things of a scene that do not share its column, or its row."""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[int(i)] for i in rng.choice(len(scene.things), 2, replace=False))
    axes = [axis for axis in ("x", "y") if relation_of(first, second, axis)]
    axis = pick(rng, axes)
    relation = relation_of(first, second, axis)
    if relation is None:
        return None
    name, other = (pick(rng, references(scene, thing, "place")) for thing in (first, second))
    return Pair((first, second), name, other, axis, relation)


def relation(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion | None:
    """A question for the side of another thing on which a thing is."""
    pair = _pair(rng, scene)
    if pair is None:
        return None
    text = worded(rng, split, f"relation_{pair.axis}", ref=pair.name, other=pair.other)
    return DemoQuestion("relation", text, pair.relation, pair.things)


def places(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion | None:
    """A question for the places of two things."""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[int(i)] for i in rng.choice(len(scene.things), 2, replace=False))
    name, other = (pick(rng, references(scene, thing, "place")) for thing in (first, second))
    text = worded(rng, split, "places", ref=name, other=other)
    return DemoQuestion("places", text, f"{first.place} and {second.place}", (first, second))


def filled(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    """A question for the places that have a thing, in reading order."""
    return DemoQuestion("filled", worded(rng, split, "filled"), numbered([thing.place for thing in scene.things]))


def at(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    """A question for the thing in a place, three times out of four one that is not empty."""
    place = pick(rng, tuple(t.place for t in scene.things) if rng.random() < 0.75 else PLACES)
    thing = next((t for t in scene.things if t.place == place), None)
    answer = "nothing" if thing is None else f"{thing.size} {thing.colour} {thing.shape}"
    return DemoQuestion("at", worded(rng, split, "at", at=at_place(place)), answer, (thing,))


def background(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    if scene.background not in BACKGROUNDS:
        raise ValueError(f"unknown background {scene.background}")
    return DemoQuestion("background", worded(rng, split, "background"), scene.background)


def yes(flag: bool) -> str:
    return "yes" if flag else "no"


def absent_thing(rng: np.random.Generator, present: list[tuple[str, str]]) -> str:
    """A `colour shape` that is not there; usually its colour, its shape, or both are."""
    colours = tuple(c for c, _ in present) if rng.random() < 0.6 and present else COLOURS
    shapes = tuple(s for _, s in present) if rng.random() < 0.6 and present else SHAPES
    while True:
        colour, shape = pick(rng, colours), pick(rng, shapes)
        if (colour, shape) not in present:
            return f"{colour} {shape}"
        colours, shapes = COLOURS, SHAPES


def exists(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    """A question such as "Is there a red circle?", or "a circle"."""
    truth = rng.random() < 0.5
    present = [(t.colour, t.shape) for t in scene.things]
    missing = tuple(s for s in SHAPES if all(s != t.shape for t in scene.things))
    if rng.random() < 0.3 and (truth or missing):
        name = pick(rng, tuple(t.shape for t in scene.things)) if truth else pick(rng, missing)
    elif truth:
        name = " ".join(pick(rng, present))
    else:
        name = absent_thing(rng, present)
    fitting = [t for t in scene.things if name in (t.shape, f"{t.colour} {t.shape}")]
    about = (fitting[0] if fitting else None,) if len(fitting) < 2 else ()
    return DemoQuestion("yesno", article_fixed(worded(rng, split, "exists", thing=name)), yes(truth), about)


def article_fixed(text: str) -> str:
    """The text with `an orange` for `a orange`; no other demo word begins with a vowel after an article."""
    return text.replace(" a orange", " an orange")


def is_colour(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion | None:
    """A question such as "Is the circle red?"."""
    chosen = reference(rng, scene, "colour")
    if chosen is None:
        return None
    thing, name = chosen
    truth = rng.random() < 0.5
    others = tuple(c for c in COLOURS if c != thing.colour)
    nearby = tuple(t.colour for t in scene.things if t.colour != thing.colour)
    wrong = pick(rng, nearby if nearby and rng.random() < 0.5 else others)
    colour = thing.colour if truth else wrong
    return DemoQuestion("yesno", worded(rng, split, "is_colour", ref=name, colour=colour), yes(truth), (thing,))


def is_related(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion | None:
    """A question such as "Is the circle left of the square?"."""
    pair = _pair(rng, scene)
    if pair is None:
        return None
    truth = rng.random() < 0.5
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    said = pair.relation if truth else opposite[pair.relation]
    phrase = said if said in ("above", "below") else f"{said} of"
    text = worded(rng, split, "is_related", ref=pair.name, other=pair.other, relation=phrase)
    return DemoQuestion("yesno", text, yes(truth), pair.things)


def yesno(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion:
    """One of the three kinds of yes/no question."""
    draw = rng.random()
    asked = is_colour(rng, scene, split) if draw < 0.3 else is_related(rng, scene, split) if draw < 0.6 else None
    return asked or exists(rng, scene, split)


def as_json(rng: np.random.Generator, scene: Scene, split: Split) -> DemoQuestion | None:
    """A question for the shape, colour and size of one thing as a JSON object."""
    chosen = reference(rng, scene, "size")
    if chosen is None:
        return None
    thing, name = chosen
    answer = json.dumps({"shape": thing.shape, "colour": thing.colour, "size": thing.size})
    return DemoQuestion("json", worded(rng, split, "json", ref=name), answer, (thing,))


def image_question(rng: np.random.Generator, scene: Scene, split: Split, kind: str) -> DemoQuestion | None:
    """A question of one of `IMAGE_KINDS` or `IMAGE_STEPS`, or None when the scene does not allow one."""
    if kind in ("colour", "shape", "size", "place"):
        return attribute(rng, scene, split, kind)
    if kind == "caption":
        return DemoQuestion("caption", worded(rng, split, "caption"), caption(scene))
    makers = {
        "count": count,
        "relation": relation,
        "places": places,
        "filled": filled,
        "at": at,
        "background": background,
        "yesno": yesno,
        "json": as_json,
    }
    return makers[kind](rng, scene, split)
