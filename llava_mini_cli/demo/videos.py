"""Short videos with known truth: things that move, appear, vanish, blink or flash by for a moment.

Knows nothing of pixels or language. Events begin and end on whole seconds, so that the frames sampled at 1 fps
(near the middle of each second) never fall on an edge.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llava_mini_cli.demo.scenes import BACKGROUNDS, Scene, Split, Thing, pick, random_scene

Story = Literal["move", "still", "parade", "arrive", "vanish", "blink", "brief"]
STORIES: tuple[Story, ...] = ("move", "still", "parade", "arrive", "vanish", "blink", "brief")
LONGEST = 160  # seconds of a brief event's video, unless told otherwise
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class Actor:
    """A thing with a path and the whole-second spans in which it is seen."""

    thing: Thing  # where it stands at second 0
    spans: tuple[tuple[int, int], ...]  # [from, to) in seconds
    velocity: tuple[float, float] = (0.0, 0.0)  # canvas edges a second

    def at(self, time: float) -> Thing | None:
        """The thing at a time in seconds, None while it is not seen."""
        if not any(start <= time < end for start, end in self.spans):
            return None
        vx, vy = self.velocity
        return replace(self.thing, x=self.thing.x + vx * time, y=self.thing.y + vy * time)


@dataclass(frozen=True)
class Video:
    """The contents of one video. `main`: the actors that the story is about, in order of their events."""

    story: Story
    actors: tuple[Actor, ...]
    main: tuple[Actor, ...]
    background: str
    seconds: int
    direction: str | None = None  # of a moving actor

    def scene(self, time: float) -> Scene:
        """The scene that is seen at a time in seconds."""
        seen = (actor.at(time) for actor in self.actors)
        return Scene(tuple(thing for thing in seen if thing is not None), self.background)

    def scenes(self, late: float) -> tuple[list[Scene], list[int]]:
        """The different scenes at `late` in every second, as they come, and the number of the one in each second."""
        each = [self.scene(second + late) for second in range(self.seconds)]
        different = list(dict.fromkeys(each))
        return different, [different.index(scene) for scene in each]


def _things(rng: np.random.Generator, split: Split, count: int) -> list[Thing]:
    """Things of different kinds in a layout of the split, in no order."""
    things = random_scene(rng, split, count).things
    return [things[int(i)] for i in rng.permutation(count)]


def _always(things: list[Thing], seconds: int) -> tuple[Actor, ...]:
    return tuple(Actor(thing, ((0, seconds),)) for thing in things)


def _move(rng: np.random.Generator, split: Split, background: str) -> Video:
    """One thing crosses the canvas; a second one may stand aside, out of its lane.

    Training sees shorter ones, too: with two frames, first and last are easier to tell apart.
    """
    seconds = int(rng.integers(2 if split == "train" else 4, 13))
    direction = pick(rng, tuple(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    mover, aside = _things(rng, split, 2)
    lane, other_lane = (int(i) for i in rng.choice(3, 2, replace=False))
    distance = float(rng.uniform(0.45, 0.64))
    along = float(rng.uniform(0.17, 0.83 - distance))
    begin = along if dx + dy > 0 else 1 - along
    across = (lane + 0.5) / 3
    mover = replace(mover, x=begin if dx else across, y=begin if dy else across)
    stand = float(rng.uniform(0.18, 0.82))
    beside = (other_lane + 0.5) / 3
    aside = replace(aside, x=stand if dx else beside, y=stand if dy else beside)
    speed = distance / seconds
    main = Actor(mover, ((0, seconds),), (dx * speed, dy * speed))
    extras = _always([aside], seconds) if rng.random() < 0.4 else ()
    return Video("move", (*extras, main), (main,), background, seconds, direction)


def _still(rng: np.random.Generator, split: Split, background: str) -> Video:
    seconds = int(rng.integers(4, 13))
    actors = _always(_things(rng, split, int(rng.integers(1, 3))), seconds)
    return Video("still", actors, actors, background, seconds)


def _parade(rng: np.random.Generator, split: Split, background: str) -> Video:
    """Things come one after another, each gone before the next comes."""
    things = _things(rng, split, int(rng.integers(1, 5)))
    actors: list[Actor] = []
    now = int(rng.integers(0, 3))
    for thing in things:
        end = now + int(rng.integers(2, 4))
        actors.append(Actor(thing, ((now, end),)))
        now = end + int(rng.integers(0, 2))
    seconds = max(now + int(rng.integers(0, 2)), 4)
    return Video("parade", tuple(actors), tuple(actors), background, seconds)


def _arrive(rng: np.random.Generator, split: Split, background: str) -> Video:
    """One thing is there from the beginning (or none); another comes and stays."""
    seconds = int(rng.integers(5, 13))
    things = _things(rng, split, int(rng.integers(1, 3)))
    when = int(rng.integers(2, seconds - 1))
    main = Actor(things[0], ((when, seconds),))
    return Video("arrive", (*_always(things[1:], seconds), main), (main,), background, seconds)


def _vanish(rng: np.random.Generator, split: Split, background: str) -> Video:
    """One or two things; one of them goes and does not come back."""
    seconds = int(rng.integers(5, 13))
    things = _things(rng, split, int(rng.integers(1, 3)))
    when = int(rng.integers(2, seconds - 1))
    main = Actor(things[0], ((0, when),))
    return Video("vanish", (*_always(things[1:], seconds), main), (main,), background, seconds)


def _blink(rng: np.random.Generator, split: Split, background: str) -> Video:
    """One thing comes and goes 1 to 4 times at the same place."""
    now = int(rng.integers(1, 3))
    spans: list[tuple[int, int]] = []
    for _ in range(int(rng.integers(1, 5))):
        end = now + int(rng.integers(1, 3))
        spans.append((now, end))
        now = end + int(rng.integers(1, 3))
    main = Actor(_things(rng, split, 1)[0], tuple(spans))
    return Video("blink", (main,), (main,), background, max(now, 4))


def _brief(
    rng: np.random.Generator, split: Split, background: str, seconds: int | None = None, longest: int = LONGEST
) -> Video:
    """A long and quiet video in which a second thing is seen for 1 to 3 seconds."""
    length = int(math.exp(rng.uniform(math.log(12), math.log(longest)))) if seconds is None else seconds
    things = _things(rng, split, int(rng.integers(1, 3)))
    when = int(rng.integers(1, length - 4))
    main = Actor(things[0], ((when, when + int(rng.integers(1, 4))),))
    return Video("brief", (*_always(things[1:], length), main), (main,), background, length)


def random_video(
    rng: np.random.Generator,
    split: Split,
    story: Story | None = None,
    seconds: int | None = None,
    longest: int = LONGEST,
) -> Video:
    """A video of the given story (any, if None). A brief one lasts `seconds`, or up to `longest`."""
    chosen = pick(rng, STORIES) if story is None else story
    background = pick(rng, BACKGROUNDS)
    if chosen == "brief":
        return _brief(rng, split, background, seconds, longest)
    makers = {"move": _move, "still": _still, "parade": _parade, "arrive": _arrive, "vanish": _vanish, "blink": _blink}
    return makers[chosen](rng, split, background)
