"""What `search` looks for and where it puts what it finds."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.errors import UsageError

_PANEL, _OUTPUT = "Search", "Output"


@dataclass(frozen=True)
class SearchFlags:
    """The query and what its moments must be."""

    image: Annotated[
        str | None,
        typer.Option("--image", metavar="FILE", help="Like this picture.", show_default=False, rich_help_panel=_PANEL),
    ] = None
    most: Annotated[int, typer.Option("-k", "--most", help="At most so many moments.", rich_help_panel=_PANEL)] = 10
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", help="Nothing below this score.", show_default=False, rich_help_panel=_PANEL),
    ] = None
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="GLOB", help="Only in these media.", show_default=False, rich_help_panel=_PANEL),
    ] = None
    after: Annotated[
        float | None,
        typer.Option(
            "--after",
            parser=parse_time,
            metavar="TIME",
            help="Not before this time of a video.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    before: Annotated[
        float | None,
        typer.Option(
            "--before",
            parser=parse_time,
            metavar="TIME",
            help="Not after this time of a video.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate/--no-approximate",
            show_default=False,
            help="Through the index of llava-mini index --ann; may miss.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="QUESTION",
            help="Ask the model about each moment found, yes or no; the likeliest yes comes first.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    min_yes: Annotated[
        float | None,
        typer.Option(
            "--min-yes",
            metavar="P",
            help="With --check: nothing whose yes is less likely than this.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None

    check_margin: Annotated[
        float | None,
        typer.Option(
            "--check-margin",
            parser=parse_time,
            metavar="TIME",
            help="With --check: how much before and after each moment the model sees, too.",
            show_default="5s",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.check_margin is not None and self.check is None:
            raise UsageError("--check-margin says how much the model sees for --check; add --check QUESTION")
        if self.min_yes is not None and self.check is None:
            raise UsageError("--min-yes says how likely the yes to --check has to be; add --check QUESTION")
        if self.min_yes is not None and not 0 <= self.min_yes <= 1:
            raise UsageError(f"--min-yes is a probability, from 0 to 1, not {self.min_yes:g}")
        if self.check is not None and not self.check.strip():
            raise UsageError("--check: the question is empty")


@dataclass(frozen=True)
class FoundFlags:
    """Where moments go."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|-",
            help="FILE.jsonl, FILE.csv or FILE.parquet; - is standard output.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    format: Annotated[
        Literal["jsonl", "csv", "parquet"] | None,
        typer.Option("-f", "--format", help="Instead of the suffix.", show_default=False, rich_help_panel=_OUTPUT),
    ] = None
    paths_only: Annotated[
        bool,
        typer.Option(
            "--paths-only/--no-paths-only",
            show_default=False,
            help="Print each medium's path once.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    null: Annotated[
        bool,
        typer.Option(
            "-0",
            "--null/--no-null",
            show_default=False,
            help="End paths with NUL, for xargs -0.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    thumbnails: Annotated[
        str | None,
        typer.Option(
            "--thumbnails",
            metavar="FOLDER",
            help="Put a picture of each moment there.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with pictures and links.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
