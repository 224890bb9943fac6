"""Where rows go and in which format."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

FormatName = Literal["jsonl", "parquet"]

_PANEL = "Output"


@dataclass(frozen=True)
class OutputFlags:
    """As given; `formats.outputs` says what goes together."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|-",
            help="FILE.jsonl or FILE.parquet; - is standard output.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    format: Annotated[
        FormatName | None,
        typer.Option("-f", "--format", help="Instead of the suffix.", show_default=False, rich_help_panel=_PANEL),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output file that exists.", rich_help_panel=_PANEL)
    ] = False
