"""Options for what `search` looks for, and for where it puts what it finds."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.flags.archive_flags import PathGlob
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import MomentFormat
from llava_mini_cli.errors import UsageError

MARGIN = 5.0  # seconds

_option = partial(typer.Option, rich_help_panel="Search")
_time = partial(_option, parser=parse_time, metavar="TIME")
_output = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class SearchFlags:
    """The query, and the conditions that moments must meet."""

    image: Annotated[
        str | None, _option(metavar="FILE", help="Image to search for, in place of TEXT or together with it.")
    ] = None
    most: Annotated[int, _option("-k", "--most", help="Number of moments to find at most."), HARMLESS] = 10
    min_score: Annotated[float | None, _option(help="Score below which moments are left out."), HARMLESS] = None
    path: PathGlob = None
    after: Annotated[float | None, _time(help="Time in each video before which nothing is found."), HARMLESS] = None
    before: Annotated[float | None, _time(help="Time in each video after which nothing is found."), HARMLESS] = None
    approximate: Annotated[
        bool, _option(help="Search by what llava-mini index --ann stored: quicker, but it may miss moments."), HARMLESS
    ] = False
    check: Annotated[
        str | None,
        _option(
            metavar="QUESTION",
            help="Question of yes or no that the model answers about each moment; the likeliest yes comes first.",
        ),
    ] = None
    min_yes: Annotated[
        float | None,
        _option(metavar="P", help="Probability of yes to --check, from 0 to 1, below which moments are left out."),
        HARMLESS,
    ] = None
    check_margin: Annotated[
        float | None,
        _time(
            help="Time before and after each moment that the model sees for --check, too.",
            show_default=f"{MARGIN:g}s",
        ),
        HARMLESS,
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
    """The output of `search`: the place and the form of the moments."""

    output: Annotated[
        str | None,
        _output(
            "-o",
            "--output",
            metavar="FILE|-",
            help="File for the moments (.jsonl, .csv or .parquet); - is standard output.",
        ),
    ] = None
    format: Annotated[
        MomentFormat | None, _output("-f", "--format", help="Format of the output, if its suffix does not say it.")
    ] = None
    csv_safe: Annotated[
        bool, _output(help="Cells of CSV that a spreadsheet takes for formulas get an apostrophe in front.")
    ] = False
    paths_only: Annotated[
        bool, _output(help="Paths of the media are printed, each once, and nothing else."), HARMLESS
    ] = False
    null: Annotated[
        bool,
        _output("-0", "--null/--no-null", help="NUL ends each path that --paths-only prints, for xargs -0."),
        HARMLESS,
    ] = False
    thumbnails: Annotated[str | None, _output(metavar="FOLDER", help="Folder for a picture of each moment.")] = None
    html: Annotated[
        str | None, _output(metavar="FILE", help="File for a web page with a picture and a link for each moment.")
    ] = None
    media_root: Annotated[
        str | None,
        _output(
            metavar="FOLDER",
            help="Folder that the files of the archive's media must lie in, links followed, to be read for pictures "
            "and --check.",
            show_default="anywhere",
        ),
    ] = None
