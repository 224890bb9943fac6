"""What `ask` and `caption` have in common: options in, one pipeline call, words and an exit code out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.run import FailOn
from llava_mini_cli.commands.stderr import hush_libraries

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.commands.reporter import Reporter
    from llava_mini_cli.formats.job import Prompt
    from llava_mini_cli.formats.outputs import Output, OutputOptions, RunInfo
    from llava_mini_cli.pipelines.answer import Tally

EXIT_ITEMS_FAILED = 3


def run_questions(media: list[str], prompts: tuple["Prompt", ...], flags: QuestionFlags) -> int:
    """Answers every prompt about every medium; returns the exit code."""
    hush_libraries(verbose=flags.talk.verbose)
    from llava_mini_cli.commands.reporter import Reporter
    from llava_mini_cli.formats.inputs import read_jobs
    from llava_mini_cli.formats.outputs import OutputOptions
    from llava_mini_cli.media.open import is_media_path, open_clip
    from llava_mini_cli.pipelines.answer import Tools, answer_jobs
    from llava_mini_cli.pipelines.interrupt import Interrupts
    from llava_mini_cli.pipelines.load import load_engine
    from llava_mini_cli.pipelines.settings import RunOptions

    output = OutputOptions.parse(**vars(flags.outputs))
    output.check()
    jobs = read_jobs(media, prompts, is_media_path)
    total = None if any(Path(medium).is_dir() for medium in media) else len(media)
    options = RunOptions(flags.model.options(), flags.frames.options(), flags.answer.options())
    with Interrupts() as interrupts, Reporter(total, quiet=flags.talk.quiet, verbose=flags.talk.verbose) as reporter:
        single = total == 1 and len(prompts) == 1
        opener = _output_opener(output, options.run_info(), flags, reporter, single=single, prompts=len(prompts))
        tally = answer_jobs(jobs, options, Tools(load_engine, open_clip, opener, reporter, interrupts))
    if tally.answered + tally.failed > 1 or (output.path is not None and tally.answered):
        reporter.summary(output.path)
    return exit_code(tally, flags.run.fail_on)


def exit_code(tally: "Tally", fail_on: FailOn) -> int:
    """0, or 3 where enough items failed."""
    failed = tally.failed > 0 and (fail_on == "any" or (fail_on == "all" and tally.answered == 0))
    return EXIT_ITEMS_FAILED if failed else 0


def _output_opener(
    output: "OutputOptions", run: "RunInfo", flags: QuestionFlags, reporter: "Reporter", *, single: bool, prompts: int
) -> Callable[[], "Output"]:
    """Rows go to the output; a person at a terminal who asked for no format gets text instead."""
    from llava_mini_cli.formats.outputs import open_output

    if flags.outputs.output is not None or flags.outputs.format is not None or not sys.stdout.isatty():
        return lambda: open_output(output, run)
    from llava_mini_cli.commands.terminal import BlockWriter, PlainWriter

    return lambda: PlainWriter(reporter) if single else BlockWriter(reporter, prompts)
