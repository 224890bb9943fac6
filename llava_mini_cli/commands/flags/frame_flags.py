"""Options for the frames of a video that are looked at, and for decoding."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import DecoderName, SamplingOptions

_option = partial(typer.Option, rich_help_panel="Frames")
_time = partial(_option, parser=parse_time, metavar="TIME")


@dataclass(frozen=True)
class FrameFlags:
    """The fields of `SamplingOptions`, as options."""

    fps: Annotated[float, _option(help="Number of frames to look at in each second of a video."), HARMLESS] = (
        SamplingOptions.fps
    )
    max_frames: Annotated[
        int | None,
        _option(help="Number of frames to look at in each video at most, spread over the video.", show_default="all"),
        HARMLESS,
    ] = SamplingOptions.max_frames
    start: Annotated[
        float | None,
        _time(help="Time in each video to start at, such as 90, 1:30 or 1m30s.", show_default="0"),
        HARMLESS,
    ] = SamplingOptions.start
    end: Annotated[
        float | None,
        _time(help="Time in each video to stop at, such as 90, 1:30 or 1m30s.", show_default="the end"),
        HARMLESS,
    ] = SamplingOptions.end
    decoder: Annotated[
        DecoderName, _option(help="Decoder of videos; auto takes decord, and ffmpeg where decord fails."), HARMLESS
    ] = SamplingOptions.decoder
    decode_timeout: Annotated[
        float,
        _time(
            help="Time without a new frame after which a decoder is killed.",
            show_default=f"{SamplingOptions.decode_timeout:g}s",
        ),
    ] = SamplingOptions.decode_timeout
    allow_truncated: Annotated[
        bool,
        _option(help="Images whose files are cut short are used as far as they go, with a warning in their rows."),
        HARMLESS,
    ] = SamplingOptions.allow_truncated

    def options(self) -> SamplingOptions:
        """The options, checked. Raises `UsageError`."""
        return SamplingOptions(**vars(self))


@dataclass(frozen=True)
class FitFlags:
    """The option for videos that are too long for the model."""

    fit: Annotated[
        bool,
        _option(
            help="Frames of a video that exceed the model's context are thinned out evenly until they fit, with a "
            "warning in the row; without this option the video is an error row."
        ),
        HARMLESS,
    ] = SamplingOptions.fit
