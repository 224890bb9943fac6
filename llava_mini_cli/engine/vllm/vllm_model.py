"""The language model on vLLM as the engine asks it: units of work go over, and what is said of them becomes answers."""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.grammars import Grammars, Matcher
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import NOT_FINITE, Asked
from llava_mini_cli.engine.llm.sampling import LOOP_TOKENS, is_looping
from llava_mini_cli.engine.request import Outcome
from llava_mini_cli.engine.vllm.asking import Asking, Scored, Task, Writing, Yes
from llava_mini_cli.engine.vllm.chooser import Chooser, Scoring
from llava_mini_cli.engine.vllm.link import Link, VllmEnded
from llava_mini_cli.engine.vllm.messages import Counted, Drop, Finish, Groups, Said
from llava_mini_cli.engine.vllm.tries import Known
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.errors import DeviceLost, ItemError
from llava_mini_cli.model.modeling import LlavaMiniModel
from llava_mini_cli.model.prompt_layouts import PromptBuilder

POLL_SECONDS = 0.05  # that a step waits for something to be said


class VllmLanguageModel:
    """A `LanguageModel` in another process."""

    def __init__(
        self,
        link: Link,
        model: LlavaMiniModel,
        prompts: PromptBuilder,
        labels: LabelIds,
        grammars: Grammars,
        end_ids: frozenset[int],
    ) -> None:
        """`model` has the table of embeddings, and may be without the layers of the language model."""
        self.done: list[Outcome] = []
        self.end_ids = end_ids
        self.counted = Counted(0, 0)  # positions that vLLM was asked about, and had in its prefix cache
        self._link = link
        self._prompts = prompts
        self._grammars = grammars
        self._chooser = Chooser(labels, sorted(end_ids))
        self._asking = Asking(model, prompts, grammars, self._chooser)
        self._tasks: dict[int, Task] = {}  # by the numbers of their units

    @property
    def asked(self) -> int:
        """Questions that are not answered yet."""
        scorings = {id(one.scoring) for one in self._tasks.values() if isinstance(one, Scored)}
        return len(scorings | self._chooser.waiting) + sum(isinstance(one, Writing) for one in self._tasks.values())

    @property
    def cache_bytes(self) -> int:
        """Bytes of the embeddings that were handed over and are not done with."""
        return sum(one.nbytes for one in self._tasks.values())

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options. Raises `UsageError`."""
        self._asking.accept(options)

    def begin(self, asked: Sequence[Asked]) -> More:
        """Hands questions over."""
        handed = self._asking.units(asked)
        self._send(tuple(handed.groups))
        self._tasks |= handed.tasks
        self._chooser.begun(handed.scorings)
        return ()

    def step(self) -> More:
        """What was said of the questions, or a little waiting for it. Raises `DeviceLost`."""
        try:
            said = self._link.take(POLL_SECONDS)
        except VllmEnded as error:
            raise _lost(error) from error
        return [Piece(partial(self._hear, one), partial(self._fail, one)) for one in said]

    def close(self) -> None:
        """Lets go of all questions."""
        if self._tasks:
            with suppress(VllmEnded):  # then nothing is left to be dropped
                self._link.send(Drop(tuple(self._tasks)))
        self._tasks.clear()
        self._chooser.clear()

    def _send(self, message: Groups | Drop) -> None:
        try:
            self._link.send(message)
        except VllmEnded as error:
            raise _lost(error) from error

    def _hear(self, said: Said | Counted) -> More:
        if isinstance(said, Counted):
            self.counted = said
            return ()
        task = self._tasks.get(said.number)
        if task is None:
            return ()
        error = _error(said)
        match task:
            case Writing():
                self._written(said, task, error)
            case Yes():
                self._drop(said.number)
                self._told(task, error, said.scores)
            case Scored():
                self._scored(said, task, error)
        return ()

    def _written(self, said: Said, one: Writing, error: ItemError | None) -> None:
        if error is None and said.scores and one.p_yes is None:
            one.p_yes = self._asking.p_yes(said.scores)
        before, one.tokens = len(one.tokens), [*one.tokens, *said.tokens]
        loop = _loop(one.tokens, before) if one.matcher is None else None
        over: Outcome | None = None
        if error is not None:
            over = one.question.failure(error)
        elif loop is not None:
            over = self._answer(one, one.tokens[:loop], "repetition")
        elif said.finish is not None:
            one.ended = said.finish
            over = None if one.waits else self._answer(one, one.tokens, said.finish)
        if over is not None:
            if said.finish is None:
                self._send(Drop((said.number,)))
            self._end(said.number, over)

    def _told(self, task: Yes, error: ItemError | None, scores: dict[int, float]) -> None:
        """How likely yes is was told, before or after the answer is over."""
        one = task.of
        if task.number not in self._tasks:
            return
        if error is not None:
            self._send(Drop((task.number,)))
            self._end(task.number, one.question.failure(error))
            return
        one.waits, one.p_yes = False, self._asking.p_yes(scores)
        if one.ended is not None:
            self._end(task.number, self._answer(one, one.tokens, one.ended))

    def _answer(self, one: Writing, tokens: list[int], reason: Finish | str) -> Outcome:
        """The outcome of an answer that is over."""
        if one.matcher is None:
            return one.question.answer(reason, tokens, self._prompts.answer_text(tokens), one.p_yes)  # pyright: ignore[reportArgumentType]
        if tokens and one.matcher.is_whole(tokens[:-1], tokens[-1]):
            reason = "stop"
        elif reason == "stop":
            error = self._unfinished(one.matcher, tokens)
            if error is not None:
                return one.question.failure(error)
        return one.question.answer(reason, tokens, one.matcher.text(tokens), one.p_yes)  # pyright: ignore[reportArgumentType]

    def _unfinished(self, matcher: Matcher, tokens: Sequence[int]) -> ItemError | None:
        """Why an answer could not go on, though its grammar asks for more; None where it may end here."""
        mask = np.zeros((self._grammars.vocabulary + 31) // 32, np.uint32)
        error = matcher.fill(tokens, mask)
        if error is not None or any(int(mask[end // 32]) >> end % 32 & 1 for end in self.end_ids):
            return error
        return ItemError("bad_schema", "the answer ended before it was what the schema asks for")

    def _scored(self, said: Said, task: Scored, error: ItemError | None) -> None:
        scoring = task.scoring
        if error is not None:
            self._give_up(scoring, error)
            return
        self._drop(said.number)
        if scoring.p_yes is None and task.is_yes_no:
            scoring.p_yes = self._asking.p_yes(said.scores)
        self._chooser.heard(scoring, task.node.path, Known(said.scores, said.tokens[0]))
        self._decided()

    def _give_up(self, scoring: Scoring, error: ItemError) -> None:
        """A node of a scoring failed: the question does."""
        numbers = [number for number, one in self._tasks.items() if isinstance(one, Scored) and one.scoring is scoring]
        self._send(Drop(tuple(numbers)))
        for number in numbers:
            self._drop(number)
        self._chooser.fail(scoring, error)
        self._decided()

    def _decided(self) -> None:
        self.done += self._chooser.done
        self._chooser.done = []

    def _end(self, number: int, outcome: Outcome) -> None:
        self.done.append(outcome)
        self._drop(number)

    def _drop(self, number: int) -> None:
        self._tasks.pop(number, None)

    def _fail(self, said: Said | Counted) -> More:
        """There is no memory to deal with what was said."""
        if isinstance(said, Said) and (task := self._tasks.get(said.number)) is not None:
            if isinstance(task, Scored):
                self._give_up(task.scoring, _NO_ROOM)
            elif isinstance(task, Yes):
                self._told(task, _NO_ROOM, {})
            else:
                self._end(said.number, task.question.failure(_NO_ROOM))
        return ()


_NO_ROOM = ItemError("out_of_memory", "the question does not fit the memory")


def _loop(tokens: list[int], before: int) -> int | None:
    """Where an answer began to loop, of which so many tokens were looked at already; None where it does not."""
    for length in range(max(before + 1, LOOP_TOKENS), len(tokens) + 1):
        if is_looping(tokens[length - LOOP_TOKENS : length]):
            return length
    return None


def _error(said: Said) -> ItemError | None:
    """Why a unit has no result; None where it has, or goes on."""
    if said.finish == "too_long":
        return ItemError("out_of_memory", said.message)
    if said.finish == "refused":
        return ItemError("internal", f"vLLM does not take the prompt: {said.message}")
    if said.finish == "lost":
        return ItemError("internal", "vLLM gave the answer up")
    if not said.is_finite or any(math.isnan(score) for score in said.scores.values()):
        return NOT_FINITE
    return None


def _lost(error: VllmEnded) -> DeviceLost:
    return DeviceLost(
        f"vLLM's process ended ({error}); what was answered is written, and the same command does the rest"
    )
