"""Our own language model and vLLM's beside each other, in turn, on this machine.

    python benchmarks/language_models.py [MODEL] [--device cpu] [--dtype float32] [--rounds 3] [--new 16] [--task 200]

Each line is one task: seconds of both from decoded frames to answers (`own_s`, `vllm_s`), and of the language model
alone, with random embeddings of the same lengths (`own_llm_s`, `vllm_llm_s`), medians of the rounds behind a first one
that is not counted; how many of all answers are the same; the share of the prompts' positions that vLLM had in its
prefix cache. The start of vLLM is apart.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llava_mini_cli.bench.timing import RepeatedFrames
from llava_mini_cli.config import GenerationOptions, ModelOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.language_model import Asked, PrefillItem
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.questions import AskedAlone
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.engine.work import work_off

HEAD, TAIL = 20, 20  # positions of a prompt before the frames and of a question, where there are embeddings alone
Tokens = dict[tuple[int, int], tuple[int, ...]]  # of answers, by medium and question


@dataclass(frozen=True)
class Task:
    """Some media and the questions about each."""

    media: int
    frames: int
    questions: int


TASKS = {
    "16 questions, 600 frames": Task(1, 600, 16),
    "256 questions, 600 frames": Task(1, 600, 256),
    "200 captions": Task(200, 1, 1),
}


def run(engine: Engine, task: Task, options: GenerationOptions, seed: int) -> tuple[float, Tokens]:
    """Seconds from frames to answers, and the answers."""
    prompts = tuple(f"Describe what is shown in part {number}." for number in range(task.questions))
    requests = [
        Request(
            key=str(medium),
            kind="image" if task.frames == 1 else "video",
            frames=RepeatedFrames(task.frames, 224, seed * task.media + medium),
            prompts=prompts,
            generation=options,
        )
        for medium in range(task.media)
    ]
    began = time.perf_counter()
    outcomes = list(engine.run(requests))
    taken = time.perf_counter() - began
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    return taken, {(int(one.key), one.prompt_index): one.token_ids for one in answers}


@dataclass(frozen=True)
class Numbered(AskedAlone):
    """A question whose answer is put where it belongs."""

    place: tuple[int, int] = 0, 0
    answers: Tokens = field(default_factory=dict[tuple[int, int], tuple[int, ...]])

    def answer(self, reason: Any, tokens: Sequence[int], text: str, *rest: Any, **more: Any) -> Any:
        self.answers[self.place] = tuple(tokens)
        return super().answer(reason, tokens, text, *rest, **more)


@torch.inference_mode()
def run_alone(engine: Engine, task: Task, options: GenerationOptions, seed: int) -> tuple[float, Tokens]:
    """Seconds of the language model alone; no more is begun at once than the engine would."""
    generator, model = torch.Generator().manual_seed(seed), engine.model.model
    answers: Tokens = {}

    def states(size: int) -> torch.Tensor:
        return model.embed_text(torch.randint(model.config.vocab_size, (size,), generator=generator).to(model.device))

    left: list[Asked] = []
    for medium in range(task.media):
        asked = [Numbered("", options, place=(medium, one), answers=answers) for one in range(task.questions)]
        item = PrefillItem(states(HEAD + task.frames), tuple(states(TAIL) for _ in asked))
        left.append(Asked(item, tuple(asked)))
    llm, began = engine._llm, time.perf_counter()  # pyright: ignore[reportPrivateUsage]
    while left or llm.asked:
        while left and llm.asked + task.questions <= max(engine.limits.generations, task.questions):
            work_off(llm.begin([left.pop(0)]))
        work_off(llm.step())
        llm.done = []
    return time.perf_counter() - began, answers


def compared(
    model: str, device: str, dtype: str, rounds: int, new: int, tasks: dict[str, Task]
) -> Iterator[dict[str, Any]]:
    """How long vLLM takes to start, then both on each task, after a round that is not counted."""
    options = ModelOptions(model, device=device, dtype=dtype)  # pyright: ignore[reportArgumentType]
    own, generation = load_engine(options), GenerationOptions(new)
    began = time.perf_counter()
    other: Any = load_engine(replace(options, llm="vllm"))
    yield {"note": other.note, "start_s": time.perf_counter() - began}
    with closing(other._llm._link):
        for engine in (own, other):
            run(engine, Task(2, 40, 2), generation, rounds)
        for name, task in tasks.items():
            times: dict[str, list[float]] = defaultdict(list)
            same, answers, before = 0, 0, other._llm.counted
            for number in range(rounds + 1):
                for what, measure in (("_llm", run_alone), ("", run)):
                    own_s, said = measure(own, task, generation, number)
                    vllm_s, other_said = measure(other, task, generation, number)
                    same += sum(said[place] == tokens for place, tokens in other_said.items())
                    answers += task.media * task.questions
                    if number:
                        times[f"own{what}_s"].append(own_s)
                        times[f"vllm{what}_s"].append(vllm_s)
            now = other._llm.counted
            yield {
                "task": name,
                **{what: statistics.median(taken) for what, taken in times.items()},
                "same": same,
                "answers": answers,
                "known": (now.known - before.known) / max(1, now.asked - before.asked),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--task", default="", help="how the names of the tasks begin")
    given = parser.parse_args()
    tasks = {name: task for name, task in TASKS.items() if name.startswith(given.task)}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}))
    for line in compared(given.model, given.device, given.dtype, given.rounds, given.new, tasks):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
