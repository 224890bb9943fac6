"""`llava-mini doctor`: what a bug report needs, what is missing, and what a model takes on this machine."""

from typing import TYPE_CHECKING

import typer

from llava_mini_cli.commands.configured import given_options
from llava_mini_cli.commands.flags.model_flags import DEFAULT_MODEL, Model
from llava_mini_cli.commands.flags.talk_flags import ConfigFile, Verbose
from llava_mini_cli.commands.stderr import hush_libraries, say_error, terminal_line
from llava_mini_cli.commands.times import in_words
from llava_mini_cli.errors import LlavaMiniError

if TYPE_CHECKING:
    from llava_mini_cli.pipelines.model_outlook import FormatOutlook, Outlook

EXIT_UNFIT = 1
HEADS = ("format", "needs", "fits", "loading", "image", "minute of video", "answer", "next question")
ASSUMED = (
    "image, minute of video (--fps 1, decoded beside): with one question, to the first word of the answer",
    "answer: of 64 tokens; next question: about the same image, its answer beside the first",
)


def doctor(
    context: typer.Context, model: Model = DEFAULT_MODEL, verbose: Verbose = False, config: ConfigFile = None
) -> int:
    """Show the versions, the device, the decoders and whether the model is here.

    With --model it measures in a few seconds what the model takes on this machine: memory in each format of its
    weights, and how long loading, images, video and answers take.
    The exit code is 1 if something is missing that llava-mini ask needs.
    """
    hush_libraries(verbose=verbose)
    from llava_mini_cli.pipelines.health import examine

    facts = examine(model)
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        print(f"{fact.name:<{width}}  {terminal_line(fact.value)}")
    problems = [fact.problem for fact in facts if fact.problem]
    if "model" in given_options(context) and not problems:
        problems += _show_outlook(model)
    for problem in problems:
        say_error(problem)
    return EXIT_UNFIT if problems else 0


def _show_outlook(model: str) -> list[str]:
    """Prints what a model takes here; returns what is wrong."""
    from llava_mini_cli.pipelines.model_outlook import measured_outlook

    try:
        found = measured_outlook(model)
    except LlavaMiniError as error:
        return [str(error)]
    for line in outlook_lines(found):
        print(line)
    return [] if found.auto is not None else [f"model {model}: no format of its weights fits the memory"]


def outlook_lines(found: "Outlook") -> list[str]:
    """The table, and what its figures stand for."""
    rows = [HEADS, *(_cells(one) for one in found.formats)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    memory = "nobody tells how much memory there is"
    if found.there is not None:
        memory = f"{terminal_line(found.there.source)} leaves {found.there.bytes / 2**30:.1f} GiB"
    taken = "no format fits" if found.auto is None else f"{found.auto} is taken where none is asked for"
    measured = any(one.estimate is not None for one in found.formats)
    assumed = ASSUMED if measured else (f"how long anything takes is measured on a CPU alone, not on {found.device}",)
    return ["", *table, "", f"{memory}; {taken}", *assumed]


def _cells(one: "FormatOutlook") -> tuple[str, ...]:
    needed = one.kind, f"{one.bytes / 2**30:.1f} GiB", "yes" if one.fits else "no"
    if one.estimate is None:
        return *needed, *["-"] * 5
    told = one.estimate
    times = told.load, told.image, told.minute, told.answer(), told.further_question()
    return *needed, *map(in_words, times)
