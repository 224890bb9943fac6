"""Options of the command that says when something holds."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.flags.archive_flags import PathGlob
from llava_mini_cli.commands.flags.output_flags import OutputFlags
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import EventFormat, EventOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.timecodes import seconds_of

_events = partial(typer.Option, rich_help_panel="Events")
_time = partial(_events, parser=parse_time, metavar="TIME")
_output = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class EventFlags:
    """The fields of `EventOptions`, as options."""

    on: Annotated[
        float, _events(metavar="P", help="Probability of yes, 0 to 1, at which an event begins."), HARMLESS
    ] = EventOptions.on
    off: Annotated[float, _events(metavar="P", help="Probability of yes below which an event ends."), HARMLESS] = (
        EventOptions.off
    )
    min_length: Annotated[
        float, _time(help="Length below which an event is left out, after --merge.", show_default="0s"), HARMLESS
    ] = EventOptions.min_length
    merge: Annotated[
        float, _time(help="Gap between two events up to which they are one.", show_default="0s"), HARMLESS
    ] = EventOptions.merge
    window: Annotated[
        str,
        _events(
            metavar="frame|TIME",
            help="Length of video that is asked about at once, such as 4s, for what no single frame shows; "
            "frame asks about every frame that is looked at (--fps) alone.",
        ),
    ] = "frame"
    stride: Annotated[
        float | None, _time(help="Time from one window to the next, with --window TIME.", show_default="1s")
    ] = EventOptions.stride

    def options(self, *, timed: bool) -> EventOptions:
        """The options, checked; `timed`: rows need times. Raises `UsageError`."""
        window = None
        if self.window != "frame":
            try:
                window = seconds_of(self.window)
            except ValueError as error:
                raise UsageError(f"--window must be a time or the word frame: {error}") from None
        return EventOptions(self.on, self.off, self.min_length, self.merge, window, self.stride, timed)


@dataclass(frozen=True)
class EventOutputFlags(OutputFlags):
    """The options for rows, with the formats of events."""

    format: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]
        EventFormat | None,
        _output(
            "-f",
            "--format",
            help="Format of the output, if its suffix does not say it; srt, vtt, tsv: subtitles beside each video, one "
            "for each event; edl: a CMX3600 list of each video's events.",
        ),
    ] = None
    edl_rate: Annotated[
        float,
        _output(metavar="FPS", help="Frame rate of the timecodes of --format edl, that of your timeline."),
        HARMLESS,
    ] = 25.0

    def __post_init__(self) -> None:
        if not 1 <= self.edl_rate <= 1000:
            raise UsageError(f"--edl-rate must be 1 to 1000, not {self.edl_rate:g}")


@dataclass(frozen=True)
class TrackFlags:
    """What is kept besides the events."""

    track: Annotated[
        str | None,
        _output(metavar="FILE", help="File (.parquet, .jsonl or .csv) for the probability of every frame or window."),
    ] = None
    plot: Annotated[
        str | None,
        _output(metavar="DIR", help="Folder for a picture of each question's probability along each video, as PNG."),
    ] = None


@dataclass(frozen=True)
class WhenArchiveFlags:
    """An archive that llava-mini index made."""

    index: Annotated[
        str | None,
        typer.Option(
            metavar="ARCHIVE",
            help="Archive of llava-mini index to ask about, in place of MEDIA.",
            rich_help_panel="Archive",
        ),
    ] = None
    path: PathGlob = None

    def __post_init__(self) -> None:
        if self.path is not None and self.index is None:
            raise UsageError("--path goes with --index ARCHIVE")


@dataclass(frozen=True)
class YesNoFlags:
    """Questions as the user typed them."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="[NAME=]TEXT",
            help="Yes/no question about every medium; may be repeated. NAME is told in the rows, and {column} stands "
            "for a column of the input table.",
        ),
        HARMLESS,
    ] = None
    prompt_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File of questions: one per line as for -p, or JSON lines with prompt, name."
        ),
    ] = None
