"""Options for the end of a run over media, and for how it is reported."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.config import RunLimits

FailOn = Literal["any", "all", "never"]

_option = partial(typer.Option, rich_help_panel="Run")


@dataclass(frozen=True)
class LimitFlags:
    """Bounds of a run and its exit code, for every command that works on media."""

    limit: Annotated[int | None, _option(metavar="N", help="Number of media after which the run stops."), HARMLESS] = (
        None
    )
    max_failures: Annotated[
        int | None, _option(metavar="N", help="Number of failed media after which the run stops."), HARMLESS
    ] = None
    fail_on: Annotated[
        FailOn,
        _option(help="Failures for which the exit code is 3: any failure, only if all failed, or never."),
        HARMLESS,
    ] = "any"

    def limits(self) -> RunLimits:
        """The bounds, checked. Raises `UsageError`."""
        return RunLimits(self.limit, self.max_failures)


@dataclass(frozen=True)
class RunFlags(LimitFlags):
    """The options of `LimitFlags`, and those of a run that writes rows."""

    summary_json: Annotated[
        str | None,
        _option(
            metavar="FILE|-",
            help="File for a summary of the run in JSON (counts, times, settings), even if it fails; - is standard "
            "output.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        _option(help="Work of the run is only counted, from the headers of the media; no question is asked."),
        HARMLESS,
    ] = False
