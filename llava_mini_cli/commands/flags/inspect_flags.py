"""Options for what `inspect` shows, and for where it is written."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS

_option = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class InspectFlags:
    """The folder that is written, and how much of a video is shown."""

    output: Annotated[
        str, _option("-o", "--output", metavar="FOLDER", help="Folder for the page, the pictures and the arrays.")
    ]
    frames: Annotated[
        int, _option(metavar="N", help="Number of frames of a video to show, spread over it."), HARMLESS
    ] = 8
    layers: Annotated[
        bool,
        _option(
            help="Layers of the language model are looked into in place of frames: attention by kind of token, its "
            "entropy, and answers where some do not see the image."
        ),
        HARMLESS,
    ] = False
    prompt_file: Annotated[
        str | None,
        _option(metavar="FILE", help="Questions for --layers, one a line, in place of QUESTION."),
    ] = None
