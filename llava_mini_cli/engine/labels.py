"""The choices of a question as tokens: labels, one of which is the answer. No torch."""

from dataclasses import dataclass
from functools import cached_property

from llava_mini_cli.config import Choices
from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MOST_KEPT = 1 << 18  # labels whose tokens are remembered


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
