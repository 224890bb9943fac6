"""The choices of a question as tokens: labels, one of which is the answer. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, isfinite
from typing import NamedTuple

from llava_mini_cli.config import Choices, GenerationOptions
from llava_mini_cli.engine.request import Likelihood
from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MOST_KEPT = 1 << 18  # labels whose tokens are remembered

Blind = tuple[str, Choices]  # a question that is asked about no medium, and its choices


@dataclass(frozen=True)
class Labels:
    """The choices of one question and the tokens of each, without the one that ends an answer."""

    texts: Choices
    header: tuple[int, ...]  # what the model writes before each
    ids: tuple[tuple[int, ...], ...]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest one, with what comes before it and its end."""
        return len(self.header) + max(map(len, self.ids)) + 1


class LabelIds:
    """Makes labels of choices, and remembers them: a run asks about many media with the same ones."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self._prompts = prompts
        self._known: dict[Choices, Labels] = {}

    def of(self, choices: Choices) -> Labels:
        """The labels of a question.

        Raises:
            PromptError: there are none, the model cannot say one, or two are the same to it.
        """
        labels = self._known.get(choices)
        if labels is None:
            labels = self._made(choices)
            if sum(map(len, self._known)) + len(choices) > MOST_KEPT:
                self._known.clear()
            self._known[choices] = labels
        return labels

    def _made(self, choices: Choices) -> Labels:
        if not choices:
            raise PromptError("bad_prompt", "the prompt has no choices")
        ids = [tuple(one) for one in self._prompts.answer_ids(choices)]
        by_ids: dict[tuple[int, ...], str] = {}
        for text, own in zip(choices, ids, strict=True):
            if own in by_ids:
                raise PromptError("bad_prompt", f"the choices '{by_ids[own]}' and '{text}' are the same to the model")
            by_ids[own] = text
        return Labels(choices, tuple(self._prompts.header_ids()), tuple(ids))


class Chosen(NamedTuple):
    """The choice that is the answer, and what is told of all of them."""

    ids: tuple[int, ...]
    text: str
    probs: Mapping[str, float]
    scores: Mapping[str, Likelihood]


def chosen(
    labels: Labels, options: GenerationOptions, found: Sequence[Likelihood], before: Sequence[float] | None = None
) -> Chosen | None:
    """The likeliest of some labels.

    Args:
        found: how likely each is.
        before: the scores that each has without a medium, which are subtracted; None: none are.

    Returns:
        None where a score is no number.
    """
    scores = [likelihood.score for likelihood in found]
    if before is not None:
        scores = [score - other for score, other in zip(scores, before, strict=True)]
    if options.choice_score == "mean":
        scores = [score / (len(ids) + 1) for score, ids in zip(scores, labels.ids, strict=True)]
    if not all(map(isfinite, scores)):
        return None
    best = scores.index(max(scores))
    probs = dict(zip(labels.texts, _softmax(scores), strict=True))
    told = {
        text: likelihood._replace(score=score)
        for text, likelihood, score in zip(labels.texts, found, scores, strict=True)
    }
    return Chosen(labels.ids[best], labels.texts[best], probs, told)


def _softmax(scores: Sequence[float]) -> list[float]:
    most = max(scores)
    shares = [exp(score - most) for score in scores]
    total = sum(shares)
    return [share / total for share in shares]
