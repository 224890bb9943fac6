"""The prompts that can be asked of a medium, and how many of them at once. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.request import WHOLE, Failure, Request
from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MAX_TEXT = 1 << 15  # tokens of prompts in one pass: attention holds a float32 for each pair, 4 GiB in all


@dataclass(frozen=True)
class ContextLimit:
    """The positions that a model has, and how many of them a frame takes."""

    positions: int
    per_frame: int

    def most_frames(self, text: int, new: int) -> int:
        """Frames that fit beside a prompt of `text` tokens and `new` tokens of its answer; below 1 where none does."""
        return (self.positions - text - new) // self.per_frame

    def too_long(self, text: int, new: int, frames: int, of: str = "new tokens") -> PromptError | None:
        """The error of a prompt whose `text` tokens, `new` tokens and frames exceed the context; None if they fit.

        `of`: what the new tokens are, for the message.
        """
        most = self.most_frames(text, new)
        if frames <= most:
            return None
        hint = f"at most {most} frames fit: use --fit, --max-frames {most} or a lower --fps" if most > 0 else "none fit"
        return PromptError(
            "too_long",
            f"the prompt ({text} tokens), {new} {of} and {self.per_frame} for each frame exceed the model's "
            f"context of {self.positions}; {hint}",
        )


def admit(
    request: Request,
    prompts: PromptBuilder,
    context: ContextLimit,
    which: Sequence[int] | None = None,
    labels: LabelIds | None = None,
    grammars: Grammars | None = None,
) -> tuple[list[list[int] | None], list[Failure]]:
    """The ids of each prompt of a request, or of some by their index; None for those that cannot be asked.

    A prompt that does not fit beside the frames that are known to come fails now, before any of them is encoded.
    """
    found: list[list[int] | None] = []
    failures: list[Failure] = []
    frames = (request.frame_count or 1) if request.windows == (WHOLE,) else 1
    for index in range(len(request.prompts)) if which is None else which:
        try:
            ids = prompts.question_ids(request.prompts[index])
            new, of = new_tokens(request, index, labels or LabelIds(prompts))
            error = context.too_long(len(ids) - 1, new, frames, of)
            if error is None and len(ids) > MAX_TEXT:
                error = PromptError(
                    "too_long",
                    f"the prompt ({len(ids)} tokens) exceeds {MAX_TEXT} tokens, the most that is asked at once",
                )
            if error is not None:
                raise error
            grammar = request.grammar_of(index)
            if grammar is not None and grammars is not None:
                grammars.check(grammar)
        except PromptError as error:
            found.append(None)
            failures += request.failures(index, error)
        else:
            found.append(ids)
    return found, failures


def new_tokens(request: Request, prompt: int, labels: LabelIds) -> tuple[int, str]:
    """How many tokens the answer to a prompt may have, and what they are. Raises `PromptError`."""
    choices = request.choices_of(prompt)
    if choices is None:
        return request.generation.max_new_tokens, "new tokens"
    return labels.of(choices).longest, "tokens of the longest of its choices"


def passes(prompts: Sequence[list[int] | None]) -> list[list[list[int] | None]]:
    """The ids of a request's prompts dealt out to passes of at most `MAX_TEXT` tokens, None where not in that pass.

    At least one pass, which may be empty.
    """
    dealt: list[list[list[int] | None]] = []
    left = 0
    for index, ids in enumerate(prompts):
        if ids is not None and len(ids) > left:
            dealt.append([None] * len(prompts))
            left = MAX_TEXT
        if ids is not None:
            dealt[-1][index] = ids
            left -= len(ids)
    return dealt or [[None] * len(prompts)]
