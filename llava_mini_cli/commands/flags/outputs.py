"""Where rows go and in which format."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

FormatName = Literal["jsonl", "parquet", "csv"]

_PANEL = "Output"


@dataclass(frozen=True)
class OutputFlags:
    """As given; `formats.outputs` says what goes together."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|FOLDER|-",
            help="FILE.parquet, .jsonl or .csv, or a folder of Parquet parts; - is standard output.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    format: Annotated[
        FormatName | None,
        typer.Option("-f", "--format", help="Instead of the suffix.", show_default=False, rich_help_panel=_PANEL),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start anew instead of going on with what is there.", rich_help_panel=_PANEL),
    ] = False
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try again what failed in an earlier run.", rich_help_panel=_PANEL)
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N|auto",
            help="Do the I-th of N shares of the media; auto: as a Slurm array says.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
