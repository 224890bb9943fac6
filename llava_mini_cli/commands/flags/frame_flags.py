"""Which frames of a video are looked at, and how they are decoded."""

from dataclasses import dataclass
from typing import Annotated

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import DecoderName, SamplingOptions

_PANEL = "Frames"


@dataclass(frozen=True)
class FrameFlags:
    """The fields of `SamplingOptions`, as options."""

    fps: Annotated[float, typer.Option("--fps", help="Frames sampled a second of video.", rich_help_panel=_PANEL)] = (
        SamplingOptions.fps
    )
    max_frames: Annotated[
        int | None,
        typer.Option(
            "--max-frames", help="At most so many frames a video.", show_default="all", rich_help_panel=_PANEL
        ),
    ] = None
    start: Annotated[
        float | None,
        typer.Option(
            "--start",
            parser=parse_time,
            metavar="TIME",
            help="Begin here: 90, 1:30 or 1m30s.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    end: Annotated[
        float | None,
        typer.Option(
            "--end", parser=parse_time, metavar="TIME", help="End here.", show_default=False, rich_help_panel=_PANEL
        ),
    ] = None
    decoder: Annotated[DecoderName, typer.Option("--decoder", help="What decodes videos.", rich_help_panel=_PANEL)] = (
        SamplingOptions.decoder
    )
    decode_timeout: Annotated[
        float,
        typer.Option(
            "--decode-timeout",
            parser=parse_time,
            metavar="TIME",
            help="A decoder without a new frame for so long is killed.",
            rich_help_panel=_PANEL,
        ),
    ] = SamplingOptions.decode_timeout
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated/--no-allow-truncated",
            show_default=False,
            help="Take what there is of a picture that is cut short; the row has a warning.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def options(self) -> SamplingOptions:
        """Checked. Raises `UsageError`."""
        return SamplingOptions(**vars(self))
