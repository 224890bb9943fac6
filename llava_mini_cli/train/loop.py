"""One stage of training on transformers' Trainer: resumes, logs curves, trains with AdamW, or Muon where a rate is set.

Knows nothing of the model or the data; every module that returns a `loss` can be trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from llava_mini_cli.train.curves import CurveWriter
from llava_mini_cli.train.optimizer import build_optimizer
from llava_mini_cli.train.stage_resume import last_checkpoint


@dataclass(frozen=True)
class StageSettings:
    """The settings of one stage of training."""

    name: str
    steps: int
    batch: int  # examples a step
    learning_rate: float  # of AdamW's parameters
    muon_rate: float | None = None  # of matrices; None: AdamW for all (`learning_rate`)
    muon_decay: float = 0.0  # weight decay of Muon's matrices, times the rate
    warmup: float = 0.03  # share of the steps
    decay: float | None = None  # share of the steps, at the end, in which the rate falls; None: cosine from the start
    clip: float = 1.0  # greatest norm of the gradient
    bf16: bool = False  # matrix products in bfloat16
    log_every: int = 10
    save_every: int = 200
    keep: int = 2  # checkpoints kept
    seed: int = 0
    workers: int = 0  # processes that make examples
    accumulate: int = 1  # batches an update
    gradient_checkpointing: bool = False  # less memory, more time
    shuffle: bool = False  # False: examples come in their own order, which is random already


class StageTrainer(Trainer):
    """A Trainer that reports a module's own measures beside the loss, and may use Muon."""

    def __init__(self, settings: StageSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.sums: dict[str, float] = {}
        self.seen = 0

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        if self.settings.muon_rate is None:
            return super().create_optimizer()
        assert isinstance(self.model, nn.Module)
        rates = self.settings.muon_rate, self.settings.learning_rate, self.settings.muon_decay
        self.optimizer = build_optimizer(self.model, *rates)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.settings.bf16):
            output = model(**inputs)
        for name, value in output.items():
            if name != "loss" and value.ndim == 0:
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.seen += 1
        return (output["loss"], output) if return_outputs else output["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.seen:
            logs |= {name: round(total / self.seen, 4) for name, total in self.sums.items()}
            self.sums, self.seen = {}, 0
        super().log(logs, *args, **kwargs)


def _schedule(settings: StageSettings) -> dict[str, Any]:
    """Trainer's arguments for the learning rate over time."""
    warmup = max(1, int(settings.warmup * settings.steps))
    if settings.decay is None:
        return {"lr_scheduler_type": "cosine", "warmup_steps": warmup}
    decay = int(settings.decay * settings.steps)
    shape = {"num_decay_steps": decay, "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": shape, "warmup_steps": warmup}


def train_stage(
    module: nn.Module, data: Dataset[Any], collator: Any, directory: Path, settings: StageSettings
) -> StageTrainer:
    """Trains (or goes on training) a module; checkpoints and curves go to `directory`."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        **_schedule(settings),
        max_grad_norm=settings.clip,
        logging_steps=settings.log_every,
        save_steps=settings.save_every,
        save_total_limit=settings.keep,
        train_sampling_strategy="random" if settings.shuffle else "sequential",
        gradient_accumulation_steps=settings.accumulate,
        activation_checkpointing=settings.gradient_checkpointing,
        remove_unused_columns=False,
        report_to=[],
        seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = StageTrainer(
        settings,
        model=module,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        callbacks=[CurveWriter(directory, settings.name)],
    )
    last = last_checkpoint(directory)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer
