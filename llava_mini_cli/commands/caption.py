"""`llava-mini caption MEDIA...`: a description of videos and images."""

from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.input_flags import Media
from llava_mini_cli.commands.run import run_questions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT, STYLES, CaptionStyle, unique_prompts
from llava_mini_cli.formats.job import Prompt

Style = Annotated[CaptionStyle | None, typer.Option(help="Built-in prompt to ask in place of the usual one."), HARMLESS]


def caption(media: Media = None, style: Style = None, *, flags: QuestionFlags) -> int:
    """Describe videos and images.

    The prompt is "Please describe what is shown in detail." Other prompts
    may be given with --style, --prompt, --prompt-file or --prompt-column.
    Answers are printed as text at a terminal, otherwise as JSON lines.
    The option --output writes them to a file.
    """
    if not media and flags.inputs.files_from is None:
        raise UsageError("there is no medium: llava-mini caption MEDIA..., or --files-from")
    prompts = unique_prompts([*([STYLES[style]] if style else []), *flags.prompts.prompts()])
    if not prompts and not flags.inputs.prompt_column:
        prompts = (CAPTION_PROMPT if flags.prompts.schema is None else Prompt(""),)
    return run_questions(media or [], prompts, flags)
