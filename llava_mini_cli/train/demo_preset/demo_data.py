"""Rendered media with several questions each: what stage 2 of the demo preset is trained on, made on demand.

A video's frames repeat while nothing changes, so it holds each different frame once, and the order of frames.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.demo.image_questions import IMAGE_KINDS, IMAGE_STEPS, DemoQuestion, image_question
from llava_mini_cli.demo.render import random_look
from llava_mini_cli.demo.scenes import CANVAS, Scene, Split, random_scene
from llava_mini_cli.demo.video_questions import VIDEO_KINDS, VIDEO_STEPS, video_question
from llava_mini_cli.demo.videos import LONGEST, Story, Video, random_video
from llava_mini_cli.train.demo_preset.fusion_truth import cell_truth
from llava_mini_cli.train.demo_preset.pixels import RenderedData, picture

IMAGE_WEIGHTS = {  # how often a kind is asked about an image, before ambiguous ones are left out
    "colour": 1.0,
    "shape": 1.0,
    "size": 1.0,
    "place": 1.5,
    "count": 1.0,
    "relation": 2.5,
    "places": 1.3,
    "filled": 0.7,
    "at": 0.8,
    "background": 0.6,
    "yesno": 2.2,
    "json": 0.6,
    "caption": 0.8,
}
STORY_WEIGHTS: dict[Story, float] = {
    "move": 5.0,
    "still": 0.4,
    "parade": 4.0,
    "arrive": 0.9,
    "vanish": 0.9,
    "blink": 1.3,
    "brief": 2.0,
}
VIDEO_ASK = {
    "order": 4,
    "rank": 2,
    "video_yesno": 2,
    "endpoint": 2,
    "path": 2,
}  # questions of a kind about one video; others: 1
GAPS = 0.3  # share of videos with a gap in their positions
LONGEST_GAP = 4000
IMAGE_QUESTIONS = 9
VIDEO_QUESTIONS = 9
SQUASHED = 0.3  # share of media that take the road of video frames to the tower; it costs more than the other
LONE_TEXT = 0.5  # share of videos whose text is fused with one frame alone
TEXT_FRAMES = 3  # frames of a moving thing that the text is fused with in training; every different one otherwise


@dataclass(frozen=True)
class RenderedMedium:
    """One image or video with its questions."""

    frames: NDArray[np.uint8]  # [U, 72, 72, 3] different frames
    order: tuple[int, ...]  # [T] which of them is seen at each second
    cells: NDArray[np.int64]  # [U, 9, 3] what stands in each place of each different frame (`fusion_truth`)
    text_frames: dict[int, float]  # frames that the text is fused with, and their shares of its mean (sum 1)
    questions: tuple[DemoQuestion, ...]
    gap: tuple[int, int] = (0, 0)  # a frame, and how many positions the LLM is made to believe were before it
    index: int = 0  # its place in the data set


def ask_about_image(rng: np.random.Generator, scene: Scene, split: Split, number: int) -> tuple[DemoQuestion, ...]:
    """Different questions about a scene, kinds drawn by `IMAGE_WEIGHTS`."""
    kinds = (*IMAGE_KINDS, *IMAGE_STEPS)
    shares = np.array([IMAGE_WEIGHTS[kind] for kind in kinds])
    found: dict[str, DemoQuestion] = {}
    for index in rng.choice(len(kinds), number * 2, p=shares / shares.sum()):
        question = image_question(rng, scene, split, kinds[int(index)])
        if question is not None and len(found) < number:
            found.setdefault(question.text, question)
    return tuple(found.values())


def ask_about_video(
    rng: np.random.Generator, video: Video, split: Split, number: int, ask: Mapping[str, int] = VIDEO_ASK
) -> tuple[DemoQuestion, ...]:
    """Different questions about a video, of every kind that it allows; `ask`: as `VIDEO_ASK`."""
    found: dict[str, DemoQuestion] = {}
    kinds = [kind for kind in (*VIDEO_KINDS, *VIDEO_STEPS) for _ in range(ask.get(kind, 1))]
    for index in rng.permutation(len(kinds)):
        question = video_question(rng, video, split, kinds[int(index)])
        if question is not None and len(found) < number:
            found.setdefault(question.text, question)
    return tuple(found.values())


def image_medium(rng: np.random.Generator, split: Split, captions_only: bool = False) -> RenderedMedium:
    """A scene with its questions, or with one for its caption."""
    scene = random_scene(rng, split)
    edge, look = int(rng.choice(CANVAS[split])), random_look(rng, scene.background)
    pixels = picture(rng, scene, look, edge, squash=rng.random() < SQUASHED)
    asked = image_question(rng, scene, split, "caption") if captions_only else None
    questions = (asked,) if asked else ask_about_image(rng, scene, split, IMAGE_QUESTIONS)
    return RenderedMedium(pixels[None], (0,), cell_truth(scene)[None], {0: 1.0}, questions)


def text_shares(rng: np.random.Generator, order: tuple[int, ...], moving: bool, lone: float) -> dict[int, float]:
    """Each different frame by how long it is seen; of a moving thing, one frame from each part of the video.

    A share of `lone` takes one frame alone: what the others show is then in their tokens and nowhere else.
    """
    if rng.random() < lone:
        return {int(rng.choice(order)): 1.0}
    if not moving or len(order) <= TEXT_FRAMES:
        return {frame: order.count(frame) / len(order) for frame in dict.fromkeys(order)}
    parts = np.array_split(np.array(order), TEXT_FRAMES)
    return {int(rng.choice(part)): len(part) / len(order) for part in parts}


def video_medium(
    rng: np.random.Generator,
    split: Split,
    story: Story | None = None,
    longest: int = LONGEST,
    lone: float = LONE_TEXT,
    ask: Mapping[str, int] = VIDEO_ASK,
) -> RenderedMedium:
    """A video of at most `longest` seconds with its questions, one frame for each second."""
    if story is None:
        stories = list(STORY_WEIGHTS)
        shares = np.array(list(STORY_WEIGHTS.values()))
        story = stories[int(rng.choice(len(stories), p=shares / shares.sum()))]
    video = random_video(rng, split, story, longest=longest)
    edge, look = int(rng.choice(CANVAS[split])), random_look(rng, video.background)
    squash = rng.random() < SQUASHED
    scenes, order = video.scenes(float(rng.uniform(0.35, 0.65)))  # when in each second the frame is taken
    frames = np.stack([picture(rng, scene, look, edge, squash) for scene in scenes])
    cells = np.stack([cell_truth(scene) for scene in scenes])
    shares = text_shares(rng, tuple(order), video.story == "move", lone)
    questions = ask_about_video(rng, video, split, VIDEO_QUESTIONS, ask)
    gap = position_gap(rng, len(order))
    return RenderedMedium(frames, tuple(order), cells, shares, questions, gap)


def position_gap(rng: np.random.Generator, seconds: int) -> tuple[int, int]:
    """A gap somewhere in the positions of some videos: what is far away in an hour is far away in training, too."""
    if rng.random() >= GAPS:
        return 0, 0
    return int(rng.integers(seconds + 1)), int(math.exp(rng.uniform(math.log(20), math.log(LONGEST_GAP))))


class DemoData(RenderedData[RenderedMedium]):
    """Endless media: `images` of every `period` are images and the rest videos. The same index gives the same one."""

    def __init__(
        self,
        split: Split,
        length: int,
        images: int = 10,
        period: int = 16,
        first: int = 0,
        captions_only: bool = False,
        longest: int = LONGEST,
        video_ask: Mapping[str, int] = VIDEO_ASK,
    ) -> None:
        super().__init__(split, length, first)
        self.images = images
        self.period = period
        self.captions_only = captions_only
        self.longest = longest
        self.video_ask = video_ask

    def __getitem__(self, index: int) -> RenderedMedium:
        rng = self.generator(index)
        if index % self.period < self.images:
            medium = image_medium(rng, self.split, self.captions_only)
        else:
            medium = video_medium(rng, self.split, longest=self.longest, ask=self.video_ask)
        return replace(medium, index=self.first + index)
