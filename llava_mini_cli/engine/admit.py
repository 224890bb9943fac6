"""The prompts that can be asked: laid out, within the model's context and what one medium's text may hold. No torch."""

from dataclasses import dataclass

from llava_mini_cli.engine.request import Failure, Request
from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MAX_TEXT = 1 << 15  # tokens of a medium's prompts together: attention holds a float32 for each pair, 4 GiB in all


@dataclass(frozen=True)
class ContextLimit:
    """The positions that a model has, and how many of them a frame takes."""

    positions: int
    per_frame: int

    def too_long(self, text: int, new: int, frames: int) -> PromptError | None:
        """The error of a prompt whose `text` tokens, `new` tokens and frames exceed the context; None if they fit."""
        most = (self.positions - text - new) // self.per_frame
        if frames <= most:
            return None
        hint = f"at most {most} frames fit: use --max-frames {most} or a lower --fps" if most > 0 else "none fit"
        return PromptError(
            "too_long",
            f"the prompt ({text} tokens), {new} new tokens and {self.per_frame} for each frame exceed the model's "
            f"context of {self.positions}; {hint}",
        )


def admit(
    request: Request, prompts: PromptBuilder, context: ContextLimit
) -> tuple[list[list[int] | None], list[Failure]]:
    """The ids of each prompt of a request; None for those that cannot be asked, which fail alone."""
    found: list[list[int] | None] = []
    failures: list[Failure] = []
    together = 0
    for index, prompt in enumerate(request.prompts):
        try:
            ids = prompts.question_ids(prompt)
            error = context.too_long(len(ids) - 1, request.generation.max_new_tokens, frames=1)
            if error is None and together + len(ids) > MAX_TEXT:
                error = PromptError(
                    "too_long",
                    f"the prompt ({len(ids)} tokens) and those before it ({together}) exceed {MAX_TEXT} tokens, the "
                    "most that is asked of one medium at once; ask in several runs",
                )
            if error is not None:
                raise error
        except PromptError as error:
            found.append(None)
            failures += [request.failure(index, window, error) for window in range(len(request.windows))]
        else:
            found.append(ids)
            together += len(ids)
    return found, failures
