"""Options for training: the model, the data and the updates."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.flags.model_flags import StartModel
from llava_mini_cli.errors import UsageError
from llava_mini_cli.train.train_options import PAPER_RATES, Average, Stage, TrainOptions

_option = partial(typer.Option, rich_help_panel="Training")
_data = partial(typer.Option, rich_help_panel="Data")
_memory = partial(typer.Option, rich_help_panel="Memory and speed")


@dataclass(frozen=True)
class TrainFlags:
    """The fields of `TrainOptions`, as options, and the recipe of the demo model, which needs none of them."""

    output: Annotated[
        Path,
        _option(
            "-o", "--output", metavar="FOLDER", help="Folder for the checkpoints, the curves of the loss and the model."
        ),
    ]
    preset: Annotated[
        Literal["demo"] | None,
        _option(help="Recipe for the demo model that is shipped, from nothing, in place of --model and --data."),
    ] = None
    model: StartModel = None
    data: Annotated[
        Path | None, _data(metavar="FILE", help="File of conversations in LLaVA's format, JSON or JSON lines.")
    ] = None
    media_root: Annotated[
        Path | None,
        _data(
            metavar="FOLDER",
            help="Folder that the paths of images and videos in --data start from.",
            show_default="that of --data",
        ),
    ] = TrainOptions.media_root
    skip_bad: Annotated[
        bool, _data(help="Records of --data that cannot be used are left out, and counted."), HARMLESS
    ] = TrainOptions.skip_bad
    workers: Annotated[int, _memory(help="Number of processes that read images and videos beside the training.")] = (
        TrainOptions.workers
    )
    stage: Annotated[
        Stage,
        _option(help="Stage of the paper: 1 trains the projector on captions, 2 trains all but the vision tower."),
        HARMLESS,
    ] = TrainOptions.stage
    learning_rate: Annotated[
        float | None,
        _option(
            help="Learning rate at its highest, after the warm-up.",
            show_default=", ".join(f"{rate:g} in stage {stage}" for stage, rate in PAPER_RATES.items()),
        ),
        HARMLESS,
    ] = TrainOptions.learning_rate
    batch: Annotated[int, _option(help="Number of examples in each update of the weights."), HARMLESS] = (
        TrainOptions.batch
    )
    device_batch: Annotated[
        int, _memory(help="Number of examples in memory at one time; --batch is a multiple of it.")
    ] = TrainOptions.device_batch
    epochs: Annotated[float, _option(help="Number of passes over the data."), HARMLESS] = TrainOptions.epochs
    average: Annotated[
        Average,
        _option(help="Unit that the loss is averaged over: all tokens count alike, or all answers do."),
        HARMLESS,
    ] = TrainOptions.average
    lora_rank: Annotated[
        int, _option(help="Rank of low-rank adapters on the language model; 0 trains its own weights.")
    ] = TrainOptions.lora_rank
    gradient_checkpointing: Annotated[
        bool, _memory(help="Activations are computed twice in place of being stored: less memory, more time."), HARMLESS
    ] = TrainOptions.gradient_checkpointing
    bf16: Annotated[bool, _memory(help="Matrix products are computed in bfloat16."), HARMLESS] = TrainOptions.bf16
    save_every: Annotated[int, _option(help="Number of updates between two checkpoints.")] = TrainOptions.save_every
    seed: Annotated[int, _option(help="Seed of the order of the examples."), HARMLESS] = TrainOptions.seed

    def __post_init__(self) -> None:
        if (self.preset is None) == (self.data is None):
            raise UsageError("give either --data or --preset demo")
        if self.preset is None and self.model is None:
            raise UsageError("--model is missing: the checkpoint to start from")

    def options(self) -> TrainOptions:
        """The options of training on a data file, checked. Raises `UsageError`."""
        return TrainOptions(**{name: value for name, value in vars(self).items() if name != "preset"})
