"""Options for the parts of a medium that carried an answer."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.config import BESIDE, PIECES, EvidenceOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.timecodes import seconds_of

_option = partial(typer.Option, rich_help_panel="Evidence")


@dataclass(frozen=True)
class EvidenceFlags:
    """The fields of `EvidenceOptions`, as options."""

    evidence: Annotated[
        int | None,
        _option(
            metavar="K",
            help="Number of spans of a video, or of blocks of a picture, that each row lists because they carried the "
            "answer: it is scored again with each span, or each of 9 blocks, left out.",
            show_default="none",
        ),
    ] = None
    evidence_spans: Annotated[
        str,
        _option(
            metavar="N|TIME|scenes",
            help="Spans of a video that --evidence leaves out: a number of them such as 16, a length such as 10s, or "
            "scenes, which are found as the video is decoded.",
        ),
    ] = str(PIECES)

    def options(self) -> EvidenceOptions:
        """The options, checked. Raises `UsageError`."""
        spans = self.evidence_spans
        if spans == "scenes":
            return EvidenceOptions(self.evidence, scenes=True)
        if re.fullmatch("[0-9]{1,9}", spans):
            return EvidenceOptions(self.evidence, int(spans))
        try:
            return EvidenceOptions(self.evidence, every=seconds_of(spans))
        except ValueError:
            words = f"'{spans}' is no number of spans such as 16, no length such as 10s or 1:30, and not scenes"
            raise UsageError(f"--evidence-spans: {words}") from None

    def check_with(self, format: str, columns: InputOptions) -> None:
        """Raises `UsageError` where the output has no place for evidence, or not all of a video is decoded."""
        options = self.options()
        if options.most is not None and format in BESIDE:
            raise UsageError(f"--evidence has no place in --format {format}, which holds answers alone")
        if options.scenes and columns.has_spans:
            column = "--end-column" if columns.start_column is None else "--start-column"
            raise UsageError(f"--evidence-spans scenes looks at all of a video, and {column} at stretches alone")
