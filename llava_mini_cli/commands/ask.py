"""`llava-mini ask MEDIA... QUESTION`: one or more questions about videos and images."""

from pathlib import Path
from typing import Annotated

import typer

from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.run import run_questions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.prompts import checked_prompt, parse_prompts

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="MEDIA... QUESTION",
        help="Videos, images or folders of them, then the question; with -p every one is a medium.",
    ),
]


def ask(arguments: Arguments, flags: QuestionFlags) -> int:
    """Ask a question about videos and images.

    One medium and one question at a terminal: the answer as plain text. Otherwise: one JSON line for each answer.
    """
    media, prompts = split_arguments(arguments, flags.prompts.prompt or [])
    return run_questions(media, prompts, flags)


def split_arguments(arguments: list[str], prompts: list[str]) -> tuple[list[str], tuple[Prompt, ...]]:
    """Media and questions. Without -p the last argument is the question.

    Raises:
        UsageError: no question, or what looks like a forgotten one.
    """
    if prompts:
        return arguments, parse_prompts(prompts)
    *media, question = arguments
    prompt = checked_prompt(question)
    if Path(question).is_dir():
        raise UsageError(f"'{question}' is a folder, not a question: the question comes last, or with -p")
    if not media and not Path(question).exists():
        raise UsageError(f"there is no medium: llava-mini ask MEDIA... QUESTION (got only '{question}')")
    if Path(question).exists():
        raise UsageError(f"'{question}' is a file, not a question: the question comes last, or with -p")
    return media, (prompt,)
