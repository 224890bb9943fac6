"""Options for what `index` stores beside vision tokens and CLIP embeddings, and for an archive that is there."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import FeatureKind
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT

_option = partial(typer.Option, rich_help_panel="Archive")
_FEATURES: FeatureKind = "float16"


@dataclass(frozen=True)
class IndexFlags:
    """The options as given; `pipelines.index_options` checks them."""

    output: Annotated[
        str,
        _option("-o", "--output", metavar="ARCHIVE", help="Folder of the archive, new or made before."),
    ]
    features: Annotated[
        bool,
        _option(help="Patch features are stored, too: later questions are answered exactly, without the media files."),
    ] = False
    features_dtype: Annotated[
        FeatureKind | None,
        _option(
            help="Number format of the patch features that --features stores; int8 is half as large as float16, and "
            "less exact.",
            show_default=_FEATURES,
        ),
    ] = None
    dedupe: Annotated[
        float | None,
        _option(
            metavar="DISTANCE",
            help="Distance (1 - cosine of CLIP embeddings) up to which a frame counts as a copy of the last frame that "
            "was kept, and is skipped.",
            show_default="off",
        ),
        HARMLESS,
    ] = None
    caption_every: Annotated[
        float | None,
        _option(
            parser=parse_time,
            metavar="TIME",
            help="Length of the stretches of video, such as 30s, that get a stored caption each.",
            show_default="no captions",
        ),
    ] = None
    caption_prompt: Annotated[str, _option(help="Prompt of the captions that --caption-every stores."), HARMLESS] = (
        CAPTION_PROMPT.text
    )
    retry_errors: Annotated[bool, _option(help="Media that failed in an earlier run are tried again."), HARMLESS] = (
        False
    )
    prune: Annotated[bool, _option(help="Media whose files no longer exist are taken out of the archive.")] = False
    ann: Annotated[
        bool,
        _option(help="Index for llava-mini search --approximate is built anew; needs the extra llava-mini-cli\\[ann]."),
    ] = False
    compact: Annotated[
        bool, _option(help="Small parts of the archive are merged, and what was taken out of it is deleted.")
    ] = False

    def stored_features(self) -> FeatureKind | None:
        """The number format of stored patch features; None: none are stored.

        Raises:
            UsageError: a number format is given, but no features are stored.
        """
        if self.features:
            return self.features_dtype or _FEATURES
        if self.features_dtype is not None:
            raise UsageError(f"--features-dtype {self.features_dtype} says how features are stored; add --features")
        return None
