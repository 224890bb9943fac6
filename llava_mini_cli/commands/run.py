"""The run that `ask` and `caption` have in common: options in, one pipeline call, words and an exit code out."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.run_flags import FailOn
from llava_mini_cli.commands.stderr import hush_libraries, say
from llava_mini_cli.config import BESIDE, SUBTITLES, EventOptions
from llava_mini_cli.errors import LlavaMiniError, UsageError
from llava_mini_cli.paths import is_folder

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.commands.flags.worker_flags import WorkerFlags
    from llava_mini_cli.commands.reporter import Reporter
    from llava_mini_cli.config import ModelOptions
    from llava_mini_cli.formats.fetch.file_cache import FileCache
    from llava_mini_cli.formats.inputs.choices import ChoicesGiven
    from llava_mini_cli.formats.inputs.read import Inputs
    from llava_mini_cli.formats.job import Prompt
    from llava_mini_cli.formats.outputs.open_output import Output, OutputOptions, RunInfo
    from llava_mini_cli.pipelines.answer_when import WhenExtras
    from llava_mini_cli.pipelines.index_options import IndexOptions
    from llava_mini_cli.pipelines.run_parts import AnswerEngine, Crew, RunParts
    from llava_mini_cli.pipelines.settings import RunOptions
    from llava_mini_cli.pipelines.tally import Tally

EXIT_ITEMS_FAILED = 3
EXIT_STOPPED = 101


@dataclass(frozen=True)
class Finding:
    """A run that finds the stretches in which its questions hold, and gives no answers in words."""

    events: EventOptions
    extras: "Callable[[RunOptions], WhenExtras]"  # what is written beside the rows; called when the run begins


def run_questions(
    media: list[str], prompts: tuple["Prompt", ...], flags: QuestionFlags, finding: Finding | None = None
) -> int:
    """Answers every prompt about every medium; returns the exit code."""
    hush_libraries(verbose=flags.talk.verbose)
    from llava_mini_cli.commands.left_out import left_out
    from llava_mini_cli.formats.fetch.urls import is_remote
    from llava_mini_cli.formats.inputs.read import open_inputs
    from llava_mini_cli.hub import check_model
    from llava_mini_cli.media.open import is_media_path, open_clip
    from llava_mini_cli.pipelines.load_engine import load_engine
    from llava_mini_cli.pipelines.run_parts import RunParts

    options = run_options(flags, finding)
    output = output_options(flags)
    crew = crew_of(flags.workers, options.model, dry_run=flags.run.dry_run)
    if not flags.run.dry_run:
        check_needs(options, media)
    refuse_own_input(media, flags.inputs.files_from, output.path)
    if isinstance(output.thumbnails, Path):
        refuse_among_media(output.thumbnails, media, "--thumbnails")

    with left_out(flags.talk) as passed_over:

        def find(cache: "FileCache") -> "Inputs":
            if output.is_new and not flags.run.dry_run and any(map(is_remote, media)):
                check_model(flags.model.model, flags.model.revision)  # before anything is downloaded
            return open_inputs(media, prompts, is_media_path, cache, flags.inputs.options(), passed_over)

        load = partial(load_engine, **engine_wishes(options))
        return run_inputs(find, prompts, load, options, RunParts(open_clip, crew=crew), output, flags, finding)


def crew_of(flags: "WorkerFlags", model: "ModelOptions", *, dry_run: bool = False) -> "Crew | None":
    """The workers that are asked for; nothing of them is started. None: the work is done here.

    Raises:
        UsageError: an option cannot be used, or Ray is not installed.
    """
    options = flags.options()
    if options is None or dry_run:
        return None
    from llava_mini_cli.needs import RAY
    from llava_mini_cli.workers.crew import Crew
    from llava_mini_cli.workers.ray_hands import RayHands

    if model.device.startswith("cuda:"):
        raise UsageError(f"--device {model.device}: a worker has devices of its own; --device cuda, or none")
    RAY.check("--workers" if options.address is None else "--ray")
    return Crew(
        RayHands(options.spread(model.tensor_parallel, model.device), model.device),
        options.timeout,
        ships=options.ship_media,
    )


def output_options(flags: QuestionFlags) -> "OutputOptions":
    """Checked. Raises `UsageError` or `OutputError`."""
    from llava_mini_cli.formats.outputs.open_output import OutputOptions

    output = OutputOptions.parse(**vars(flags.outputs))
    if output.edl_rate is None and output.format != "edl":
        flags.spans.check_with(format=output.format, fit=flags.fit.fit, columns=flags.inputs.options())
    flags.evidence.check_with(output.format, flags.inputs.options())
    if output.thumbnails is not None and flags.outputs.output is flags.outputs.format is None and sys.stdout.isatty():
        raise UsageError("--thumbnails has no place in text at a terminal; name an output with -o, or -f jsonl")
    output.check()
    return output


def check_needs(options: "RunOptions | IndexOptions", media: Iterable[str] = ()) -> None:
    """Makes sure that the packages are installed which the options and the URLs of media need.

    Raises:
        PackageMissing, UsageError: one is not; the text says how to install it.
    """
    from llava_mini_cli.formats.fetch.urls import is_remote, local_path
    from llava_mini_cli.media.open import check_decoders
    from llava_mini_cli.needs import check_model_packages
    from llava_mini_cli.pipelines.settings import RunOptions

    media = list(media)
    check_model_packages(options.model)
    check_decoders(options.sampling.decoder, media)
    for url in filter(is_remote, map(local_path, media)):
        from llava_mini_cli.formats.fetch.download import check_installed  # and fsspec

        check_installed(url)
    if isinstance(options, RunOptions) and options.schema is not None and options.schema.grammars:
        from llava_mini_cli.pipelines.schema_needs import check_grammars

        check_grammars(options.schema)


def run_inputs(
    find: Callable[["FileCache"], "Inputs"],
    prompts: Sequence["Prompt"],
    load_engine: "Callable[[ModelOptions], AnswerEngine]",
    options: "RunOptions",
    parts: "RunParts",
    output: "OutputOptions",
    flags: QuestionFlags,
    finding: Finding | None = None,
) -> int:
    """Answers what is found, and says so; returns the exit code.

    Args:
        find: the run's inputs, whose tables and shards are fetched to a cache.
        prompts: those that are asked about each medium, besides those of tables.
        parts: how media are opened and who counts; who is told how far it is comes from here.
    """
    from llava_mini_cli.commands.reporter import Reporter
    from llava_mini_cli.formats.fetch.file_cache import FileCache
    from llava_mini_cli.pipelines.answer import answer_into
    from llava_mini_cli.pipelines.interrupt import Interrupts
    from llava_mini_cli.pipelines.model_needs import look_at_needs

    tally, talk = parts.tally, flags.talk
    choices = _choices_given(prompts, options, flags)
    with Interrupts() as interrupts, FileCache(flags.inputs.fetch_options()) as cache:
        with interrupts.allowed():
            if output.is_new and not flags.run.dry_run and parts.crew is None:
                look_at_needs(options.model)
            inputs = find(cache).share(output.shard)
            if options.spans.scenes_from is not None:
                from llava_mini_cli.formats.inputs.scenes import with_scenes

                inputs = with_scenes(inputs, options.spans.scenes_from)
            if choices is not None:
                inputs = replace(inputs, jobs=choices.put(inputs.jobs))
            if flags.run.dry_run:
                return _dry_run(inputs, options, output)
        with (
            reported(tally, options, output, flags),
            Reporter(tally, inputs.total, quiet=talk.quiet, verbose=talk.verbose) as reporter,
        ):
            reporter.count_from(inputs.again)
            single = inputs.total == 1 and len(prompts) == 1 and not options.spans.wanted
            run = options.run_info(inputs.kept)
            opener = output_opener(output, run, flags, reporter, single=single, prompts=len(prompts))
            parts = replace(parts, progress=reporter, interrupts=interrupts, cache=cache)
            if finding is None:
                answer_into(opener, inputs.jobs, load_engine, options, parts)
            else:
                from llava_mini_cli.pipelines.answer_when import when_into

                when_into(opener, inputs.jobs, load_engine, options, parts, finding.extras(options))
    return exit_code(tally, flags.run.fail_on)


def _choices_given(prompts: Sequence["Prompt"], options: "RunOptions", flags: QuestionFlags) -> "ChoicesGiven | None":
    """The choices of --choices. Raises `UsageError` where they, or options about them, are for no question."""
    choices = flags.prompts.choices_given()
    has_choices = any(prompt.choices for prompt in prompts)
    if options.schema is not None and has_choices:
        raise UsageError("--prompt-file has choices, and --schema asks for fields; leave one of both")
    if choices is not None:
        choices.check_names([*(prompt.name for prompt in prompts), *(flags.inputs.prompt_column or [])])
    elif not has_choices and not (options.schema and options.schema.columns.labelled):
        for flag, is_given in (
            ("--choice-score", flags.prompts.choice_score != "sum"),
            ("--choice-prior", flags.prompts.choice_prior),
        ):
            if is_given:
                raise UsageError(f"{flag} is about choices, and no question has any; --choices gives them")
    return choices


def refuse_own_input(media: list[str], listing: str | None, output: Path | None, flag: str = "-o") -> None:
    """Raises `UsageError` where rows would be appended to a table that is being read: the run would never end."""
    from llava_mini_cli.formats.fetch.urls import local_path

    if output is None or not output.is_file():
        return
    named = [local_path(name) for name in (*media, *([listing] if listing else []))]
    for name in named:
        found = [name] if os.path.lexists(name) else glob(name, recursive=True)  # noqa: PTH207 - of any folder
        if any(Path(path).exists() and output.samefile(path) for path in found):
            raise UsageError(f"{flag} '{output}' is among the inputs, too; name another output")


def refuse_among_media(folder: Path, media: list[str], flag: str) -> None:
    """Raises `UsageError` where the next run would take the pictures in a folder for media."""
    for name in filter(is_folder, media):
        if folder.resolve().is_relative_to(Path(name).resolve()):
            raise UsageError(f"{flag} '{folder}' lies in '{name}', whose pictures are asked about; name another folder")


def engine_wishes(options: "RunOptions") -> dict[str, bool]:
    """What `load_engine` is told beside the model's options."""
    finds = options.finds_scenes  # CLIP's embeddings tell them apart
    wishes = {"yes_no": options.generation.yes_no, "collects": finds}
    return {name: True for name, is_wanted in wishes.items() if is_wanted}


def run_options(flags: QuestionFlags, finding: Finding | None = None) -> "RunOptions":
    """Checked. Raises `UsageError`."""
    from llava_mini_cli.pipelines.settings import RunOptions

    return RunOptions(
        flags.model.options(),
        replace(flags.frames.options(), fit=flags.fit.fit),
        flags.prompts.shaped(flags.answer.options()),
        flags.run.limits(),
        flags.prompts.prefix,
        flags.prompts.suffix,
        replace(flags.spans.options(), timed=flags.outputs.format in SUBTITLES),
        finding and finding.events,
        flags.prompts.answer_schema(),
        flags.evidence.options(),
        flags.outputs.thumbnail_place,
    ).with_scores()


def _dry_run(inputs: "Inputs", options: "RunOptions", output: "OutputOptions") -> int:
    from llava_mini_cli.commands.dry_run import show
    from llava_mini_cli.formats.outputs.open_output import done_at
    from llava_mini_cli.media.open import probe
    from llava_mini_cli.pipelines.footprint import footprint_of
    from llava_mini_cli.pipelines.forecast import forecast
    from llava_mini_cli.pipelines.model_outlook import estimates_of
    from llava_mini_cli.pipelines.resume import left_to_do
    from llava_mini_cli.pipelines.run_jobs import limited
    from llava_mini_cli.pipelines.tally import Tally

    done = done_at(output, options.run_info(inputs.kept))
    done.keeps_digests = False  # no row is made, so media are read only where they tell which rows are done
    left = left_to_do(inputs.jobs, options.row_keys(), done, Tally(), options.spans)
    wanted = limited(left, options.limits.media, Tally())
    found = forecast(wanted, options, probe, footprint_of(options.model), estimates_of(options.model))
    found.rows_done = done.rows_left
    show(found, options.model.model)
    return 0


def exit_code(tally: "Tally", fail_on: FailOn) -> int:
    """0, 101 where a limit left work undone, or 3 where enough items failed."""
    if tally.stopped_by is not None:
        return EXIT_STOPPED
    failed = tally.failed + tally.errors_skipped + len(tally.damage)
    good = tally.answered + tally.skipped - tally.errors_skipped
    failed = failed > 0 and (fail_on == "any" or (fail_on == "all" and good == 0))
    return EXIT_ITEMS_FAILED if failed else 0


@contextmanager
def reported(tally: "Tally", options: "RunOptions", to: "OutputOptions", flags: QuestionFlags) -> Generator[None]:
    """Says how a run ended, and writes its summary, whichever way it ends."""
    from llava_mini_cli.commands.summary import SummaryFile, say_counts, say_failures, summary
    from llava_mini_cli.pipelines.interrupt import Interrupted

    output = to.path
    target = SummaryFile.parse(flags.run.summary_json, rows_on_stdout=output is None and to.format not in BESIDE)
    began = datetime.now(UTC)
    code, error = 1, None
    try:
        yield
        code = exit_code(tally, flags.run.fail_on)
    except (LlavaMiniError, Interrupted) as stop:
        code, error = stop.exit_code, str(stop)
        raise
    except BaseException as stop:
        error = f"{type(stop).__name__}: {stop}"
        raise
    finally:
        if not isinstance(sys.exception(), BrokenPipeError):  # whoever read us is gone, and asked for no words
            say_failures(tally)
            if not flags.talk.quiet and _is_worth_a_line(tally, output):
                say_counts(tally, (datetime.now(UTC) - began).total_seconds(), output)
            elif not flags.talk.quiet and error is None and tally.answered + tally.failed + tally.skipped == 0:
                say("llava-mini: there is nothing to do")
        if target is not None:
            target.write(summary(tally, options, output, began, exit_code=code, error=error))


def _is_worth_a_line(tally: "Tally", output: Path | None) -> bool:
    return tally.answered + tally.failed > 1 or (output is not None and tally.answered + tally.skipped > 0)


def output_opener(
    output: "OutputOptions", run: "RunInfo", flags: QuestionFlags, reporter: "Reporter", *, single: bool, prompts: int
) -> Callable[[], "Output"]:
    """Rows go to the output; a person at a terminal who asked for no format gets text instead."""
    from llava_mini_cli.formats.outputs.open_output import open_output

    if flags.outputs.output is not None or flags.outputs.format is not None or not sys.stdout.isatty():
        return lambda: open_output(output, run)
    from llava_mini_cli.commands.terminal import BlockWriter, EventWriter, PlainWriter

    if output.edl_rate is not None:
        return lambda: EventWriter(reporter, prompts, single=single)
    return lambda: PlainWriter(reporter) if single else BlockWriter(reporter, prompts)
