"""Options for the stretches of a video that get rows of their own."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import SUBTITLES, SpanOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions

_option = partial(typer.Option, rich_help_panel="Spans")
_time = partial(_option, parser=parse_time, metavar="TIME", show_default="off")


@dataclass(frozen=True)
class SpanFlags:
    """The fields of `SpanOptions`, as options."""

    every: Annotated[
        float | None,
        _time(help="Length of the stretches of a video, such as 30s, that are asked about one by one."),
    ] = SpanOptions.every
    window: Annotated[
        float | None,
        _time(help="Length of stretches that may overlap: the next one begins --stride later."),
    ] = SpanOptions.window
    stride: Annotated[
        float | None,
        _time(help="Time from the beginning of a stretch of --window to that of the next."),
    ] = SpanOptions.stride
    scenes_from: Annotated[
        str | None,
        _option(
            metavar="FILE|FOLDER",
            help="List of a video's scenes to ask about one by one, as PySceneDetect's list-scenes writes it; a folder "
            "holds NAME-Scenes.csv for each NAME.mp4.",
            show_default="off",
        ),
    ] = SpanOptions.scenes_from
    scenes: Annotated[
        bool,
        _option(help="Scenes of each video are asked about one by one; cuts are found as it is decoded."),
    ] = SpanOptions.scenes
    scene_threshold: Annotated[
        float,
        _option(
            metavar="SCORE",
            help="Change from a frame to the next at which a scene is found to begin, 0 to 100 as ffmpeg's scdet.",
        ),
    ] = SpanOptions.scene_threshold
    min_scene_len: Annotated[
        float,
        _option(
            parser=parse_time,
            metavar="TIME",
            help="Length of the shortest scene that is found; cuts that would make shorter ones do not count.",
            show_default="2s",
        ),
    ] = SpanOptions.min_scene_len
    whole: Annotated[bool, _option(help="Each medium is asked about as a whole, too.")] = SpanOptions.whole

    def options(self) -> SpanOptions:
        """The options, checked. Raises `UsageError`."""
        return SpanOptions(**vars(self))

    def check_with(self, *, format: str, fit: bool, columns: InputOptions) -> None:
        """Raises `UsageError` where other options do not go with stretches, here or in tables."""
        flag = self.options().flag
        if columns.has_spans:
            column = "--end-column" if columns.start_column is None else "--start-column"
            if flag is not None:
                raise UsageError(f"{flag} and {column} exclude each other: both say which stretches there are")
            flag = column
        if format in SUBTITLES:
            if flag is None or columns.has_spans:
                raise UsageError(
                    f"--format {format} has a line for each stretch: add --every, --window, --scenes or --scenes-from"
                )
            if self.whole:
                raise UsageError(f"--whole has no place in --format {format}, which has stretches alone")
        if flag is None:
            return
        if format == "txt":
            raise UsageError(f"{flag} gives several rows of one medium, which --format txt cannot keep apart")
        if fit:
            raise UsageError(
                f"--fit thins out whole videos, not the stretches of {flag}; a lower --fps fits more of them"
            )
