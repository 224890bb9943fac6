"""The training log as files: `loss.csv` while training runs, `loss.png` when it ends or stops.

Knows nothing of models; reads the numbers that transformers' Trainer logs.
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

matplotlib.use("Agg")

import matplotlib.pyplot as plt


def rows_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log entries that hold a training loss."""
    return [entry for entry in history if "loss" in entry]


def write_csv(history: list[dict[str, Any]], path: Path) -> None:
    """One line for each log entry; the columns are those of all entries together."""
    rows = rows_of(history)
    columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_png(history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Loss over steps, on a logarithmic axis."""
    rows = rows_of(history)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


class CurveWriter(TrainerCallback):
    """Writes `loss.csv` at every log and `loss.png` at every checkpoint and at the end."""

    def __init__(self, directory: Path, title: str) -> None:
        self.directory = directory
        self.title = title

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_csv(state.log_history, self.directory / "loss.csv")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if rows_of(state.log_history):
            write_png(state.log_history, self.directory / "loss.png", self.title)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_save(args, state, control)
