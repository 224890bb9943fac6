"""What is asked of each medium."""

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class PromptFlags:
    """Questions as the user typed them."""

    prompt: Annotated[
        list[str] | None,
        typer.Option("-p", "--prompt", metavar="[NAME=]TEXT", help="A question; may be repeated.", show_default=False),
    ] = None
