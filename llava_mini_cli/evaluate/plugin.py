"""The model that lmms-eval finds under the name `llava_mini`. It and `manifest` alone import lmms-eval.

    python -m lmms_eval --model llava_mini --model_args pretrained=demo --tasks TASK

What cannot be done ends the evaluation with one line.
"""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingModuleSource]
    GenerationResult,
    Instance,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingModuleSource]
from tqdm import tqdm

from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.errors import LlavaMiniError
from llava_mini_cli.evaluate.answering import Answering, Ask
from llava_mini_cli.evaluate.arguments import read_arguments
from llava_mini_cli.evaluate.visuals import Media, Show
from llava_mini_cli.pipelines.model_needs import look_at_needs


class Loss(tuple[float, bool]):
    """How unlikely a continuation is, and whether it is what would be written.

    lmms-eval 0.7.3 makes a text of a plain pair, in which no task finds the numbers again: so each is wrapped as an
    answer in words is. Its response cache keeps such a pair no better.
    """

    def strip(self) -> str:
        """Tells the response cache that there is nothing to keep."""
        return ""


class LlavaMini(lmms):
    """A simple model of lmms-eval, which answers all questions about a medium from one look at it."""

    is_simple = True

    def __init__(self, batch_size: object = None, max_batch_size: object = None, **arguments: object) -> None:
        """Loads the model.

        Args:
            batch_size, max_batch_size: lmms-eval always gives one; the engine chooses its own, and neither has an
                effect.
            arguments: `--model_args`, and `device`.
        """
        super().__init__()
        rank, world_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        with _one_line():
            self._options = read_arguments(arguments, rank, world_size)
            look_at_needs(self._options.model)
            self.engine = load_engine(self._options.model)
        self._media = Media(self._options.several_images)
        self._answering = Answering(self.engine, self._media, self._options, _say)

    @property
    def device(self) -> Any:
        """The device that computes."""
        return self.engine.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers in words, with their tokens counted."""
        asks, wanted = list[Ask](), list[dict[str, object]]()
        with _one_line(), self._bar(len(requests)) as advance:
            for request in requests:
                text, options, show, row, task, split = request.args
                asks.append(self._ask(text, show, row, task, split))
                wanted.append(dict(options or {}))
            written = self._answering.write(asks, wanted, advance)
        return [GenerationResult(one.text, TokenCounts(one.prompt_tokens, one.new_tokens)) for one in written]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The `Loss` of each continuation: its log-likelihood, with the sign turned.

        lmms-eval takes the least of these numbers for the answer, as its own models give losses.
        """
        asks, continuations = list[Ask](), list[str]()
        with _one_line(), self._bar(len(requests)) as advance:
            for request in requests:
                if len(request.args) == 2:  # about nothing at all: what a choice is worth by itself
                    text, target = request.args
                    asks.append(Ask(str(text), None, "a question about nothing"))
                else:
                    text, target, show, row, task, split = request.args
                    asks.append(self._ask(text, show, row, task, split))
                    if callable(target):
                        target = cast("Callable[[Any], object]", target)(self.task_dict[task][split][row])
                continuations.append(str(target))
            found = self._answering.score(asks, continuations, advance)
        return [GenerationResult(Loss((-one.score, one.is_greedy))) for one in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: LLaVA-Mini was not trained to go on with a conversation about a medium."""
        raise SystemExit("llava_mini: generate_until_multi_round is not supported; leave tasks of several rounds out")

    def clean(self) -> None:
        """Lets go of the model."""
        for name in ("engine", "_answering"):
            if hasattr(self, name):
                delattr(self, name)
        super().clean()

    def _ask(self, text: object, show: Show, row: int, task: str, split: str) -> Ask:
        row_of = partial(self._row, task, split, row)
        return Ask(str(text), self._media.of(show, row_of, f"{task} ({split})", row), f"{task} ({split}), row {row}")

    def _row(self, task: str, split: str, row: int) -> Any:
        return self.task_dict[task][split][row]

    @contextmanager
    def _bar(self, total: int) -> Generator[Callable[[int], object]]:
        with tqdm(total=total, desc="LLaVA-Mini", unit=" questions", disable=self.rank != 0) as bar:
            yield bar.update


@contextmanager
def _one_line() -> Generator[None]:
    """Ends the program with what an error says; lmms-eval would print where in the code it was raised."""
    try:
        yield
    except LlavaMiniError as error:
        raise SystemExit(f"llava_mini: {error}") from None


def _say(line: str) -> None:
    tqdm.write(f"llava_mini: {line}", file=sys.stderr)
