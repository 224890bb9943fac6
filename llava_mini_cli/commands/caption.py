"""`llava-mini caption MEDIA...`: a description of videos and images."""

from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.inputs import Media
from llava_mini_cli.commands.run import run_questions
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.prompts import parse_prompts

CAPTION_PROMPT = Prompt("Please describe what is shown in detail.", name="caption")


def caption(media: Media, flags: QuestionFlags) -> int:
    """Describe videos and images.

    The built-in prompt is "Please describe what is shown in detail."; -p asks something else instead.
    """
    prompts = parse_prompts(flags.prompts.prompt) if flags.prompts.prompt else (CAPTION_PROMPT,)
    return run_questions(media, prompts, flags)
