"""Options for the generation of answers."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.config import GenerationOptions

_option = partial(typer.Option, rich_help_panel="Answer")


@dataclass(frozen=True)
class AnswerFlags:
    """The fields of `GenerationOptions`, as options."""

    max_new_tokens: Annotated[int, _option(help="Length limit of each answer or caption, in tokens."), HARMLESS] = (
        GenerationOptions.max_new_tokens
    )
    temperature: Annotated[
        float,
        _option(help="Randomness of the answers: 0 always takes the likeliest token, 1 draws as the model says."),
        HARMLESS,
    ] = GenerationOptions.temperature
    top_p: Annotated[
        float,
        _option(
            help="Share of the probability, 0 to 1, that the tokens to draw from have together; only used when "
            "--temperature is above 0."
        ),
        HARMLESS,
    ] = GenerationOptions.top_p
    seed: Annotated[
        int, _option(help="Seed of the random draws; only used when --temperature is above 0."), HARMLESS
    ] = GenerationOptions.seed
    repetition_penalty: Annotated[
        float,
        _option(help="Penalty on tokens that the answer already holds: 1 is no penalty, 1.1 is a strong one."),
        HARMLESS,
    ] = GenerationOptions.repetition_penalty

    def options(self) -> GenerationOptions:
        """The options, checked. Raises `UsageError`."""
        return GenerationOptions(**vars(self))
