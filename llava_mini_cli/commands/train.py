"""`llava-mini train`: the demo model from nothing, or a real model on data in LLaVA's own format."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.stderr import hush_libraries, say
from llava_mini_cli.errors import UsageError

StageName = Literal["1", "2"]

Output = Annotated[Path, typer.Option("-o", "--output", help="Directory for checkpoints, curves and the model.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="LLaVA's JSON or JSONL of conversations.", show_default=False)
]
Model = Annotated[str | None, typer.Option("-m", "--model", help="The checkpoint to start from.", show_default=False)]


def train(
    output: Output,
    data: Data = None,
    model: Model = None,
    preset: Annotated[
        Literal["demo"] | None,
        typer.Option("--preset", help="demo: the shipped model, from nothing.", show_default=False),
    ] = None,
    stage: Annotated[StageName, typer.Option("--stage", help="1: projector on captions. 2: all but vision.")] = "2",
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Directory of the media.", show_default="that of --data")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out, with a count.")] = False,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Greatest rate.", show_default="1e-3 in stage 1, 1e-4 in 2")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Examples an update.")] = 256,
    device_batch: Annotated[int, typer.Option("--device-batch", help="Examples in memory at once.")] = 4,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the data.")] = 1.0,
    average: Annotated[
        Literal["token", "answer"], typer.Option("--average", help="What the loss is averaged over.")
    ] = "token",
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Rank of low-rank adapters; 0: none.")] = 0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Matrix products in bfloat16.")] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read media.")] = 0,
    save_every: Annotated[int, typer.Option("--save-every", help="Updates between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of examples.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say less.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
) -> int:
    """Train a model. The same command again goes on where it stopped.

    With --preset demo: renders its own data and trains the shipped model from nothing. Otherwise --data and
    --model are needed; defaults are the paper's.
    """
    if (preset is None) == (data is None):
        raise UsageError("give either --data or --preset demo")
    hush_libraries(verbose=verbose)
    if not verbose:  # torch's own remark about a library that accelerate brings
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    missing = [name for name in ("accelerate", "matplotlib", "peft") if find_spec(name) is None]
    if missing:
        raise UsageError(f"train needs {', '.join(missing)}: pip install 'llava-mini-cli[train]'")
    talk = _quiet if quiet else say
    if preset is not None:
        from llava_mini_cli.train.demo_preset.stages import train_demo_model

        talk(f"the model is in {train_demo_model(output, talk)}")
        return 0
    if data is None or model is None:
        raise UsageError("--model is missing: the checkpoint to start from")
    from llava_mini_cli.train.finetune import TrainOptions, finetune

    options = TrainOptions(
        data=data,
        model=model,
        output=output,
        stage=1 if stage == "1" else 2,
        media_root=media_root,
        skip_bad=skip_bad,
        learning_rate=learning_rate,
        batch=batch,
        device_batch=device_batch,
        epochs=epochs,
        average=average,
        lora_rank=lora_rank,
        gradient_checkpointing=gradient_checkpointing,
        bf16=bf16,
        workers=workers,
        save_every=save_every,
        seed=seed,
    )
    talk(f"the model is in {finetune(options, talk)}")
    return 0


def _quiet(_: str) -> None:
    return
