"""Does the evidence name the span of a brief event, what does it cost, and do words attend to what they name?

    python benchmarks/evidence.py events [--videos 100] [--seconds 64]
    python benchmarks/evidence.py objects [--scenes 200]
    python benchmarks/evidence.py cost [--frames 60] [--rounds 3]

`events` renders held-out videos in which one thing is seen for one to three seconds, asks the demo model what appears
briefly, and counts how often the weightiest of 16 spans holds a part of the event: over all videos, and over those in
which no other span holds a part of it, so that it is gone with the span. `objects` asks for the colour of the one shape
of held-out scenes, and compares how much pre-fusion attends from the word that names the shape to a patch on it and to
one elsewhere. `cost` measures the time of the evidence in units of one question about the same medium, with random
weights in the 8B model's proportions. One JSON line a figure.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from engine import Frames, alternate, answers, report
from numpy.typing import NDArray
from random_models import CountedPrompts, build_engine, build_ours, seed

from llava_mini_cli.bench.shapes import SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import PIECES, EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import CANVAS, RADIUS, generator, pick, random_scene
from llava_mini_cli.demo.video_questions import video_question
from llava_mini_cli.demo.videos import Video, random_video
from llava_mini_cli.engine.attention_maps import attention_maps
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.media.clip import ClipInfo, FrameChunk, MediaKind
from llava_mini_cli.pipelines.evidence import evidence_of, with_evidence

EDGE = 192  # pixels of a rendered frame


class RenderedFrames:
    """A rendered video, a frame a second, as a source of the engine."""

    def __init__(self, video: Video, seed: int) -> None:
        self._video, self._seed = video, seed

    def __iter__(self) -> Iterator[FrameChunk]:
        look = random_look(np.random.default_rng(self._seed), self._video.background)
        scenes, which = self._video.scenes(0.5)
        shown = [render(scene, look, EDGE, np.random.default_rng(self._seed)) for scene in scenes]
        for second, scene in enumerate(which):
            yield FrameChunk(shown[scene][None], np.array([second + 0.5]))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Found:
    """What came of one video."""

    is_right: bool  # the answer
    in_one: bool  # the event lies in one of the spans; else in two or more
    first: bool  # the weightiest span holds a part of the event
    of_two: bool  # one of the two weightiest does


def brief_event(engine: Engine, seed: int, seconds: int | None = None) -> Found:
    """The evidence about a video that lasts so many seconds, or 12 to 160."""
    rng = generator("heldout", seed)
    video = random_video(rng, "heldout", "brief", seconds)
    question = video_question(rng, video, "heldout", "brief")
    assert question is not None
    info = ClipInfo("", "video", EDGE, EDGE, float(video.seconds), video.seconds, 1.0)
    asked = Request("", "video", RenderedFrames(video, seed), (question.text,), GenerationOptions(16))
    options = EvidenceOptions(PIECES)
    (answer,) = engine.run([with_evidence(asked, info, options, SamplingOptions())])
    assert isinstance(answer, Answer), answer
    parts = cast("list[dict[str, float]]", evidence_of(answer, info, options)[0]["evidence"])
    ((start, end),) = video.main[0].spans
    # A frame is taken in the middle of each second.
    holds = [any(part["start"] <= second + 0.5 < part["end"] for second in range(start, end)) for part in parts]
    return Found(answer.text.strip() == question.answer, sum(holds) == 1, holds[0], any(holds[:2]))


def events(videos: int, seconds: int | None) -> None:
    engine = load_engine(ModelOptions(str(model_dir()), device="cpu"))
    found = [brief_event(engine, 50_000 + number, seconds) for number in range(videos)]
    for name, some in {"all": found, "event in one span": [one for one in found if one.in_one]}.items():
        report(
            figure=f"brief events, {name}",
            videos=len(some),
            answered_right=sum(one.is_right for one in some),
            event_first=sum(one.first for one in some),
            event_of_two=sum(one.of_two for one in some),
        )


def object_ratios(engine: Engine, seed: int) -> NDArray[np.float64]:
    """How much more a patch on the shape gets than one elsewhere: in each layer, in their mean, and from the query."""
    rng = generator("heldout", seed)
    scene = random_scene(rng, "heldout", 1)
    thing, edge = scene.things[0], pick(rng, CANVAS["heldout"])
    pixels = render(scene, random_look(rng, scene.background), edge, rng)
    maps = attention_maps(engine, "image", [pixels], (edge, edge), f"What colour is the {thing.shape}?")
    assert maps.queries is not None
    place = next(number for number, word in enumerate(maps.words) if word.startswith(thing.shape))
    # A patch lies on the shape where its middle lies in the square around it.
    on = (np.abs(maps.centres - np.array([thing.x, thing.y]) * edge) < RADIUS[thing.size] * edge).all(1)
    rows = [*maps.fusion[0, :, place], maps.fusion[0, :, place].mean(0), maps.queries[0, 0]]
    return np.array([row[on].mean() / row[~on].mean() for row in rows])


def objects(scenes: int) -> None:
    engine = load_engine(ModelOptions(str(model_dir()), device="cpu"))
    ratios = np.array([object_ratios(engine, 90_000 + number) for number in range(scenes)])
    names = [*(f"layer {number + 1}" for number in range(ratios.shape[1] - 2)), "mean of layers", "compressor's query"]
    for name, found in zip(names, ratios.T, strict=True):
        shares = {"median_ratio": float(np.median(found)), "least": float(found.min())}
        report(figure=f"weight on the shape, {name}", scenes=scenes, **shares, at_least_3=int((found >= 3).sum()))


def cost(frames: int, rounds: int) -> None:
    seed()
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), CountedPrompts(before=35, after=20))
    media: tuple[tuple[MediaKind, int], ...] = (("video", frames), ("image", 1))
    for kind, count in media:
        pixels = np.random.default_rng(1).integers(0, 256, (count, 336, 336, 3)).astype(np.uint8)
        info = ClipInfo("", kind, 336, 336, float(count) if kind == "video" else None, count, 1.0)

        def ask(options: EvidenceOptions, pixels: NDArray[np.uint8] = pixels, info: ClipInfo = info) -> None:
            request = Request("", info.kind, Frames(pixels), ("0",), GenerationOptions(max_new_tokens=16))
            answers(engine, [with_evidence(request, info, options, SamplingOptions())])

        seconds = alternate(rounds, plain=partial(ask, EvidenceOptions()), explained=partial(ask, EvidenceOptions(3)))
        questions = seconds["explained"] / seconds["plain"] - 1
        report(figure=f"evidence for an answer about {kind}", frames=count, **seconds, evidence_in_questions=questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    brief = commands.add_parser("events")
    brief.add_argument("--videos", type=int, default=100)
    brief.add_argument("--seconds", type=int, help="length of each video; from 12 to 160 by default")
    commands.add_parser("objects").add_argument("--scenes", type=int, default=200)
    costs = commands.add_parser("cost")
    costs.add_argument("--frames", type=int, default=60)
    costs.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.command == "events":
        events(given.videos, given.seconds)
    elif given.command == "objects":
        objects(given.scenes)
    else:
        cost(given.frames, given.rounds)


if __name__ == "__main__":
    main()
