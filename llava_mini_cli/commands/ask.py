"""`llava-mini ask MEDIA... QUESTION`: one or more questions about videos and images."""

from typing import Annotated

import typer

from llava_mini_cli.commands.ask_archive import ask_archive
from llava_mini_cli.commands.configured import given_options
from llava_mini_cli.commands.flags import QuestionFlags
from llava_mini_cli.commands.flags.archive_flags import ArchiveFlags
from llava_mini_cli.commands.flags.input_flags import MEDIA_HELP
from llava_mini_cli.commands.run import run_questions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.prompts import checked_prompt
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.paths import is_folder, is_there

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MEDIA... QUESTION",
        help=f"{MEDIA_HELP}, then the question; with -p there is no question here.",
    ),
]


def ask(context: typer.Context, flags: QuestionFlags, archive: ArchiveFlags, arguments: Arguments = None) -> int:
    """Ask a question about videos and images.

    Answers are printed as text at a terminal, otherwise as JSON lines.
    The option --output writes them to a file.
    """
    inputs, prompts = flags.inputs, flags.prompts.prompts()
    media = arguments or []
    if not prompts and not inputs.prompt_column and flags.prompts.schema is not None:
        prompts = (Prompt(""),)
        check_media(media)
    elif not prompts and not inputs.prompt_column:
        media, prompts = split_question(media, alone=inputs.files_from is not None or archive.index is not None)
    if archive.index is not None:
        if media:
            raise UsageError(f"'{media[0]}': --index takes no MEDIA; --path says which of the archive's")
        return ask_archive(prompts, flags, archive, given_options(context))
    if not media and inputs.files_from is None:
        raise UsageError("there is no medium: llava-mini ask MEDIA... QUESTION, or --files-from")
    return run_questions(media, prompts, flags)


def check_media(arguments: list[str]) -> None:
    """Raises `UsageError` where the last argument looks like a question, which --schema leaves out."""
    last = arguments[-1] if arguments else ""
    if any(one.isspace() for one in last) and "*" not in last and not is_there(last):
        raise UsageError(f"'{last}' is no medium: with --schema a question is given with -p")


def split_question(arguments: list[str], *, alone: bool, command: str = "ask") -> tuple[list[str], tuple[Prompt, ...]]:
    """Media and the question, which comes last; `alone`: it may stand without media.

    Raises:
        UsageError: no question, or what looks like a forgotten one.
    """
    if not arguments:
        raise UsageError(f"there is no question: llava-mini {command} MEDIA... QUESTION, or -p")
    *media, question = arguments
    prompt = checked_prompt(question)
    if is_folder(question):
        raise UsageError(f"'{question}' is a folder, not a question: the question comes last, or with -p")
    if is_there(question):
        raise UsageError(f"'{question}' is a file, not a question: the question comes last, or with -p")
    if not media and not alone:
        raise UsageError(f"there is no medium: llava-mini {command} MEDIA... QUESTION (got only '{question}')")
    return media, (prompt,)
