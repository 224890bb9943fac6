"""The options of training on a data file. Imports nothing heavy: `llava-mini train --help` shows the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_mini_cli.errors import UsageError

Stage = Literal[1, 2]
Average = Literal["token", "answer"]
PAPER_RATES: dict[Stage, float] = {1: 1e-3, 2: 1e-4}  # LLaVA-Mini, Table 9


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained on a data file. Defaults are the paper's (Table 9)."""

    data: Path
    model: str
    output: Path
    stage: Stage = 2
    media_root: Path | None = None  # None: the directory of `data`
    skip_bad: bool = False
    learning_rate: float | None = None  # None: the paper's, by stage
    batch: int = 256  # examples an update
    device_batch: int = 4  # examples in memory at once; the rest is accumulated
    epochs: float = 1.0
    warmup: float = 0.03  # share of the updates
    average: Average = "token"
    lora_rank: int = 0  # 0: the whole language model is trained
    gradient_checkpointing: bool = False
    bf16: bool = False
    workers: int = 0
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in PAPER_RATES:
            raise UsageError(f"--stage must be 1 or 2, not {self.stage}")
        if self.batch < 1 or self.device_batch < 1:
            raise UsageError("--batch and --device-batch must be at least 1")
        if self.batch % min(self.device_batch, self.batch):
            raise UsageError(f"--batch {self.batch} is not a multiple of --device-batch {self.device_batch}")
        if not self.epochs > 0:
            raise UsageError(f"--epochs must be above 0, not {self.epochs:g}")
        if self.lora_rank and self.stage == 1:
            raise UsageError("--lora-rank has no meaning in stage 1, which trains the projector alone")
