"""What `index` stores beside vision tokens and CLIP embeddings, and how it treats what is there."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.errors import UsageError

_PANEL = "Archive"


@dataclass(frozen=True)
class IndexFlags:
    """As given; `pipelines.index_options` checks them."""

    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="ARCHIVE", help="The archive, a folder.", rich_help_panel=_PANEL),
    ]
    features: Annotated[
        bool,
        typer.Option(
            "--features/--no-features",
            show_default=False,
            help="Store patch features too: exact answers later, without the files.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    features_dtype: Annotated[
        Literal["float16", "float32", "int8"] | None,
        typer.Option(
            "--features-dtype",
            help="How patch features are stored; int8 halves them again, less exactly.",
            show_default="float16",
            rich_help_panel=_PANEL,
        ),
    ] = None
    dedupe: Annotated[
        float | None,
        typer.Option(
            "--dedupe",
            metavar="DISTANCE",
            help="Skip frames this near to the last one kept (1 - cosine of CLIP embeddings).",
            show_default="off",
            rich_help_panel=_PANEL,
        ),
    ] = None
    caption_every: Annotated[
        float | None,
        typer.Option(
            "--caption-every",
            parser=parse_time,
            metavar="TIME",
            help="Store a caption of every stretch of this length.",
            show_default="off",
            rich_help_panel=_PANEL,
        ),
    ] = None
    caption_prompt: Annotated[
        str, typer.Option("--caption-prompt", help="What is asked for a caption.", rich_help_panel=_PANEL)
    ] = "Please describe what is shown in detail."
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors/--no-retry-errors",
            show_default=False,
            help="Look again at media that failed.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    prune: Annotated[
        bool,
        typer.Option(
            "--prune/--no-prune", show_default=False, help="Drop media whose files are gone.", rich_help_panel=_PANEL
        ),
    ] = False
    ann: Annotated[
        bool,
        typer.Option(
            "--ann/--no-ann",
            show_default=False,
            help="Make the index of llava-mini search --approximate anew; needs the extra llava-mini-cli\\[ann].",
            rich_help_panel=_PANEL,
        ),
    ] = False
    compact: Annotated[
        bool,
        typer.Option(
            "--compact/--no-compact",
            show_default=False,
            help="Merge small parts and take out what was dropped.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def stored_features(self) -> Literal["float16", "float32", "int8"] | None:
        """How patch features are stored; None: they are not.

        Raises:
            UsageError: a form is given for what is not stored.
        """
        if self.features:
            return self.features_dtype or "float16"
        if self.features_dtype is not None:
            raise UsageError(f"--features-dtype {self.features_dtype} says how features are stored; add --features")
        return None
