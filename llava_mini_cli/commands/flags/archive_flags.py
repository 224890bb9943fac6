"""Options for the archive that `ask` reads instead of files, and for the part of it that is asked about."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.errors import UsageError

_option = partial(typer.Option, rich_help_panel="Archive")

PathGlob = Annotated[
    str | None,
    _option(metavar="GLOB", help="Pattern for the paths of the archive's media; media that do not match are left out."),
    HARMLESS,
]


@dataclass(frozen=True)
class ArchiveFlags:
    """An archive that llava-mini index made, and the part of it that is asked about."""

    index: Annotated[
        str | None, _option(metavar="ARCHIVE", help="Archive of llava-mini index to ask about, in place of MEDIA.")
    ] = None
    path: PathGlob = None
    top: Annotated[
        int | None,
        _option(
            metavar="K",
            help="Number of moments to ask about, in place of whole media: those that llava-mini search finds first.",
            show_default="whole media",
        ),
        HARMLESS,
    ] = None
    find: Annotated[
        str | None,
        _option(metavar="TEXT", help="Text that --top searches for.", show_default="the question"),
        HARMLESS,
    ] = None

    def __post_init__(self) -> None:
        given = {"--path": self.path, "--top": self.top, "--find": self.find}
        for flag, value in given.items():
            if value is not None and self.index is None:
                raise UsageError(f"{flag} goes with --index ARCHIVE")
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be at least 1, not {self.top}")
        if self.find is not None and self.top is None:
            raise UsageError("--find goes with --top K")
