"""When a run ends, and how its end is reported."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llava_mini_cli.config import RunLimits

FailOn = Literal["any", "all", "never"]

_PANEL = "Run"

LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="Stop after N media.", show_default=False, rich_help_panel=_PANEL),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(
        "--max-failures", metavar="N", help="Stop once N media failed.", show_default=False, rich_help_panel=_PANEL
    ),
]
FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", help="Failed items that make the exit code 3.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class RunFlags:
    """Bounds of a run, its exit code and its summary."""

    limit: LimitOption = None
    max_failures: MaxFailuresOption = None
    fail_on: FailOnOption = "any"
    summary_json: Annotated[
        str | None,
        typer.Option(
            "--summary-json",
            metavar="FILE|-",
            help="Counts, times and settings of the run, also of one that fails.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run/--no-dry-run",
            show_default=False,
            help="Say what there is to do, from headers alone, and stop.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def limits(self) -> RunLimits:
        """Checked. Raises `UsageError`."""
        return RunLimits(self.limit, self.max_failures)
