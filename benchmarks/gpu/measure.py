"""What a device shows of llava-mini, part after part within a time; started by measure.sh."""

import argparse
import gc
import os
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import transformers
from correct import crowds, goldens
from figures import Fields, Figures, Part, run_parts
from speed import SIZES, Speed

from llava_mini_cli import __version__
from llava_mini_cli.needs import is_installed


def environment(device: torch.device, size: str) -> Iterator[Fields]:
    """What is measured on."""
    fields: Fields = {
        "llava_mini": __version__,
        "size": size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }
    if device.type == "cuda":
        fields["memory_gib"] = torch.cuda.get_device_properties(device).total_memory / (1 << 30)
    yield fields


def vllm(device: torch.device) -> Iterator[Fields]:
    """Our own language model and vLLM's beside each other, with the demo model, where vLLM can be imported."""
    if not is_installed("vllm"):
        yield {"left_out": "vLLM is not installed"}
        return
    from language_models import TASKS, compared

    yield from compared("demo", str(device), "float32", 3, 16, TASKS)


def parts_of(size: str, device: torch.device) -> dict[str, Part]:
    """The parts by name, the most important first."""
    speed = Speed(size, device)
    parts: dict[str, Part] = {
        "environment": partial(environment, device, size),
        "goldens": partial(goldens, device),
        "crowds": partial(crowds, device, speed.size.crowd),
        "device": speed.device_itself,
        "loading": speed.loading,
        "encoding": speed.encoding,
        "first-token": speed.first_token,
        "steps": speed.steps,
        "captions": speed.captions,
        "questions": speed.questions,
        "kernels": speed.kernels,
        "long-video": speed.long_video,
        "training": partial(training, device),
        "compile": speed.compiled,
        "fp8": partial(speed.quantised, "fp8"),
        "int8": partial(speed.quantised, "int8"),
        "vllm": partial(vllm, device),
    }
    return parts


def training(device: torch.device) -> Iterator[Fields]:
    """Steps a second of the second stage on a tiny model, in bfloat16 where the device has it."""
    from training_speed import stage_two

    yield from stage_two(device)


def clean() -> None:
    """Gives back what a part has left on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("measured.jsonl"))
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further part begins")
    parser.add_argument("--only", nargs="+", default=None, metavar="PART")
    options = parser.parse_args()
    parts = parts_of(options.size, torch.device(options.device))
    wanted = {name: part for name, part in parts.items() if options.only is None or name in options.only}
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # trainers and profilers talk
    figures = Figures(options.output, lines)
    run_parts(wanted, figures, options.minutes, clean)
    figures.close()


if __name__ == "__main__":
    main()
