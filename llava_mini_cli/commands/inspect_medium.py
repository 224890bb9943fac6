"""`llava-mini inspect MEDIUM [QUESTION]`: pictures of what the model looks at."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.frame_flags import FrameFlags
from llava_mini_cli.commands.flags.inspect_flags import InspectFlags
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO, hush_libraries, say, say_warning, terminal_line
from llava_mini_cli.errors import UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.pipelines.inspect_medium import InspectOptions

Medium = Annotated[str, typer.Argument(metavar="MEDIUM", help="Image or video file to look at.")]
Asked = Annotated[
    str | None, typer.Argument(metavar="QUESTION", help="Question whose words and whose answer are looked into.")
]


def inspect(
    medium: Medium,
    question: Asked = None,
    *,
    flags: InspectFlags,
    frames: FrameFlags,
    answer: AnswerFlags,
    model: ModelFlags,
    talk: TalkFlags,
) -> int:
    """Show what the model looks at in an image or a video.

    Writes a web page, pictures and arrays: the compressor's attention, that of the question's words, and
    the parts that carried the answer.
    """
    if question is not None and not question.strip():
        raise UsageError("the question is empty")
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.formats.disk import check_folder
    from llava_mini_cli.formats.inspected import PAGE, write_inspected
    from llava_mini_cli.needs import check_model_packages
    from llava_mini_cli.pipelines.inspect_medium import InspectOptions, inspect_medium

    questions = _questions(question, flags)
    options = InspectOptions(model.options(), frames.options(), answer.options(), flags.frames)
    folder = Path(flags.output)
    check_folder(folder)
    check_model_packages(options.model)
    if options.model.model == "demo" and not talk.quiet:
        say(KNOWN_TO_DEMO)
    if flags.layers:
        _inspect_layers(medium, questions, options, folder)
    else:
        found = inspect_medium(medium, question, options)
        write_inspected(found, folder)
        for warning in found.warnings:
            say_warning(f"{medium}: {warning}")
        if found.answer is not None:
            print(terminal_line(found.answer) if sys.stdout.isatty() else found.answer)
    if not talk.quiet:
        say(f"llava-mini: written to {folder / PAGE}")
    return 0


def _questions(question: str | None, flags: InspectFlags) -> tuple[str, ...]:
    """The questions of --layers. Raises `UsageError` where there are none, or they are given twice."""
    if not flags.layers:
        if flags.prompt_file is not None:
            raise UsageError("--prompt-file goes with --layers; without it there is one QUESTION")
        return ()
    if (question is None) == (flags.prompt_file is None):
        raise UsageError("--layers needs a QUESTION or --prompt-file, not both")
    from llava_mini_cli.formats.inputs.prompts import read_prompt_file

    if flags.prompt_file is not None:
        return tuple(prompt.text for prompt in read_prompt_file(flags.prompt_file))
    return (question or "",)


def _inspect_layers(medium: str, questions: tuple[str, ...], options: "InspectOptions", folder: Path) -> None:
    from llava_mini_cli.formats.layer_report import write_layer_report
    from llava_mini_cli.needs import PLOT
    from llava_mini_cli.pipelines.inspect_layers import inspect_layers

    PLOT.check("--layers")
    write_layer_report(inspect_layers(medium, questions, options), folder)
