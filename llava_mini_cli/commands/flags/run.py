"""When a run ends, and how its end is reported."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

FailOn = Literal["any", "all", "never"]

_PANEL = "Output"


@dataclass(frozen=True)
class RunFlags:
    """Bounds of a run and its exit code."""

    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Failed items that make the exit code 3.", rich_help_panel=_PANEL)
    ] = "any"
