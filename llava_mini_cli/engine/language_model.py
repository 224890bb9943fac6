"""The seam between frames and words: what the engine asks of a language model. Knows nothing of frames.

The engine hands over embeddings, a prefix with the tails of all questions behind it, and is given an `Outcome` for each
question: `Question.answer` or `Question.failure` makes it. Another language model is a class with the members of
`LanguageModel`: `begin` takes questions in, `step` goes on with all of them, and what they came to lies in `done`.
Both return work in pieces (`work`), which may be none. `llm` is our own, the default and the oracle of others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from llava_mini_cli.config import Choices, GenerationOptions, Grammar
from llava_mini_cli.engine.request import FinishReason, Likelihood, Outcome
from llava_mini_cli.engine.work import More
from llava_mini_cli.errors import ItemError

NOT_FINITE = ItemError("internal", "the model gave no finite scores; another --dtype may")  # of a question


class Question(Protocol):
    """One question, as far as a language model needs to know of it."""

    @property
    def text(self) -> str:
        """The words that were asked."""
        ...

    @property
    def options(self) -> GenerationOptions: ...
    @property
    def choices(self) -> Choices | None:
        """The texts of which one is the answer; None: it is written."""
        ...

    @property
    def grammar(self) -> Grammar | None:
        """What the answer is held to while it is written; None: nothing."""
        ...

    def answer(
        self,
        reason: FinishReason,
        tokens: Sequence[int],
        text: str,
        p_yes: float | None = None,
        choice_probs: Mapping[str, float] | None = None,
        choice_scores: Mapping[str, Likelihood] | None = None,
    ) -> Outcome:
        """What comes of a question that was answered; the arguments are those of `Answer`."""
        ...

    def failure(self, error: ItemError) -> Outcome:
        """What comes of a question that has no answer."""
        ...


@dataclass(frozen=True)
class PrefillItem:
    """A prefix and the questions behind it, as embeddings."""

    prefix: torch.Tensor  # [P, hidden], fused shared text and frame tokens
    tails: tuple[torch.Tensor, ...]  # each [S, hidden], fused text behind the frames, one for each question

    @classmethod
    def of_text(cls, embedded: torch.Tensor) -> Self:
        """One question about no medium, `[S, hidden]`: its last token behind the others, as `generate` takes it."""
        return cls(embedded[:-1], (embedded[-1:],))


@dataclass(frozen=True)
class Asked:
    """A prefix with all that is asked behind it."""

    item: PrefillItem
    questions: tuple[Question, ...]  # one for each tail


class LanguageModel(Protocol):
    """What reads embeddings and answers. Each member is called from one thread."""

    @property
    def done(self) -> list[Outcome]:
        """What is to be handed out by the engine, which then sets it to an empty list."""
        ...

    @done.setter
    def done(self, outcomes: list[Outcome]) -> None: ...
    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        ...

    @property
    def asked(self) -> int:
        """Questions that were begun and are not done."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes that the questions at hand take beside the weights."""
        ...

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options. Raises `UsageError` where it cannot give what they ask for."""
        ...

    def begin(self, asked: Sequence[Asked]) -> More:
        """Takes questions in, all or, where it raises `MemoryError`, none: then the engine comes again with less."""
        ...

    def step(self) -> More:
        """Goes on with all questions. Raises `DeviceLost` where there is no going on."""
        ...

    def close(self) -> None:
        """Lets go of all questions; none of them is answered."""
        ...
