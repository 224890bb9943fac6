"""What is asked of each medium, and what is written around the answer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # imported where it is used, so that --help is quick
    from llava_mini_cli.formats.job import Prompt

_PANEL = "Answer"


@dataclass(frozen=True)
class PromptFlags:
    """Questions as the user typed them."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="[NAME=]TEXT",
            help="A question; may be repeated. {column} stands for a table's value.",
            show_default=False,
        ),
    ] = None
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            help="Questions, a line each as with -p, or JSONL with prompt and name.",
            show_default=False,
        ),
    ] = None
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="TEXT", help="Written before each answer.", rich_help_panel=_PANEL),
    ] = ""
    suffix: Annotated[
        str,
        typer.Option("--suffix", metavar="TEXT", help="Written after each answer.", rich_help_panel=_PANEL),
    ] = ""
    yes_no: Annotated[
        bool,
        typer.Option(
            "--yes-no/--no-yes-no",
            show_default=False,
            help="Say also how likely yes is against no: column p_yes.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def prompts(self) -> "tuple[Prompt, ...]":
        """Those of -p, then those of the file. Raises `UsageError`."""
        from llava_mini_cli.formats.inputs.prompts import parse_prompts, read_prompt_file, unique_prompts

        from_file = read_prompt_file(self.prompt_file) if self.prompt_file is not None else ()
        return unique_prompts((*parse_prompts(self.prompt or []), *from_file))
