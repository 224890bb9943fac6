"""How fast the engine is, as ratios measured in turn in one process: A B A B ..., medians.

    python benchmarks/engine.py [--threads 2] [--rounds 5] [--frames 60] [--only questions|windows]

One JSON line a figure. Weights are random and prompts are counted in tokens; shapes keep the 8B model's proportions
(336 px, 576 patches, CLIP 24 layers, LLM 32 layers with grouped-query attention, 4 pre-fusion layers) at
CLIP width 256 and LLM width 512. Compared with

* the plain path: one question and one frame at a time through `LlavaMiniForConditionalGeneration.generate`;
* the engine itself: questions about the whole video and about each of ten windows of it, against the whole alone.

`llava-mini bench` has the comparison with LLaVA-1.5.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from random_models import CountedPrompts, build_engine, build_ours, seed

from llava_mini_cli.bench.shapes import SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import WHOLE, Answer, Request, Window
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model import modeling

VIDEO_PROMPT = CountedPrompts(before=35, after=20)
QUESTIONS = 16
VIDEO_NEW_TOKENS = 16
WINDOWS = 10
WINDOW_NEW_TOKENS = 1, VIDEO_NEW_TOKENS  # yes or no, and a sentence


class Frames:
    """Frames that are there already."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, len(self.pixels), 32):
            part = self.pixels[start : start + 32]
            yield FrameChunk(part, np.arange(start, start + len(part), dtype=np.float64))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def alternate(rounds: int, **paths: Callable[[], None]) -> dict[str, float]:
    """Seconds of each path, the median of `rounds` measured in turn after one unmeasured go each."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 1):
        for name, path in paths.items():
            started = time.perf_counter()
            path()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def answers(engine: Engine, requests: list[Request]) -> list[Answer]:
    """All answers; raises when anything failed."""
    outcomes = list(engine.run(requests))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Answer)]


def plain_answer(engine: Engine, pixels: torch.Tensor, question: str, new_tokens: int) -> list[int]:
    """One question through the plain path."""
    ids = torch.tensor([engine.prompts.question_ids(question)])
    counts = torch.tensor([len(pixels)])
    out = engine.model.generate(
        input_ids=ids, pixel_values=pixels, frame_counts=counts, max_new_tokens=new_tokens, pad_token_id=0
    )
    return out[0].tolist()


def report(**fields: Any) -> None:
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in fields.items()}), flush=True)


def questions_about_a_video(frames: int, rounds: int) -> None:
    """1 and 16 questions about one video, against the plain path."""
    seed()
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), VIDEO_PROMPT)
    video = np.random.default_rng(0).integers(0, 256, (frames, 336, 336, 3)).astype(np.uint8)
    options = GenerationOptions(max_new_tokens=VIDEO_NEW_TOKENS)
    modeling.FRAMES_AT_ONCE = 1
    plain: list[list[int]] = []

    def ask(count: int) -> list[Answer]:
        prompts = tuple(str(number) for number in range(count))
        return answers(engine, [Request("v", "video", Frames(video), prompts, options)])

    def ask_one() -> None:
        ask(1)

    def ask_plain() -> None:
        pixels = engine.processor.preprocessor.frames(torch.from_numpy(video))
        plain.append(plain_answer(engine, pixels, "0", VIDEO_NEW_TOKENS))

    same = False

    def ask_sixteen() -> None:
        nonlocal same
        first = next(answer for answer in ask(QUESTIONS) if answer.prompt_index == 0)
        same = bool(plain) and list(first.token_ids) == plain[-1]

    seconds = alternate(rounds, plain=ask_plain, one=ask_one, sixteen=ask_sixteen)
    report(
        figure="questions about a video",
        frames=frames,
        new_tokens=VIDEO_NEW_TOKENS,
        rounds=rounds,
        one_s=seconds["one"],
        sixteen_s=seconds["sixteen"],
        plain_one_s=seconds["plain"],
        sixteen_over_one=seconds["sixteen"] / seconds["one"],
        faster_than_plain_for_one=seconds["plain"] / seconds["one"],
        # the plain path asks one question after the other: sixteen take sixteen times one
        faster_than_plain_for_sixteen=QUESTIONS * seconds["plain"] / seconds["sixteen"],
        same_tokens_as_plain=same,
    )


def questions_about_windows(frames: int, rounds: int) -> None:
    """16 questions about a video and each of ten windows of it, against the same about the video alone."""
    seed()
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), VIDEO_PROMPT)
    video = np.random.default_rng(0).integers(0, 256, (frames, 336, 336, 3)).astype(np.uint8)
    prompts = tuple(str(number) for number in range(QUESTIONS))
    cuts = [number * frames / WINDOWS for number in range(WINDOWS + 1)]
    windows = tuple(Window(start, end) for start, end in pairwise(cuts))

    for new_tokens in WINDOW_NEW_TOKENS:
        options = GenerationOptions(max_new_tokens=new_tokens)

        def ask(options: GenerationOptions, *more: Window) -> None:
            found = answers(engine, [Request("v", "video", Frames(video), prompts, options, (WHOLE, *more))])
            assert len(found) == QUESTIONS * (1 + len(more))

        seconds = alternate(rounds, whole=partial(ask, options), windows=partial(ask, options, *windows))
        report(
            figure="questions about windows of a video",
            frames=frames,
            questions=QUESTIONS,
            windows=WINDOWS,
            new_tokens=new_tokens,
            rounds=rounds,
            whole_s=seconds["whole"],
            whole_and_windows_s=seconds["windows"],
            windows_over_whole=seconds["windows"] / seconds["whole"],
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--only", choices=("questions", "windows"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report(torch=torch.__version__, threads=arguments.threads, llm=SMALL_LLM, clip=SMALL_CLIP)
    if arguments.only in (None, "questions"):
        questions_about_a_video(arguments.frames, arguments.rounds)
    if arguments.only in (None, "windows"):
        questions_about_windows(arguments.frames, arguments.rounds)


if __name__ == "__main__":
    main()
