"""The plain path, that the engine is held against, and short ways to ask the engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from engine_doubles import ArrayFrames, noise_video
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, PromptLayout
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Outcome, Request
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor

QUESTIONS = (
    "What is shown?",
    "How many are there! Count them one by one, please.",
    "Red?",
    "Compare <image-placeholder> with a cat.",
    "Where does the ball go at the end?",
)
GREEDY = GenerationOptions(max_new_tokens=8)


class Oracle:
    """The plain path: one question about one medium through `generate`, remembered."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
        self.processor = LlavaMiniProcessor.from_pretrained(checkpoint)
        self.known: dict[tuple[int, int, str], list[int]] = {}

    def video(self, frames: int, seed: int) -> np.ndarray:
        return noise_video(frames, seed)

    def ids(self, frames: int, seed: int, question: str) -> list[int]:
        key = (frames, seed, question)
        if key not in self.known:
            self.known[key] = self.answer(self.video(frames, seed), question)
        return self.known[key]

    def answer(self, pixels: np.ndarray, question: str) -> list[int]:
        one = len(pixels) == 1
        batch = self.processor(images=pixels[0], text=question) if one else self.processor(videos=pixels, text=question)
        ids = self.model.generate(**batch, max_new_tokens=GREEDY.max_new_tokens)[0].tolist()
        ends = self.model.generation_config.eos_token_id
        return [token for token in ids if token not in ends]

    def engine(self, limits: Limits, layout: PromptLayout = "trained") -> Engine:
        return Engine(self.model, self.processor, self.processor.prompts(layout), limits)


def make_oracle(path: Path) -> Oracle:
    """The oracle of a tiny checkpoint written to `path`."""
    changes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "prefusion_layer_num": 2}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**vision, "image_size": 56, "patch_size": 14, "projection_dim": 8}
    return Oracle(write_tiny_checkpoint(path, vision_config=vision, video_frame_size=56, **changes))


def limits(chunk: int = 8, generations: int = 64, media: int = 64, cache_bytes: int = 1 << 30) -> Limits:
    return Limits(chunk, generations, media, cache_bytes)


def request(key: str, pixels: np.ndarray, prompts: Sequence[str], **settings: object) -> Request:
    kind = "image" if len(pixels) == 1 else "video"
    return Request(key, kind, ArrayFrames(pixels), tuple(prompts), GREEDY, **settings)  # pyright: ignore


def by_prompt(outcomes: Sequence[Outcome]) -> dict[tuple[str, int, int], Outcome]:
    found = {(one.key, one.window_index, one.prompt_index): one for one in outcomes}
    assert len(found) == len(outcomes)
    return found
