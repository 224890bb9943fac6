"""From logits to the next token of each answer, and when an answer has said enough. Each stands alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

LOOP_TOKENS = 96  # a loop is this many tokens of one repeated pattern ...
LOOP_REPEATS = 4  # ... of at least this many repeats


def random_generator(options: GenerationOptions) -> torch.Generator | None:
    """An answer's own random generator, on the CPU so that every device draws alike; None when greedy."""
    if options.temperature == 0:
        return None
    return torch.Generator().manual_seed(options.seed)


def penalised(logits: torch.Tensor, tokens: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits `[vocab]` of one answer with those of its own `tokens` made smaller (CTRL, Keskar et al. 2019, 4.1)."""
    if penalty == 1 or not tokens:
        return logits
    said = torch.tensor(sorted(set(tokens)), device=logits.device)
    scores = logits[said]
    return logits.index_copy(0, said, torch.where(scores < 0, scores * penalty, scores / penalty))


def next_token(logits: torch.Tensor, options: GenerationOptions, generator: torch.Generator) -> int:
    """The next token of one answer whose temperature is above 0; greedy ones take the likeliest all at once.

    Args:
        logits: `[vocab]`.
    """
    distances = logits.double().cpu() - logits.max().double().cpu()  # at most 0, so that no temperature overflows
    scores = (distances / options.temperature).softmax(-1)
    if options.top_p < 1:
        ordered, order = scores.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= options.top_p
        scores = scores.index_fill(0, order[outside], 0.0)
    return int(torch.multinomial(scores, 1, generator=generator))


@dataclass(frozen=True)
class YesNo:
    """The tokens that an answer of yes or of no begins with, in any case and with or without a space before."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """From a transformers tokenizer.

        Raises:
            UsageError: every spelling of the one begins as one of the other does.
        """
        yes, no = (_first_tokens(tokenizer, word) for word in ("yes", "no"))
        if not yes - no or not no - yes:
            raise UsageError("--yes-no: this model's tokenizer does not tell yes from no by their first tokens")
        return cls(tuple(sorted(yes - no)), tuple(sorted(no - yes)))

    @classmethod
    def of_prompts(cls, prompts: PromptBuilder) -> Self:
        """From the prompts of a model.

        Raises:
            UsageError: their layout or their tokenizer has no place for yes or no; the text says which.
        """
        if prompts.layout == "reference" and prompts.family == "llama3":
            raise UsageError("--yes-no: with --prompt-layout reference the answer begins with a header, not yes or no")
        return cls.of(prompts.tokenizer)

    def p_yes(self, logits: torch.Tensor) -> float:
        """The probability of yes, given that the answer begins with yes or no, from logits `[vocab]`."""
        scores = logits.double()
        return float((scores[list(self.yes)].logsumexp(0) - scores[list(self.no)].logsumexp(0)).sigmoid())


def _first_tokens(tokenizer: Any, word: str) -> set[int]:
    spellings = [before + form for before in ("", " ") for form in (word, word.capitalize(), word.upper())]
    return {tokenizer(text, add_special_tokens=False).input_ids[0] for text in spellings}


def is_looping(tokens: Sequence[int]) -> bool:
    """True if the last `LOOP_TOKENS` tokens are one pattern, repeated `LOOP_REPEATS` times or more."""
    if len(tokens) < LOOP_TOKENS:
        return False
    tail = list(tokens[-LOOP_TOKENS:])
    return any(tail[period:] == tail[:-period] for period in range(1, LOOP_TOKENS // LOOP_REPEATS + 1))
