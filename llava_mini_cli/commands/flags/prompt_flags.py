"""Options for the questions, and for the text around the answers."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.config import ChoiceScore, GenerationOptions, SchemaWay
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import AnswerSchema
from llava_mini_cli.formats.inputs.choices import ChoicesGiven
from llava_mini_cli.formats.inputs.prompts import parse_prompts, read_prompt_file, unique_prompts
from llava_mini_cli.formats.job import Prompt

_option = partial(typer.Option, rich_help_panel="Answer")


@dataclass(frozen=True)
class PromptFlags:
    """Questions as the user typed them."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="[NAME=]TEXT",
            help="Question about every medium; may be repeated. NAME is told in the rows, and {column} stands for a "
            "column of the input table.",
        ),
        HARMLESS,
    ] = None
    prompt_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File of questions: one per line as for -p, or JSON lines with prompt, name, choices."
        ),
    ] = None
    choices: Annotated[
        list[str] | None,
        _option(
            metavar="[NAME=]A,B,...",
            help="Answers to choose from: the likeliest one is the answer, and each gets a probability. For every "
            "question, or for the one called NAME; may be repeated. A JSON list where a choice holds a comma.",
        ),
        HARMLESS,
    ] = None
    choice_score: Annotated[
        ChoiceScore,
        _option(
            help="Score of each of the --choices: sum is the likelihood of the whole answer, mean that of its average "
            "token, so that long answers do not lose for their length."
        ),
        HARMLESS,
    ] = GenerationOptions.choice_score
    choice_prior: Annotated[
        bool,
        _option(help="Score that each of the --choices has without picture or video is subtracted from its score."),
        HARMLESS,
    ] = False
    schema: Annotated[
        str | None,
        _option(
            metavar="FILE|TEXT",
            help="Fields to fill in, in the column json: a file with a JSON Schema, or 'shape circle|square, count "
            "int 0..20, dark bool, note str(80), plate str?, tags str[]'. A question is optional then, with -p.",
        ),
    ] = None
    schema_by: Annotated[
        SchemaWay | None,
        _option(
            help="Way to ask for a schema: each field by itself, with probabilities of labels, or all as one JSON "
            "text. By fields where no field holds others, if nothing is said.",
            show_default=False,
        ),
        HARMLESS,
    ] = None
    prefix: Annotated[
        str, _option(metavar="TEXT", help="Text to write before each answer.", show_default=False), HARMLESS
    ] = ""
    suffix: Annotated[
        str, _option(metavar="TEXT", help="Text to write after each answer.", show_default=False), HARMLESS
    ] = ""
    yes_no: Annotated[
        bool, _option(help="Probability of yes against no is told for each answer, in the column p_yes."), HARMLESS
    ] = False

    def shaped(self, options: GenerationOptions) -> GenerationOptions:
        """The options with what is asked for here."""
        asked = {"yes_no": self.yes_no, "choice_score": self.choice_score, "choice_prior": self.choice_prior}
        return replace(options, **asked)  # pyright: ignore[reportArgumentType]

    def answer_schema(self) -> AnswerSchema | None:
        """What --schema asks for; None where it is not given. Raises `UsageError`."""
        if self.schema is None:
            if self.schema_by is not None:
                raise UsageError("--schema-by goes with --schema")
            return None
        for flag, is_given in (("--choices", self.choices), ("--yes-no", self.yes_no)):
            if is_given:
                raise UsageError(f"{flag} is about answers as texts, and --schema asks for fields; leave one of both")
        from llava_mini_cli.formats.schema.read_schema import read_schema

        return read_schema(self.schema, self.schema_by)

    def choices_given(self) -> ChoicesGiven | None:
        """The choices of --choices; None where it is not given. Raises `UsageError`."""
        return ChoicesGiven.parse(self.choices) if self.choices else None

    def prompts(self) -> tuple[Prompt, ...]:
        """The questions of -p, then those of the file. Raises `UsageError`."""
        from_file = read_prompt_file(self.prompt_file) if self.prompt_file is not None else ()
        return unique_prompts((*parse_prompts(self.prompt or []), *from_file))
