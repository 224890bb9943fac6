"""Requests through an engine around a model that was made for it, timed whole: tokenizing, scheduling and every step.

What a request takes beside its model's sums is small and many-fold, so that nothing but a request tells it. Pictures
are grey and there already; answers are as long as they are asked for.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.engine.work_bytes import CACHE_BYTES, CHUNK_FRAMES
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID, PromptBuilder

GENERATIONS = 64  # as in a run
BUDGET = 0.3  # seconds for timing one request, which is done at least MOST_TIMES[0] times
LEAST_TIMES, MOST_TIMES = 2, 9
LONG_S = 2.0  # unless it takes so many seconds


@dataclass(frozen=True)
class Texts:
    """The tokens of prompts: those before the frames, which all share, and those of each question behind them."""

    shared: int
    tail: int


class _Frames:
    """Grey frames, a second apart."""

    def __init__(self, count: int, size: int) -> None:
        self._pixels = np.full((count, size, size, 3), 127, np.uint8)

    def __iter__(self) -> Iterator[FrameChunk]:
        yield FrameChunk(self._pixels, np.arange(len(self._pixels), dtype=np.float64))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Prompts:
    """Prompts of a stated number of tokens, which take as long to lay out as the model's own do."""

    def __init__(self, real: PromptBuilder, texts: Texts, vocabulary: int) -> None:
        self._real = real
        self._texts = texts
        self._vocabulary = vocabulary

    def question_ids(self, question: str) -> list[int]:
        """As `PromptBuilder.question_ids`."""
        laid_out = self._real.question_ids(question)
        number = sum(laid_out) % self._vocabulary
        before, behind = (
            [1 + (first + place) % (self._vocabulary - 1) for place in range(count)]
            for first, count in ((0, self._texts.shared), (37 * number, self._texts.tail))
        )
        return [*before, IMAGE_TOKEN_ID, *behind]

    def answer_text(self, ids: list[int]) -> str:
        """As `PromptBuilder.answer_text`."""
        return self._real.answer_text(ids)


class TimedEngine:
    """An engine whose requests are timed, each kind of them once."""

    def __init__(
        self, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, prompts: Any, texts: Texts
    ) -> None:
        """Makes the engine.

        Args:
            model: of which a greedy answer ends at nothing but its length.
            processor: of the model that is estimated, for its pictures.
            prompts: its `PromptBuilder`, or what has the same two functions.
            texts: the tokens that its prompts are taken to have.
        """
        limits = Limits(CHUNK_FRAMES, generations=GENERATIONS, media=GENERATIONS, cache_bytes=CACHE_BYTES[0])
        counted: Any = _Prompts(prompts, texts, model.config.vocab_size)
        self._engine = Engine(model, processor, counted, limits)
        self._known: dict[tuple[int, int, int], float] = {}

    def seconds(self, frames: int, questions: int, tokens: int) -> float:
        """Seconds of a request about a picture (one frame) or a video, each answer of so many tokens.

        The least of a few times: other work on the machine only adds to them.

        Raises:
            RuntimeError: the request failed.
        """
        key = frames, questions, tokens
        if key not in self._known:
            self._known[key] = self._least(*key)
        return self._known[key]

    def _least(self, frames: int, questions: int, tokens: int) -> float:
        options = GenerationOptions(max_new_tokens=tokens)
        prompts = tuple(f"What colour is thing {number} in this picture?" for number in range(questions))
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < MOST_TIMES and (len(times) < LEAST_TIMES or time.perf_counter() - began < BUDGET):
            source = _Frames(frames, self._engine.frame_size)
            request = Request("timed", "image" if frames == 1 else "video", source, prompts, options)
            start = time.perf_counter()
            outcomes = list(self._engine.run([request]))
            times.append(time.perf_counter() - start)
            if not all(isinstance(one, Answer) and one.completion_tokens == tokens for one in outcomes):
                raise RuntimeError(f"a request that is timed failed: {outcomes[0]}")
            if times[0] > LONG_S:
                break
        # The first one finds nothing ready, and counts only where it is the only one.
        return min(times[1:] or times)
