"""Exact-match accuracy of a model on rendered questions of a split, by kind, with 95 % intervals.

One question a scene, so that the answers are independent. Knows nothing of training.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.demo.image_questions import IMAGE_KINDS, DemoQuestion, image_question
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import CANVAS, Split, generator, pick, random_scene
from llava_mini_cli.demo.video_questions import VIDEO_KINDS, video_question
from llava_mini_cli.demo.videos import Story, random_video

BRIEF_SECONDS = {"brief": 24, "brief_2min": 120, "brief_10min": 600, "brief_1h": 3600}
FIRST: dict[Split, int] = {"heldout": 4_000_000}  # earlier ones were looked at while the model was still changed
MIDDLE = 0.5  # a second's frame is taken from its middle, as 1 fps sampling does
Z95 = 1.959964  # normal quantile of a 95 % interval


@dataclass(frozen=True)
class Item:
    """One question about one rendered medium."""

    kind: str
    frames: NDArray[np.uint8]  # [T, edge, edge, 3]
    question: DemoQuestion
    is_video: bool


@dataclass(frozen=True)
class Score:
    """The number of a kind's questions that were answered exactly."""

    kind: str
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        n, p = self.asked, self.share
        middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def line(self) -> str:
        low, high = self.interval
        spread = f"[{100 * low:5.1f}, {100 * high:5.1f}]"
        return f"{self.kind:14s} {100 * self.share:6.1f} %  {spread}  {self.right}/{self.asked}"


def image_item(rng: np.random.Generator, split: Split, kind: str) -> Item | None:
    """A scene with one question of a kind, None when the scene does not allow one."""
    scene = random_scene(rng, split)
    question = image_question(rng, scene, split, kind)
    if question is None:
        return None
    edge = int(rng.choice(CANVAS[split]))
    pixels = render(scene, random_look(rng, scene.background), edge, rng)
    return Item(kind, pixels[None], question, is_video=False)


STORIES_OF: dict[str, tuple[Story, ...]] = {  # which stories allow a question of each kind
    "direction": ("move",),
    "order": ("parade",),
    "event_count": ("parade", "blink"),
    "appears": ("arrive",),
    "vanishes": ("vanish",),
    "brief": ("brief",),
    "moving": ("move",),
    "video_yesno": ("move", "still", "parade", "arrive", "vanish", "blink"),
    "video_caption": ("move", "still", "parade", "arrive", "vanish", "blink"),
}


def video_item(rng: np.random.Generator, split: Split, kind: str) -> Item | None:
    """A video with one question of a kind (`brief_2min` and the like: of that length)."""
    asked = "brief" if kind in BRIEF_SECONDS else kind
    video = random_video(rng, split, pick(rng, STORIES_OF[asked]), BRIEF_SECONDS.get(kind))
    question = video_question(rng, video, split, asked)
    if question is None:
        return None
    edge, look = int(rng.choice(CANVAS[split])), random_look(rng, video.background)
    scenes, order = video.scenes(MIDDLE)
    frames = np.stack([render(scene, look, edge, rng) for scene in scenes])
    return Item(kind, frames[order], question, is_video=True)


def items(kind: str, count: int, split: Split = "heldout") -> Iterator[Item]:
    """Questions of a kind, `count` of them, always the same ones."""
    make = image_item if kind in IMAGE_KINDS else video_item
    index, found = FIRST.get(split, 0), 0
    while found < count:
        item = make(generator(split, index), split, kind)
        index += 1
        if item is not None:
            found += 1
            yield item


def answers(model: Any, processor: Any, batch: list[Item]) -> list[str]:
    """Greedy answers to questions that are all about images, or all about videos."""
    texts = [item.question.text for item in batch]
    if batch[0].is_video:
        inputs = processor(videos=[item.frames for item in batch], text=texts)
    else:
        inputs = processor(images=[item.frames[0] for item in batch], text=texts)
    with torch.inference_mode():
        ids = model.generate(**inputs.to(model.device), max_new_tokens=80)
    return processor.batch_decode(ids)


def score(model: Any, processor: Any, kind: str, count: int, split: Split = "heldout", batch: int = 16) -> Score:
    """Asks `count` questions of a kind and counts the exact answers."""
    right = 0
    pending: list[Item] = []
    for number, item in enumerate(items(kind, count, split), start=1):
        pending.append(item)
        if len(pending) == batch or number == count:
            found = answers(model, processor, pending)
            right += sum(said == one.question.answer for said, one in zip(found, pending, strict=True))
            pending = []
    return Score(kind, right, count)


ALL_KINDS = (*IMAGE_KINDS, *VIDEO_KINDS, "brief_2min")
