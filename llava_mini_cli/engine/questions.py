"""The questions about the windows of media, as a language model is given them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_mini_cli.config import Choices, GenerationOptions, Grammar
from llava_mini_cli.engine.language_model import Asked
from llava_mini_cli.engine.request import Answer, Failure, FinishReason, Likelihood
from llava_mini_cli.engine.track import Track, prefill_items
from llava_mini_cli.engine.window_sum import WindowSum
from llava_mini_cli.errors import ItemError


@dataclass(frozen=True)
class AskedAbout:
    """A question about a window of a medium, as the language model is given it."""

    track: Track
    window: WindowSum
    prompt_index: int
    per_frame: int  # C * C, the tokens of a frame

    @property
    def text(self) -> str:
        """The question as it was typed."""
        return self.track.request.prompts[self.prompt_index]

    @property
    def options(self) -> GenerationOptions:
        """How it is answered."""
        return self.track.request.generation

    @property
    def choices(self) -> Choices | None:
        """The texts of which one is the answer; None: it is written."""
        return self.track.request.choices_of(self.prompt_index)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer is held to; None: nothing."""
        return self.track.request.grammar_of(self.prompt_index)

    def answer(
        self,
        reason: FinishReason,
        tokens: Sequence[int],
        text: str,
        p_yes: float | None = None,
        choice_probs: Mapping[str, float] | None = None,
        choice_scores: Mapping[str, Likelihood] | None = None,
    ) -> Answer:
        """The answer that it came to."""
        return Answer(
            key=self.track.request.key,
            prompt_index=self.prompt_index,
            text=text,
            token_ids=tuple(tokens),
            finish_reason=reason,
            frame_count=self.window.frame_count,
            prompt_tokens=self.track.pack_of(self.window).prompt_lengths[self.prompt_index],
            vision_tokens=self.window.frame_count * self.per_frame,
            completion_tokens=len(tokens),
            window_index=self.window.index,
            p_yes=p_yes,
            choice_probs=choice_probs,
            choice_scores=choice_scores,
        )

    def failure(self, error: ItemError) -> Failure:
        """Its failure, in place of an answer."""
        return self.track.request.failure(self.prompt_index, self.window.index, error, "generate")


def asked_about(track: Track, window: WindowSum, per_frame: int) -> list[Asked]:
    """All that is asked of a window, for the language model."""
    return [
        Asked(item, tuple(AskedAbout(track, window, prompt, per_frame) for prompt in group.prompts))
        for item, group in zip(prefill_items(track, window), window.groups, strict=True)
    ]


@dataclass(frozen=True)
class AskedAlone:
    """A question about no medium."""

    text: str
    options: GenerationOptions
    choices: Choices | None = None
    grammar: Grammar | None = None

    def answer(
        self,
        reason: FinishReason,
        tokens: Sequence[int],
        text: str,
        p_yes: float | None = None,
        choice_probs: Mapping[str, float] | None = None,
        choice_scores: Mapping[str, Likelihood] | None = None,
    ) -> Answer:
        """The answer that it came to, of no request."""
        told: dict[str, Any] = {"p_yes": p_yes, "choice_probs": choice_probs, "choice_scores": choice_scores}
        return Answer("", 0, text, tuple(tokens), reason, 0, 0, 0, len(tokens), **told)

    def failure(self, error: ItemError) -> Failure:
        """Its failure, in place of an answer."""
        return Failure("", 0, "generate", error.kind, str(error))
