"""Options for the place and the format of rows."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.config import Existing, Format, ThumbnailPlace

_option = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class OutputFlags:
    """The options as given; `formats.outputs` says what goes together."""

    output: Annotated[
        str | None,
        _option(
            "-o",
            "--output",
            metavar="FILE|FOLDER|-",
            help="File for the rows (.jsonl, .parquet or .csv), or folder for Parquet parts; - is standard output.",
        ),
    ] = None
    format: Annotated[
        Format | None,
        _option(
            "-f",
            "--format",
            help="Format of the output, if its suffix does not say it; txt: a text file beside each medium; srt, "
            "vtt, tsv: subtitles beside each video, one for each stretch of --every and the like; hf: a metadata file "
            "for Hugging Face datasets in the folder of images.",
        ),
    ] = None
    overwrite: Annotated[
        bool, _option(help="Output that is there is replaced; otherwise a run goes on where the last one ended.")
    ] = False
    retry_errors: Annotated[bool, _option(help="Failures of an earlier run are tried again."), HARMLESS] = False
    shard: Annotated[
        str | None,
        _option(
            metavar="I/N|auto",
            help="Share of the media to work on: the I-th of N, such as 1/4; auto takes I and N from a Slurm array.",
        ),
    ] = None
    existing: Annotated[Existing, _option(help="Treatment of text files and subtitles that are there already.")] = (
        "skip"
    )
    csv_safe: Annotated[
        bool, _option(help="Cells of CSV that a spreadsheet takes for formulas get an apostrophe in front.")
    ] = False
    thumbnails: Annotated[
        str | None,
        _option(
            metavar="FOLDER|column",
            help="Folder for a small picture of what each row is about, whose path the row holds; column puts the "
            "pictures themselves into the rows, for Parquet.",
        ),
    ] = None

    @property
    def thumbnail_place(self) -> ThumbnailPlace | None:
        """Where small pictures go; None: none are made."""
        return None if self.thumbnails is None else "column" if self.thumbnails == "column" else "folder"
