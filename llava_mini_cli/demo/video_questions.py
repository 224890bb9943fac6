"""Questions with true answers about one video, and its caption. Yes and no are equally frequent.

Knows nothing of pixels or of the model; the wording itself stands in `wording`.
"""

import numpy as np

from llava_mini_cli.demo.image_questions import DemoQuestion, absent_thing, article, article_fixed, numbered, yes
from llava_mini_cli.demo.scenes import Split, Thing, pick
from llava_mini_cli.demo.videos import DIRECTIONS, Actor, Video
from llava_mini_cli.demo.wording import worded

VIDEO_KINDS = (
    "direction",
    "order",
    "event_count",
    "appears",
    "vanishes",
    "brief",
    "moving",
    "video_yesno",
    "video_caption",
)
VIDEO_STEPS = (
    "endpoint",
    "next",
    "rank",
    "path",
)  # asked in training alone: what a direction and an order are worked out from

ASKED_OF_STILL = 0.3  # share of yes/no questions about videos in which nothing moves that ask whether it does


def kind_name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def seen_name(rng: np.random.Generator, video: Video, actor: Actor) -> str:
    """A way to name an actor that fits no other actor of the video."""
    thing, others = actor.thing, [a.thing for a in video.actors if a is not actor]
    names = [f"the {kind_name(thing)}"]
    if all(o.shape != thing.shape for o in others):
        names.append(f"the {thing.shape}")
    if all(o.colour != thing.colour for o in others):
        names.append(f"the {thing.colour} shape")
    if not others:
        names.append("the shape")
    return pick(rng, names)


def video_caption(video: Video) -> str:
    """One or two clauses that say what happens in a video."""
    named = sorted(video.main, key=lambda actor: actor.thing.cell) if video.story == "still" else video.main
    main = [article(kind_name(actor.thing)) for actor in named]
    aside = [article(kind_name(actor.thing)) for actor in video.actors if actor not in video.main]
    text = {
        "move": f"{main[0]} moves {video.direction}",
        "still": f"{numbered(main)} {'stay' if len(main) > 1 else 'stays'} still",
        "parade": f"{main[0]} appears" + ("".join(f", then {name}" for name in main[1:]) or " 1 time"),
        "arrive": f"{main[0]} appears",
        "vanish": f"{main[0]} disappears",
        "blink": f"{main[0]} appears {times(len(video.main[0].spans))}",
        "brief": f"{main[0]} appears briefly",
    }[video.story]
    if aside:
        text += f" beside {aside[0]}"
    return text[0].upper() + text[1:] + "."


def times(number: int) -> str:
    return "1 time" if number == 1 else f"{number} times"


def direction(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    if video.direction is None:
        return None
    name = seen_name(rng, video, video.main[0])
    return DemoQuestion("direction", worded(rng, split, "direction", ref=name), video.direction)


def endpoint(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the place of a moving thing in the first or in the last second."""
    if video.direction is None:
        return None
    actor, which = video.main[0], pick(rng, ("first", "last"))
    thing = actor.at(0.5 if which == "first" else video.seconds - 0.5)
    assert thing is not None  # what moves is always seen
    name = seen_name(rng, video, actor)
    return DemoQuestion("endpoint", worded(rng, split, "endpoint", ref=name, which=which), thing.place)


def order(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the thing that appears first, second or last, or for the earlier one of two."""
    if video.story != "parade" or len(video.main) < 2:
        return None
    if rng.random() < 0.35:
        early, late = sorted(int(i) for i in rng.choice(len(video.main), 2, replace=False))
        names = [f"the {kind_name(video.main[i].thing)}" for i in (early, late)]
        asked = names if rng.random() < 0.5 else names[::-1]
        text = worded(rng, split, "before", ref=asked[0], other=asked[1])
        return DemoQuestion("order", text, kind_name(video.main[early].thing))
    which = pick(rng, ("first", "last") if len(video.main) == 2 else ("first", "second", "last"))
    actor = video.main[{"first": 0, "second": 1, "last": -1}[which]]
    return DemoQuestion("order", worded(rng, split, which), kind_name(actor.thing))


def next_thing(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the thing that comes after one of those that come one after another."""
    if video.story != "parade" or len(video.main) < 2:
        return None
    index = int(rng.integers(len(video.main) - 1))
    name = f"the {kind_name(video.main[index].thing)}"
    return DemoQuestion("next", worded(rng, split, "next", ref=name), kind_name(video.main[index + 1].thing))


def rank(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the rank (first, second, last) of a thing among those that come one after another."""
    number = len(video.main)
    if video.story != "parade" or number < 2:
        return None
    ranks = {0: "first", 1: "second"} | {number - 1: "last"}
    index = pick(rng, tuple(str(i) for i in ranks))
    name = f"the {kind_name(video.main[int(index)].thing)}"
    return DemoQuestion("rank", worded(rng, split, "rank", ref=name), ranks[int(index)])


def path(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the places where a thing moves along, or where things appear one after another."""
    if video.direction is not None:
        actor = video.main[0]
        seen = [actor.at(second + 0.5) for second in range(video.seconds)]
        text = worded(rng, split, "path", ref=seen_name(rng, video, actor))
    elif video.story == "parade" and len(video.main) > 1:
        seen = [actor.thing for actor in video.main]
        text = worded(rng, split, "places_shown")
    else:
        return None
    places = [thing.place for thing in seen if thing is not None]
    along = [place for number, place in enumerate(places) if video.direction is None or place not in places[:number]]
    return DemoQuestion("path", text, ", then ".join(along))


def event_count(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion | None:
    """A question for the number of shapes that appear, or of times that one shape appears."""
    if video.story == "parade":
        return DemoQuestion("event_count", worded(rng, split, "count_shown"), str(len(video.main)))
    if video.story == "blink":
        actor = video.main[0]
        text = worded(rng, split, "count_blinks", ref=seen_name(rng, video, actor))
        return DemoQuestion("event_count", text, str(len(actor.spans)))
    return None


def event(rng: np.random.Generator, video: Video, split: Split, kind: str) -> DemoQuestion | None:
    """A question for the thing that appears, disappears, appears briefly or moves."""
    story = {"appears": "arrive", "vanishes": "vanish", "brief": "brief", "moving": "move"}[kind]
    if video.story != story:
        return None
    return DemoQuestion(kind, worded(rng, split, kind), kind_name(video.main[0].thing))


def does_move(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion:
    """A question such as "Does the circle move left?".

    False ones name another direction, a thing that does not move, or one that is not there.
    """
    still = tuple(actor for actor in video.actors if actor.velocity == (0.0, 0.0))
    said, truth = video.direction or pick(rng, tuple(DIRECTIONS)), video.direction is not None and rng.random() < 0.5
    name = seen_name(rng, video, video.main[0])
    if not truth:
        moves = ("direction", "direction") if video.direction else ()
        wrong = pick(rng, ("absent", *moves, *("still",) * bool(still)))
        if wrong == "absent":
            name = f"the {absent_thing(rng, [(a.thing.colour, a.thing.shape) for a in video.actors])}"
        elif wrong == "still":
            name = seen_name(rng, video, pick(rng, still))
        else:
            said = pick(rng, tuple(d for d in DIRECTIONS if d != video.direction))
    return DemoQuestion("video_yesno", worded(rng, split, "does_move", ref=name, direction=said), yes(truth))


def does_appear(rng: np.random.Generator, video: Video, split: Split, true: float = 0.5) -> DemoQuestion:
    """A question such as "Is there a red circle in the video?". In a share of `true` there is."""
    truth = rng.random() < true
    present = [(a.thing.colour, a.thing.shape) for a in video.actors]
    name = " ".join(pick(rng, present)) if truth else absent_thing(rng, present)
    return DemoQuestion("video_yesno", article_fixed(worded(rng, split, "does_appear", thing=name)), yes(truth))


def video_yesno(rng: np.random.Generator, video: Video, split: Split) -> DemoQuestion:
    """A yes/no question whether a thing moves, or is seen; both answers are equally frequent, moving or not."""
    if video.direction is not None:
        return does_move(rng, video, split) if rng.random() < 0.6 else does_appear(rng, video, split)
    if rng.random() < ASKED_OF_STILL:
        return does_move(rng, video, split)
    return does_appear(rng, video, split, 0.5 / (1 - ASKED_OF_STILL))


def video_question(rng: np.random.Generator, video: Video, split: Split, kind: str) -> DemoQuestion | None:
    """A question of one of `VIDEO_KINDS` or `VIDEO_STEPS`, or None when the video does not allow one."""
    if kind in ("appears", "vanishes", "brief", "moving"):
        return event(rng, video, split, kind)
    if kind == "video_caption":
        return DemoQuestion(kind, worded(rng, split, kind), video_caption(video))
    makers = {
        "direction": direction,
        "endpoint": endpoint,
        "next": next_thing,
        "rank": rank,
        "path": path,
        "order": order,
        "event_count": event_count,
        "video_yesno": video_yesno,
    }
    return makers[kind](rng, video, split)
