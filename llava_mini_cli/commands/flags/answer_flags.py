"""How answers are generated."""

from dataclasses import dataclass
from typing import Annotated

import typer

from llava_mini_cli.config import GenerationOptions

_PANEL = "Answer"


@dataclass(frozen=True)
class AnswerFlags:
    """The fields of `GenerationOptions`, as options."""

    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.", rich_help_panel=_PANEL)
    ] = GenerationOptions.max_new_tokens
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 always gives the likeliest token.", rich_help_panel=_PANEL)
    ] = GenerationOptions.temperature
    top_p: Annotated[
        float, typer.Option("--top-p", help="Nucleus mass, with a temperature above 0.", rich_help_panel=_PANEL)
    ] = GenerationOptions.top_p
    seed: Annotated[
        int, typer.Option("--seed", help="Of the draws, with a temperature above 0.", rich_help_panel=_PANEL)
    ] = GenerationOptions.seed
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            help="Above 1: words of the answer become less likely again (1.1 is much); 1 changes nothing.",
            rich_help_panel=_PANEL,
        ),
    ] = GenerationOptions.repetition_penalty

    def options(self) -> GenerationOptions:
        """Checked. Raises `UsageError`."""
        return GenerationOptions(**vars(self))
