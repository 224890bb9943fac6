"""How much is said on stderr."""

from dataclasses import dataclass
from typing import Annotated

import typer

from llava_mini_cli.commands.flags.config_flag import ConfigFile
from llava_mini_cli.errors import UsageError

_PANEL = "Run"

Verbose = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose/--no-verbose",
        help="Say more, the libraries' warnings too.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class TalkFlags:
    """Less or more than usual."""

    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet/--no-quiet", help="Say nothing but errors.", show_default=False, rich_help_panel=_PANEL
        ),
    ] = False
    verbose: Verbose = False
    config: ConfigFile = None  # read by its callback, before the other options are looked up

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v exclude each other")
