"""Options of `view`: where its page goes, and where media and probabilities are."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.errors import UsageError

_option = partial(typer.Option, rich_help_panel="Page")


@dataclass(frozen=True)
class ViewFlags:
    """The page, and what it is made of beside the rows."""

    output: Annotated[
        str | None,
        _option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for a page that opens from disk, of up to 100,000 rows; without it the page is served.",
        ),
    ] = None
    overwrite: Annotated[bool, _option(help="A page that is in the folder of -o is written anew.")] = False
    media: Annotated[
        str | None,
        _option(metavar="DIR", help="Folder that the media are in now, where they were moved or have relative paths."),
    ] = None
    track: Annotated[
        str | None,
        _option(
            metavar="FILE", help="Probabilities along the videos that llava-mini when --track wrote, shown as strips."
        ),
    ] = None
    port: Annotated[
        int | None, _option(metavar="N", help="Port on 127.0.0.1 for the page.", show_default="a free one")
    ] = None

    def __post_init__(self) -> None:
        if self.output is not None and self.port is not None:
            raise UsageError("--port is for a page that is served; with -o it is written")
        if self.output is None and self.overwrite:
            raise UsageError("--overwrite is for a page that is written; add -o DIR")
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"--port is a number from 1 to 65535, not {self.port}")
