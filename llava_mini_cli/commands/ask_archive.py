"""`llava-mini ask --index ARCHIVE QUESTION`: questions about an archive in place of files."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.archive_flags import ArchiveFlags
from llava_mini_cli.commands.run import Finding, check_needs, engine_wishes, output_options, run_inputs, run_options
from llava_mini_cli.commands.stderr import hush_libraries
from llava_mini_cli.config import BESIDE
from llava_mini_cli.errors import ArchiveError, UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.formats.archive.reader import Archive
    from llava_mini_cli.formats.inputs.read import Inputs
    from llava_mini_cli.formats.job import Job, Prompt
    from llava_mini_cli.pipelines.archive_media import StoredMedia
    from llava_mini_cli.pipelines.settings import RunOptions


def ask_archive(
    prompts: tuple["Prompt", ...],
    flags: QuestionFlags,
    archive_flags: ArchiveFlags,
    given: Collection[str],
    finding: Finding | None = None,
) -> int:
    """Answers every prompt about every medium of an archive, or about its best moments; returns the exit code.

    Args:
        given: keys of the options that the user set; the others are the archive's.
    """
    if flags.run.dry_run:
        raise UsageError("--dry-run tells about files, not about --index")
    if flags.workers.options() is not None:
        raise UsageError("--workers share files and URLs, not an archive; leave --workers, --ray or --index out")
    _refuse_options_of_files(flags)
    hush_libraries(verbose=flags.talk.verbose)
    from llava_mini_cli.commands.summary import say_damage
    from llava_mini_cli.formats.archive.reader import open_archive
    from llava_mini_cli.media.open import open_clip
    from llava_mini_cli.pipelines.archive_media import StoredMedia
    from llava_mini_cli.pipelines.load_engine import load_engine
    from llava_mini_cli.pipelines.run_parts import RunParts
    from llava_mini_cli.pipelines.search_archive import by_path
    from llava_mini_cli.pipelines.tally import Tally

    options = run_options(flags, finding)
    output = output_options(flags)
    if archive_flags.top is not None and flags.spans.options().wanted:
        raise UsageError("--top asks about the best moments, not about stretches of the same length; leave one of both")
    if archive_flags.top is not None and archive_flags.find is None and not all(prompt.text for prompt in prompts):
        raise UsageError("--top finds moments by the question, and there is none; --find or -p gives one")
    check_needs(options)
    if output.format in BESIDE and archive_flags.top is not None:
        raise UsageError(f"--top gives several moments of one medium, which --format {output.format} cannot keep apart")
    with open_archive(Path(archive_flags.index or "")) as whole:
        archive = by_path(whole, archive_flags.path)
        options = _options(archive, flags, given, finding)
        media = StoredMedia(archive, open_clip, flags.inputs.options().roots)
        if output.thumbnails is not None and media.answers_from_features:
            raise UsageError("--thumbnails: the archive answers from stored features, and no frame is decoded")
        parts = RunParts(media.open_clip, media.find_fault, tally=Tally(damage=whole.damage))
        load = media.loading(partial(load_engine, **engine_wishes(options)))
        code = run_inputs(
            lambda _: _inputs(media, prompts, options, archive_flags),
            prompts,
            load,
            options,
            parts,
            output,
            flags,
            finding,
        )
        say_damage(whole.folder, whole.damage)
        return code


def _refuse_options_of_files(flags: QuestionFlags) -> None:
    given = flags.inputs
    if given.files_from is not None:
        raise UsageError("--files-from and --index exclude each other; --path says which of an archive's media")
    tables = {
        "--column": given.column,
        "--id-column": given.id_column,
        "--prompt-column": given.prompt_column,
        "--start-column": given.start_column,
        "--end-column": given.end_column,
        "--keep-columns": given.keep_columns,
        "--include": given.include,
        "--exclude": given.exclude,
    }
    for name, value in tables.items():
        if value:
            raise UsageError(f"{name} is about files and tables, not about --index; --path says which of its media")


def _options(archive: "Archive", flags: QuestionFlags, given: Collection[str], finding: Finding | None) -> "RunOptions":
    """The run's options, with the archive's own model and sampling where nothing else was asked for."""
    from llava_mini_cli.pipelines.archive_media import SAMPLED, sampling_of
    from llava_mini_cli.pipelines.find import the_model

    options = run_options(flags, finding)
    wanted = options.model.model if "model" in given else None
    name, revision = the_model(archive.header, wanted, options.model.revision)
    model = replace(options.model, model=name, revision=revision)
    named = [one for one in SAMPLED if one.replace("_", "-") in given]
    return replace(options, model=model, sampling=sampling_of(archive, options.sampling, named))


def _inputs(
    media: "StoredMedia", prompts: tuple["Prompt", ...], options: "RunOptions", flags: ArchiveFlags
) -> "Inputs":
    """The questions, and of how many media or moments they are asked."""
    from llava_mini_cli.formats.inputs.read import Inputs
    from llava_mini_cli.pipelines.find import find
    from llava_mini_cli.pipelines.search_archive import SearchOptions

    if not len(media.archive.media) and media.archive.damage:
        first = media.archive.damage[0]
        raise ArchiveError(f"'{media.archive.folder}': nothing can be read: {first.file}: {first.message}")
    if not len(media.archive.media) and not media.failures:
        where = f" whose path matches '{flags.path}'" if flags.path else ""
        raise UsageError(f"'{media.archive.folder}' holds no media{where}")
    if flags.top is None:
        return Inputs(media.jobs(prompts), (), len(media.archive.media) + len(media.failures))
    found: list[Job] = []
    for prompt in prompts:
        text = flags.find or prompt.text
        moments = find(media.archive, text, None, SearchOptions(flags.top), options.model.model)
        found += media.moment_jobs(prompt, moments)
    return Inputs(iter(found), (), len(found))
