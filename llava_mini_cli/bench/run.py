"""A whole benchmark: a model is made or loaded, and each table is counted or measured in turn.

What does not fit into memory, or cannot run here, is a table without rows that says so.
"""

import subprocess
from collections.abc import Callable, Iterator

import torch

from llava_mini_cli.bench.counted_tables import flops_table, layers_table, memory_table
from llava_mini_cli.bench.counting import FlopCounts
from llava_mini_cli.bench.decode_table import decode_table
from llava_mini_cli.bench.phases_table import phases_table
from llava_mini_cli.bench.report import Report, Table
from llava_mini_cli.bench.shapes import PresetName
from llava_mini_cli.bench.speed_tables import held_table, latency_table, rates_table
from llava_mini_cli.bench.subject import Subject, facts, subject_of_checkpoint, subject_of_preset
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.errors import first_line

Tell = Callable[[str], None]


def bench(options: ModelOptions, preset: PresetName | None, tell: Tell) -> Report:
    """Measures a model of a preset's shape with random weights, or the checkpoint of the options.

    Args:
        tell: takes a line about what is being done.

    Raises:
        UsageError: the device or the number format cannot be had.
        ModelError: the checkpoint cannot be had.
    """
    subject = subject_of_checkpoint(options) if preset is None else subject_of_preset(preset, options)
    if subject.why_not is not None:
        tell(f"nothing of the model is measured: {subject.why_not}")
    with torch.inference_mode():
        return Report(facts(subject), list(_tables(subject, tell)))


def _tables(subject: Subject, tell: Tell) -> Iterator[Table]:
    counts = FlopCounts(subject.config)
    tell("counting operations")
    yield flops_table(subject, counts)
    if subject.is_the_papers:
        yield layers_table(counts)
    yield memory_table(subject)
    for name, make in _MEASURED.items():
        if subject.engine is None:
            yield _left_out(name, f"Not measured: {subject.why_not}.")
            continue
        tell(f"measuring {name.replace('_', ' ')}")
        found = unless_out_of_memory(make, subject, subject.engine, subject.rounds)
        yield found or _left_out(name, "Not measured: memory ran out.")
    tell("measuring decoding")
    yield _decoding(2)


_MEASURED: dict[str, Callable[[Subject, Engine, int], Table]] = {
    "phases": phases_table,
    "latency": latency_table,
    "rates": rates_table,
    "memory_held": lambda subject, engine, _: held_table(subject, engine),
}


def _decoding(rounds: int) -> Table:
    try:
        return decode_table(rounds)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # no ffmpeg, or one without an encoder
        return _left_out("decode", f"Not measured: {first_line(error)}.")


def _left_out(name: str, why: str) -> Table:
    """A table without rows, under the name that it has with some."""
    return Table(name, name.replace("_", " ").capitalize(), (), (), [why])
