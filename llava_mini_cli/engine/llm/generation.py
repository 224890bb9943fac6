"""A question while it is being answered."""

from dataclasses import dataclass, field

import torch

from llava_mini_cli.engine.grammars import Matcher
from llava_mini_cli.engine.language_model import Question
from llava_mini_cli.engine.llm.kv_cache import RowCache


@dataclass(eq=False)
class Generation:
    """One question being answered."""

    question: Question
    cache: RowCache
    row: int  # of the cache
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list[int])
    p_yes: float | None = None
    matcher: Matcher | None = None  # of the grammar that the answer is held to

    @property
    def takes_likeliest(self) -> bool:
        """True if the next token is the one with the highest score."""
        return self.generator is None and self.question.options.repetition_penalty == 1
