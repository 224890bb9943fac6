"""`llava-mini index MEDIA... -o ARCHIVE`: an archive of videos and images that can be searched and asked again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.flags.answer import AnswerFlags
from llava_mini_cli.commands.flags.frames import FrameFlags
from llava_mini_cli.commands.flags.index import IndexFlags
from llava_mini_cli.commands.flags.model import ModelFlags
from llava_mini_cli.commands.flags.run import FailOn, RunFlags
from llava_mini_cli.commands.flags.talk import TalkFlags
from llava_mini_cli.commands.run import EXIT_ITEMS_FAILED
from llava_mini_cli.commands.stderr import hush_libraries, say, say_error
from llava_mini_cli.errors import UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.pipelines.index import IndexTally

Media = Annotated[
    list[str] | None, typer.Argument(metavar="MEDIA...", help="Videos, images, or folders of them.", show_default=False)
]


def index(
    media: Media = None,
    *,
    flags: IndexFlags,
    run: RunFlags,
    talk: TalkFlags,
    model: ModelFlags,
    frames: FrameFlags,
    answer: AnswerFlags,
) -> int:
    """Make an archive of videos and images, or bring one up to date.

    What is there already is left as it is; new files are added, changed ones replaced. llava-mini search finds moments
    in it, llava-mini ask --index asks about it.
    """
    if not media and not (flags.prune or flags.compact):
        raise UsageError("there is no medium: llava-mini index MEDIA... -o ARCHIVE")
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.commands.archive_reporter import ArchiveReporter
    from llava_mini_cli.formats.archive.compact import compact
    from llava_mini_cli.formats.inputs import read_jobs
    from llava_mini_cli.media.open import is_media_path, open_clip
    from llava_mini_cli.pipelines.index import IndexTools, index_jobs
    from llava_mini_cli.pipelines.index_options import IndexOptions
    from llava_mini_cli.pipelines.interrupt import Interrupts
    from llava_mini_cli.pipelines.load import load_collecting_engine

    archive = Path(flags.output)
    options = IndexOptions(
        model.options(),
        frames.options(),
        flags.features,
        flags.dedupe,
        flags.caption_every,
        flags.caption_prompt,
        answer.options(),
        flags.retry_errors,
        flags.prune,
    )
    jobs = read_jobs(media or [], (), is_media_path)
    total = None if any(Path(medium).is_dir() for medium in media or []) else len(media or [])
    with Interrupts() as interrupts, ArchiveReporter(total, quiet=talk.quiet, verbose=talk.verbose) as reporter:
        tools = IndexTools(load_collecting_engine, open_clip, reporter, interrupts)
        tally = index_jobs(jobs, archive, options, tools)
        if flags.compact:
            compact(archive)
    for damage in tally.damage:
        say_error(f"{archive}: {damage.file} is damaged and left out: {damage.message}")
    if not talk.quiet:
        say(f"llava-mini: {_words(tally)}, {reporter.frames_read} frames, {reporter.seconds:.1f} s, in {archive}")
    return _exit_code(tally, run.fail_on)


def _words(tally: "IndexTally") -> str:
    parts = [f"{tally.indexed} media indexed"]
    for count, what in ((tally.held, "there already"), (tally.dropped, "dropped"), (tally.failed, "failed")):
        if count:
            parts.append(f"{count} {what}")
    return ", ".join(parts)


def _exit_code(tally: "IndexTally", fail_on: FailOn) -> int:
    """0, or 3 where enough media failed or a part is damaged."""
    failed = tally.failed > 0 and (fail_on == "any" or (fail_on == "all" and not tally.indexed + tally.held))
    return EXIT_ITEMS_FAILED if failed or tally.damage else 0
