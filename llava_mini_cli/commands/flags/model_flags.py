"""Which model answers, and where it runs."""

from dataclasses import dataclass
from typing import Annotated

import typer

from llava_mini_cli.config import DTypeName, ModelOptions, PromptLayout, Quantization

DEFAULT_MODEL = "ICTNLP/llava-mini-llama-3.1-8b"

_PANEL = "Model"

Model = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="PATH|HUB_ID", envvar="LLAVA_MINI_MODEL", help="The model.", rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True)
class ModelFlags:
    """The fields of `ModelOptions`, as options."""

    model: Model = DEFAULT_MODEL
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", help="Branch, tag or commit of a hub id.", show_default=False, rich_help_panel=_PANEL
        ),
    ] = None
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_PANEL)
    ] = ModelOptions.device
    dtype: Annotated[
        DTypeName, typer.Option("--dtype", help="auto: bfloat16 on CUDA, float32 on the CPU.", rich_help_panel=_PANEL)
    ] = ModelOptions.dtype
    prompt_layout: Annotated[
        PromptLayout,
        typer.Option("--prompt-layout", help="reference: as the published script builds it.", rich_help_panel=_PANEL),
    ] = ModelOptions.prompt_layout
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Frames encoded at once.", show_default="chosen", rich_help_panel=_PANEL),
    ] = None
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            "--quantize",
            help="Weights of the language layers; needs the extra llava-mini-cli\\[quantize].",
            show_default="no",
            rich_help_panel=_PANEL,
        ),
    ] = None
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the layers first; pays on long runs.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = ModelOptions.compile

    def options(self) -> ModelOptions:
        """Checked. Raises `UsageError`."""
        return ModelOptions(**vars(self))
