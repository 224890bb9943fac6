"""A device by its name, seen to work. Imports torch alone, so that one which is not there is told soon."""

import torch

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.errors import UsageError, first_line


def try_device(name: str) -> torch.device:
    """The device of a name on which a number was computed; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: it is not there, or does not work.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"--device {name}: there is no such device; CUDA devices here: {torch.cuda.device_count()}"
            )
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {first_sentence(error)}") from error
    return device


def try_cards(options: ModelOptions, device: torch.device) -> None:
    """Makes sure that there are the cards which options ask for beside their device.

    Raises:
        UsageError: there are fewer, or the device is none.
    """
    first, count = device.index or 0, options.tensor_parallel
    if device.type != "cuda":
        if options.gpu_memory is not None:
            raise UsageError(f"--gpu-memory is about cards, and the model is on {device}")
    elif first + count > (there := torch.cuda.device_count()):
        raise UsageError(f"--tensor-parallel {count}: CUDA devices here: {there}, and {device} is to be the first")


def first_sentence(error: BaseException) -> str:
    """The first sentence of what torch says, which may go on for a page."""
    return first_line(error).partition(". ")[0]
