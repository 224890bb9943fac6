"""Options of `bench`: the model that is measured, and where the report goes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_mini_cli.bench.shapes import PresetName
from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.config import DTypeName, ModelOptions
from llava_mini_cli.errors import UsageError

ReportFormat = Literal["json", "md", "html"]
_FORMATS: dict[str, ReportFormat] = {".json": "json", ".md": "md", ".html": "html"}

_option = partial(typer.Option, rich_help_panel="Benchmark")

MeasuredModel = Annotated[
    str | None,
    _option(
        "-m",
        "--model",
        metavar="PATH|HUB_ID",
        envvar="LLAVA_MINI_MODEL",
        help="Model to measure with its own weights, where no --preset is given.",
    ),
]


@dataclass(frozen=True)
class BenchFlags:
    """What is measured, and where the report goes."""

    preset: Annotated[
        PresetName | None,
        _option(
            help="Shape of a model with random weights: the paper's (vicuna-7b), the published one (llama-3.1-8b), the "
            "paper's at 672 px (hd), the published one made small enough for two cores (proportions), or the demo "
            "model's."
        ),
    ] = None
    model: MeasuredModel = None
    device: Annotated[
        str,
        _option(metavar="NAME", help="Device to measure: cpu, cuda, cuda:N, or auto, the GPU if there is one."),
        HARMLESS,
    ] = ModelOptions.device
    dtype: Annotated[
        DTypeName,
        _option(help="Number format of the computation; auto is the quickest that fits the memory."),
        HARMLESS,
    ] = ModelOptions.dtype
    output: Annotated[
        str | None,
        _option(
            "-o",
            "--output",
            metavar="FILE|-",
            help="File for the report: .json, .md or .html, the last two with plots, for which the extra "
            "llava-mini-cli\\[plot] is needed; - prints JSON.",
        ),
    ] = None

    def options(self) -> ModelOptions:
        """The options of the model. Raises `UsageError`."""
        if self.preset is None and self.model is None:
            raise UsageError("there is no model to measure: give --preset, such as --preset proportions, or --model")
        return ModelOptions(self.preset or self.model or "", device=self.device, dtype=self.dtype)

    def target(self) -> tuple[Path, ReportFormat] | None:
        """The file of the report and its format; None: it is printed. Raises `UsageError`."""
        if self.output is None or self.output == "-":
            return None
        path = Path(self.output)
        if (format := _FORMATS.get(path.suffix.lower())) is None:
            raise UsageError(f"--output '{self.output}': a report is .json, .md or .html")
        return path, format
