"""Where rows go and in which format."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

FormatName = Literal["jsonl", "parquet", "csv", "txt", "hf"]
ExistingName = Literal["skip", "overwrite", "append", "prepend"]

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
        typer.Option(
            "-f",
            "--format",
            help="Instead of the suffix; txt: a file beside each medium, hf: metadata in the folder of images.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Start anew instead of going on with what is there.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = False
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors/--no-retry-errors",
            help="Try again what failed in an earlier run.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
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
    existing: Annotated[
        ExistingName,
        typer.Option("--existing", help="With -f txt: what becomes of captions there.", rich_help_panel=_PANEL),
    ] = "skip"
