"""`llava-mini index MEDIA... -o ARCHIVE`: an archive of videos and images that can be searched and asked again."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.frame_flags import FrameFlags
from llava_mini_cli.commands.flags.index_flags import IndexFlags
from llava_mini_cli.commands.flags.input_flags import InputFlags, Media
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.run_flags import LimitFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.worker_flags import WorkerFlags
from llava_mini_cli.commands.run import check_needs, crew_of, exit_code
from llava_mini_cli.commands.stderr import hush_libraries, say, say_error
from llava_mini_cli.errors import UsageError
from llava_mini_cli.paths import is_there

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.config import ModelOptions
    from llava_mini_cli.formats.fetch.file_cache import FileCache
    from llava_mini_cli.pipelines.index_options import IndexOptions
    from llava_mini_cli.pipelines.run_parts import Crew
    from llava_mini_cli.pipelines.tally import Tally


def index(
    media: Media = None,
    *,
    flags: IndexFlags,
    inputs: InputFlags,
    frames: FrameFlags,
    answer: AnswerFlags,
    model: ModelFlags,
    limits: LimitFlags,
    workers: WorkerFlags,
    talk: TalkFlags,
) -> int:
    """Make an archive of videos and images, or bring one up to date.

    Media that are in the archive stay as they are; new files are added,
    changed ones replaced. In an archive llava-mini search finds moments,
    and llava-mini ask --index asks questions.
    """
    has_media = bool(media) or inputs.files_from is not None
    if not has_media and not (flags.prune or flags.compact or flags.ann):
        raise UsageError("there is no medium: llava-mini index MEDIA... -o ARCHIVE, or --files-from")
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.formats.fetch.file_cache import FileCache
    from llava_mini_cli.needs import ANN
    from llava_mini_cli.pipelines.index_options import IndexOptions
    from llava_mini_cli.pipelines.tally import Tally

    options = IndexOptions(
        model.options(),
        frames.options(),
        flags.stored_features(),
        flags.dedupe,
        flags.caption_every,
        flags.caption_prompt,
        answer.options(),
        flags.retry_errors,
        flags.prune,
        limits.limits(),
    )
    cache = FileCache(inputs.fetch_options())
    crew = crew_of(workers, options.model)
    if flags.ann:
        ANN.load("--ann", "faiss")  # not after hours of indexing
    if has_media:
        check_needs(options, media or ())
        _look_at_model(options.model, is_new=crew is None and not is_there(flags.output))
    archive, tally, began = Path(flags.output), Tally(), time.monotonic()
    try:
        if has_media or flags.prune:
            _index(media or [], archive, options, inputs, cache, talk, tally, crew)
        if flags.compact:
            _compact(archive, talk)
        if flags.ann:
            _approximate(archive, talk)
    finally:
        _say_end(tally, archive, talk, time.monotonic() - began)
    return exit_code(tally, limits.fail_on) or (3 if tally.damage else 0)


def _look_at_model(model: "ModelOptions", *, is_new: bool) -> None:
    """Makes sure that a model can be had and, for a new archive, that its options work; downloads nothing."""
    from llava_mini_cli.hub import check_model
    from llava_mini_cli.pipelines.interrupt import Interrupts
    from llava_mini_cli.pipelines.model_needs import look_at_needs

    with Interrupts() as interrupts, interrupts.allowed():
        if is_new:
            look_at_needs(model)
        check_model(model.model, model.revision)


def _index(
    media: list[str],
    archive: Path,
    options: "IndexOptions",
    inputs: InputFlags,
    cache: "FileCache",
    talk: TalkFlags,
    tally: "Tally",
    crew: "Crew | None",
) -> None:
    from llava_mini_cli.commands.left_out import left_out
    from llava_mini_cli.commands.reporter import Reporter
    from llava_mini_cli.formats.inputs.read import open_inputs
    from llava_mini_cli.formats.job import Prompt
    from llava_mini_cli.media.open import is_media_path, open_clip
    from llava_mini_cli.pipelines.build_archive import index_jobs
    from llava_mini_cli.pipelines.interrupt import Interrupts
    from llava_mini_cli.pipelines.load_engine import load_engine
    from llava_mini_cli.pipelines.run_parts import RunParts

    with Interrupts() as interrupts, cache, left_out(talk) as passed_over:
        with interrupts.allowed():  # tables give a job for each question, so there is one, of no meaning
            found = open_inputs(media, (Prompt("index"),), is_media_path, cache, inputs.options(), passed_over)
        with Reporter(tally, found.total, quiet=talk.quiet, verbose=talk.verbose) as reporter:
            parts = RunParts(open_clip, progress=reporter, interrupts=interrupts, cache=cache, tally=tally, crew=crew)
            load = partial(load_engine, collects=True, compares=options.dedupe is not None)
            index_jobs(found.jobs, archive, load, options, parts)


def _compact(archive: Path, talk: TalkFlags) -> None:
    from llava_mini_cli.formats.archive.compact import compact

    done = compact(archive)
    for damage in done.lost:
        what = "is taken out" if damage.part else "is made anew of the parts that are there"
        say_error(f"{archive}: {damage.file} was damaged and {what}: {damage.message}; index its media again")
    if not talk.quiet:
        if done.is_converted:
            _say_converted(archive)
        say(f"llava-mini: {done.before} parts merged into {done.after}")


def _say_converted(archive: Path) -> None:
    from llava_mini_cli.formats.archive.manifest import MANIFEST

    say(f"llava-mini: {archive} was made by an older version, which cannot read it from now on: it has a {MANIFEST}")


def _approximate(archive: Path, talk: TalkFlags) -> None:
    from llava_mini_cli.formats.archive.near import build
    from llava_mini_cli.formats.archive.reader import open_archive

    with open_archive(archive) as opened:
        facts = build(opened)
    if not talk.quiet:
        say(f"llava-mini: approximate index of {facts.rows} frames, recall of the nearest 10 {facts.recall:.3f}")


def _say_end(tally: "Tally", archive: Path, talk: TalkFlags, seconds: float) -> None:
    """Says what was done and what failed, also where the run ended early."""
    from llava_mini_cli.commands.summary import (
        failed_before,
        known_by_content,
        say_damage,
        say_failures,
        stopped,
        tried_again,
    )

    say_failures(tally)
    say_damage(archive, tally.damage)
    if talk.quiet:
        return
    if tally.converted:
        _say_converted(archive)
    there = f"there already{known_by_content(tally)}{failed_before(tally)}"
    counts = (tally.skipped, there), (tally.dropped, "dropped"), (tally.failed, f"failed{tried_again(tally)}")
    words = [f"{tally.answered} media indexed", *(f"{count} {what}" for count, what in counts if count)]
    say(f"llava-mini: {', '.join(words)}, {tally.frames} frames, {seconds:.1f} s{stopped(tally)}, in {archive}")
