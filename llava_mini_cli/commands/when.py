"""`llava-mini when MEDIA... QUESTION`: the stretches of videos in which a yes/no question holds."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.ask import split_question
from llava_mini_cli.commands.ask_archive import ask_archive
from llava_mini_cli.commands.configured import given_options
from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.archive_flags import ArchiveFlags
from llava_mini_cli.commands.flags.evidence_flags import EvidenceFlags
from llava_mini_cli.commands.flags.frame_flags import FitFlags, FrameFlags
from llava_mini_cli.commands.flags.input_flags import MEDIA_HELP, InputFlags
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.prompt_flags import PromptFlags
from llava_mini_cli.commands.flags.run_flags import RunFlags
from llava_mini_cli.commands.flags.span_flags import SpanFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.when_flags import (
    EventFlags,
    EventOutputFlags,
    TrackFlags,
    WhenArchiveFlags,
    YesNoFlags,
)
from llava_mini_cli.commands.flags.worker_flags import WorkerFlags
from llava_mini_cli.commands.run import Finding, refuse_among_media, refuse_own_input, run_questions
from llava_mini_cli.config import BESIDE
from llava_mini_cli.errors import UsageError
from llava_mini_cli.needs import PLOT
from llava_mini_cli.paths import is_file

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.formats.outputs.open_output import OutputOptions
    from llava_mini_cli.pipelines.answer_when import WhenExtras
    from llava_mini_cli.pipelines.settings import RunOptions

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MEDIA... QUESTION",
        help=f"{MEDIA_HELP}, then the question; with -p there is no question here.",
    ),
]


@dataclass(frozen=True)
class WhenFlags:
    """The options of `when`, in the order of --help."""

    inputs: InputFlags
    frames: FrameFlags
    events: EventFlags
    prompts: YesNoFlags
    model: ModelFlags
    outputs: EventOutputFlags
    extras: TrackFlags
    run: RunFlags
    workers: WorkerFlags
    talk: TalkFlags
    archive: WhenArchiveFlags

    def questions(self) -> QuestionFlags:
        """The same as the flags of a run that asks: for one token, and how likely yes is."""
        prompts = PromptFlags(self.prompts.prompt, self.prompts.prompt_file, yes_no=True)
        return QuestionFlags(
            self.inputs,
            self.frames,
            FitFlags(),
            SpanFlags(),
            prompts,
            AnswerFlags(max_new_tokens=1),
            EvidenceFlags(),
            self.model,
            self.outputs,
            self.run,
            self.workers,
            self.talk,
        )


def when(context: typer.Context, flags: WhenFlags, arguments: Arguments = None) -> int:
    """Say when a yes/no question holds in videos.

    Each stretch of a video in which it holds is a row with its start, its
    end and how likely it is. A video in which it never holds has one row.
    """
    asked = flags.questions()
    prompts, media = asked.prompts.prompts(), arguments or []
    _check(flags)
    archive = flags.archive
    if not prompts and not flags.inputs.prompt_column:
        alone = flags.inputs.files_from is not None or archive.index is not None
        media, prompts = split_question(media, alone=alone, command="when")
    if any(prompt.choices for prompt in prompts):
        raise UsageError("when asks for yes or no; a question has no choices here")
    finding = _finding(flags, media)
    if archive.index is not None:
        if media:
            raise UsageError(f"'{media[0]}': --index takes no MEDIA; --path says which of the archive's")
        return ask_archive(prompts, asked, ArchiveFlags(archive.index, archive.path), given_options(context), finding)
    if not media and flags.inputs.files_from is None:
        raise UsageError("there is no medium: llava-mini when MEDIA... QUESTION, or --files-from")
    return run_questions(media, prompts, asked, finding)


def _check(flags: WhenFlags) -> None:
    """Raises `UsageError` where options do not go together."""
    for name, column in (("--start-column", flags.inputs.start_column), ("--end-column", flags.inputs.end_column)):
        if column is not None:
            raise UsageError(f"{name} names stretches to ask about, and when finds them")
    if flags.extras.plot is not None:
        PLOT.check("--plot")
        if not flags.extras.plot or is_file(Path(flags.extras.plot)):
            raise UsageError(f"--plot '{flags.extras.plot}' is no folder")
        if (
            flags.outputs.output is not None
            and Path(flags.outputs.output).absolute() == Path(flags.extras.plot).absolute()
        ):
            raise UsageError(f"--plot '{flags.extras.plot}' is the output, too; name another folder")


def _finding(flags: WhenFlags, media: list[str]) -> Finding:
    """What is made of the answers. Raises `UsageError` or `OutputError`."""
    options = flags.events.options(timed=flags.outputs.format in BESIDE)
    if flags.extras.plot is not None:
        refuse_among_media(Path(flags.extras.plot), media, "--plot")
    if flags.extras.track:
        refuse_own_input(media, flags.inputs.files_from, Path(flags.extras.track), "--track")
    track = None if flags.extras.track is None else _track_options(flags)
    return Finding(options, partial(_extras, track, flags.extras.plot))


def _track_options(flags: WhenFlags) -> "OutputOptions":
    """Where the probabilities go, checked. Raises `UsageError` or `OutputError`."""
    from llava_mini_cli.formats.outputs.open_output import OutputOptions

    outputs, file = flags.outputs, flags.extras.track or ""
    if file in ("", "-") or file.endswith("/"):
        raise UsageError(f"--track '{file}' is no file; name one, such as track.parquet")
    try:
        track = OutputOptions.parse(file, None, overwrite=outputs.overwrite, retry_errors=outputs.retry_errors)
    except UsageError as error:
        raise UsageError(f"--track: {str(error).removeprefix('-o ')}") from None
    if track.folder or track.is_stream or track.format == "hf":
        raise UsageError(f"--track '{file}' is no file; name one, such as track.parquet")
    if outputs.output is not None and Path(outputs.output).absolute() == Path(file).absolute():
        raise UsageError(f"--track '{file}' is the output, too; name another file")
    if outputs.shard is not None:
        raise UsageError("--track: shards cannot share one file; leave --track out, or name no --shard")
    if outputs.output is None and outputs.format not in BESIDE and not outputs.overwrite:
        track = replace(track, overwrite=True)  # rows on standard output are all new, and so is what belongs to them
    track.check()
    return track


def _extras(track: "OutputOptions | None", plot: str | None, options: "RunOptions") -> "WhenExtras":
    """What is written beside the rows of a run."""
    from llava_mini_cli.formats.outputs.event_plots import EventPlots
    from llava_mini_cli.formats.outputs.open_output import open_output
    from llava_mini_cli.formats.row import TRACK_COLUMNS
    from llava_mini_cli.pipelines.answer_when import WhenExtras

    plots = None if plot is None else partial(EventPlots, Path(plot))
    if track is None:
        return WhenExtras(None, plots)
    return WhenExtras(partial(open_output, track, replace(options.run_info(), kept=TRACK_COLUMNS, asked=())), plots)
