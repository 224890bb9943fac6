"""Options of every command: how much is said on stderr, and the config file."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.configured import load_config
from llava_mini_cli.errors import UsageError

_option = partial(typer.Option, rich_help_panel="Run")

Verbose = Annotated[
    bool,
    _option("-v", "--verbose/--no-verbose", help="More messages, with details and the warnings of libraries."),
    HARMLESS,
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        envvar="LLAVA_MINI_CONFIG",
        show_envvar=False,
        is_eager=True,
        callback=load_config,
        help="Config file to read in place of the usual ones, which llava-mini config names.",
    ),
]


@dataclass(frozen=True)
class TalkFlags:
    """The amount of messages, and the config file."""

    quiet: Annotated[bool, _option("-q", "--quiet/--no-quiet", help="No messages except errors."), HARMLESS] = False
    verbose: Verbose = False
    config: ConfigFile = None  # read by its callback, before the other options are looked up

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v exclude each other")
