"""How far the estimates of `llava-mini doctor -m MODEL` lie from what the same work then takes, three times each.

    python benchmarks/estimates.py MODEL [--format bfloat16] [--rounds 3]
    python benchmarks/estimates.py proportions

One JSON line for each figure that doctor tells: seconds estimated, the median of the rounds, and estimated over taken.
Doctor measures first, in this process; then the model is loaded, once in a process of its own for each round and once
here, and random pictures are asked about. Answers are made as long as they are asked for. `proportions` is the model
of `random_models.py` with the 8B model's proportions, which is not loaded. Frames are there already, so that no decoder
is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import torch
from random_models import CountedPrompts, build_engine, build_ours

from llava_mini_cli.bench.shapes import SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import DTypeName, GenerationOptions, ModelOptions, Quantization, WeightFormat
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.estimate import ANSWER_TOKENS, MINUTE_FRAMES, Estimate
from llava_mini_cli.engine.estimating import TEXTS, estimate
from llava_mini_cli.engine.llm.own_model import OwnLanguageModel
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.overhead import Pieces
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.pipelines.model_outlook import measured_outlook

QUESTIONS = 9
LOADING = (
    "import sys, json; from llava_mini_cli.config import ModelOptions; "
    "from llava_mini_cli.pipelines.load_engine import load_engine; load_engine(ModelOptions(**json.loads(sys.argv[1])))"
)


class Frames:
    """Random frames that are there already, of the size to which a run's frames are decoded."""

    def __init__(self, count: int, size: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, len(self._pixels), 32):
            part = self._pixels[start : start + 32]
            yield FrameChunk(part, np.arange(start, start + len(part), dtype=np.float64))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def options_for(model: str, kind: WeightFormat | None) -> ModelOptions:
    options = ModelOptions(model)
    if kind in get_args(Quantization):
        return replace(options, quantize=cast(Quantization, kind))
    return options if kind is None else replace(options, dtype=cast(DTypeName, kind))


def taken(engine: Engine, question: Any, frames: int, questions: int, tokens: int) -> float:
    """Seconds of questions about an image (one frame) or a video, each with an answer of so many tokens."""
    options = GenerationOptions(max_new_tokens=tokens)
    kind = "image" if frames == 1 else "video"
    prompts = tuple(question(number) for number in range(questions))
    source = Frames(frames, engine.frame_size)
    began = time.perf_counter()
    outcomes = list(engine.run([Request("v", kind, source, prompts, options)]))
    seconds = time.perf_counter() - began
    assert all(isinstance(one, Answer) and one.completion_tokens == tokens for one in outcomes), outcomes
    return seconds


def median(work: Any, rounds: int) -> float:
    return statistics.median(work() for _ in range(rounds))


def loading(options: ModelOptions) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOADING, json.dumps(vars(options))], check=True)
    return time.perf_counter() - began


def report(figure: str, estimated: float, took: float) -> None:
    ratio = estimated / took
    line = {"figure": figure, "estimated_s": estimated, "taken_s": took, "estimated_over_taken": ratio}
    rounded = {key: value if isinstance(value, str) else round(value, 3) for key, value in line.items()}
    print(json.dumps(rounded | {"within_30_percent": 0.7 <= ratio <= 1.3}), flush=True)


def proportions() -> tuple[Estimate, Engine, Any]:
    prompts = CountedPrompts(TEXTS.shared, TEXTS.tail)
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), prompts, measured=False)
    config = engine.model.config
    pieces = Pieces(config, "float32", "float32", TEXTS, engine.processor, prompts, products=True)
    found = estimate(config, "float32", "float32", None, pieces, 0.0)
    assert found is not None
    return found, engine, str


def checkpoint(model: str, kind: WeightFormat | None, rounds: int) -> tuple[Estimate, Engine, Any]:
    outlook = measured_outlook(model)
    kind = kind or outlook.auto
    found = {one.kind: one.estimate for one in outlook.formats}.get(kind) if kind is not None else None
    if found is None:
        sys.exit(f"nothing was estimated for {kind}: {outlook}")
    print(json.dumps({"model": model, "format": kind}))
    options = options_for(model, kind)
    report("loading", found.load, median(lambda: loading(options), rounds))
    return found, load_engine(options), lambda number: f"What colour is thing {number} in this picture? Say it."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--format", choices=get_args(WeightFormat))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minute", type=int, default=MINUTE_FRAMES, help="frames that are timed, then in proportion")
    given = parser.parse_args()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}))
    if given.model == "proportions":
        found, engine, question = proportions()
    else:
        found, engine, question = checkpoint(given.model, given.format, given.rounds)
    llm = engine._llm  # pyright: ignore[reportPrivateUsage]
    assert isinstance(llm, OwnLanguageModel)
    llm.decoder.end_ids = frozenset()  # answers as long as asked for

    def seconds(frames: int, questions: int, tokens: int) -> float:
        return median(lambda: taken(engine, question, frames, questions, tokens), given.rounds)

    taken(engine, question, 1, 1, 2)  # finds nothing ready
    image = seconds(1, 1, 1)
    report("image", found.image, image)
    report("minute of video", found.minute, seconds(given.minute, 1, 1) * MINUTE_FRAMES / given.minute)
    answer = seconds(1, 1, 1 + ANSWER_TOKENS)
    report("answer of 64 tokens", found.answer(), answer - image)
    several = seconds(1, QUESTIONS, 1 + ANSWER_TOKENS)
    report("each further question", found.further_question(), (several - answer) / (QUESTIONS - 1))


if __name__ == "__main__":
    main()
