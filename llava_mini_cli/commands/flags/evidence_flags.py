"""Options for the parts of a medium that carried an answer."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import BESIDE, EvidenceOptions
from llava_mini_cli.errors import UsageError

_option = partial(typer.Option, rich_help_panel="Evidence")


@dataclass(frozen=True)
class EvidenceFlags:
    """The fields of `EvidenceOptions`, as options."""

    evidence: Annotated[
        int | None,
        _option(
            metavar="K",
            help="Number of spans of a video, or of blocks of a picture, that each row lists because they carried the "
            "answer: it is scored again with each of 16 spans, or 9 blocks, left out.",
            show_default="none",
        ),
    ] = None
    evidence_every: Annotated[
        float | None,
        _option(
            parser=parse_time,
            metavar="TIME",
            help="Length of the spans that --evidence leaves out, such as 10s.",
            show_default="a 16th of the video",
        ),
    ] = None

    def options(self) -> EvidenceOptions:
        """The options, checked. Raises `UsageError`."""
        return EvidenceOptions(self.evidence, self.evidence_every)

    def check_with(self, format: str) -> None:
        """Raises `UsageError` where the output has no place for evidence."""
        if self.options().most is not None and format in BESIDE:
            raise UsageError(f"--evidence has no place in --format {format}, which holds answers alone")
