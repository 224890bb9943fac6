"""`llava-mini inspect MEDIUM [QUESTION]`: pictures of what the model looks at."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_mini_cli.commands.flags.answer_flags import AnswerFlags
from llava_mini_cli.commands.flags.frame_flags import FrameFlags
from llava_mini_cli.commands.flags.inspect_flags import InspectFlags
from llava_mini_cli.commands.flags.model_flags import ModelFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO, hush_libraries, say, say_warning, terminal_line
from llava_mini_cli.errors import UsageError

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

    options = InspectOptions(model.options(), frames.options(), answer.options(), flags.frames)
    folder = Path(flags.output)
    check_folder(folder)
    check_model_packages(options.model)
    if options.model.model == "demo" and not talk.quiet:
        say(KNOWN_TO_DEMO)
    found = inspect_medium(medium, question, options)
    write_inspected(found, folder)
    for warning in found.warnings:
        say_warning(f"{medium}: {warning}")
    if found.answer is not None:
        print(terminal_line(found.answer) if sys.stdout.isatty() else found.answer)
    if not talk.quiet:
        say(f"llava-mini: written to {folder / PAGE}")
    return 0
