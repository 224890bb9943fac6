"""What `ask` reads instead of files."""

from dataclasses import dataclass
from typing import Annotated

import typer

from llava_mini_cli.errors import UsageError

_PANEL = "Archive"


@dataclass(frozen=True)
class ArchiveFlags:
    """An archive that llava-mini index made, and what of it is asked about."""

    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="ARCHIVE",
            help="Ask about what llava-mini index has seen, in place of MEDIA.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    path: Annotated[
        str | None,
        typer.Option(
            "--path", metavar="GLOB", help="Only about these media.", show_default=False, rich_help_panel=_PANEL
        ),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="K",
            help="Only about the K moments that search finds for the question.",
            show_default="everything",
            rich_help_panel=_PANEL,
        ),
    ] = None
    find: Annotated[
        str | None,
        typer.Option(
            "--find",
            metavar="TEXT",
            help="With --top: what to search for.",
            show_default="the question",
            rich_help_panel=_PANEL,
        ),
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
