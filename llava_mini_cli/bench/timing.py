"""Times taken in turn, and the rate of plain matrix products that they are held against."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llava_mini_cli.media.clip import FrameChunk

COLD = 4  # weights of a shape that are multiplied in turn, so that they come from memory as in a phase
COLD_BYTES = 1 << 28  # of all of them at most, unless a single one has more
CHUNK = 32  # frames that a source gives at once

Shape = tuple[int, int, int]  # rows, in, out


class RepeatedFrames:
    """So many frames that are there already, one picture again and again: a long video that needs no memory."""

    def __init__(self, count: int, size: int, seed: int = 0) -> None:
        """`size`: pixels of each side; `seed`: of the picture."""
        self._count = count
        self._pixels: NDArray[np.uint8] = np.random.default_rng(seed).integers(
            0, 256, (1, size, size, 3), dtype=np.uint8
        )

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, self._count, CHUNK):
            size = min(CHUNK, self._count - start)
            times = np.arange(start, start + size, dtype=np.float64)
            yield FrameChunk(np.repeat(self._pixels, size, axis=0), times)

    def ready(self) -> bool:
        """They never have to be waited for."""
        return True

    def close(self) -> None:
        """Nothing is open."""


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of some work, the device idle before and after it."""
    _synchronise(device)
    began = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    rounds: int,
    device: torch.device,
    works: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 1,
    warm: bool = False,
) -> dict[str, float]:
    """Seconds of each work, medians of some rounds in which they take turns.

    Args:
        repeats: times that a work is done in each of its turns, of which the least counts.
        warm: everything was done before; otherwise each work has one go first that does not count.
    """
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + (not warm)):
        for name, work in works.items():
            counts = warm or number > 0
            least = min(seconds(work, device) for _ in range(repeats if counts else 1))
            if counts:
                taken[name].append(least)
    return {name: statistics.median(values) for name, values in taken.items()}


class LayerProducts:
    """The products of a phase's linear layers, multiplied by themselves as plain matrices of the same shapes."""

    def __init__(self, model: nn.Module, phase: Callable[[], object]) -> None:
        """Runs the phase once to see which products there are."""
        self.calls: dict[tuple[Shape, torch.dtype], int] = defaultdict(int)
        layers = [
            layer for layer in model.modules() if hasattr(layer, "in_features") and hasattr(layer, "out_features")
        ]
        hooks = [layer.register_forward_pre_hook(self._note) for layer in layers]
        phase()
        for hook in hooks:
            hook.remove()

    def _note(self, layer: Any, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0].numel() // layer.in_features
        self.calls[(rows, layer.in_features, layer.out_features), given[0].dtype] += 1

    @property
    def flops(self) -> int:
        """Of all of them."""
        return sum(2 * rows * into * out * count for ((rows, into, out), _), count in self.calls.items())

    def works(self, device: torch.device) -> dict[str, Callable[[], object]]:
        """For each shape a work that multiplies it some times, by name; `whole` adds their times up."""
        return {str(key): _multiply(*key, device) for key in self.calls}

    def whole(self, taken: Mapping[str, float]) -> float:
        """Seconds of all products, from those of `works`."""
        return sum(count * taken[str(key)] / _copies(*key) for key, count in self.calls.items())


def _copies(shape: Shape, dtype: torch.dtype) -> int:
    _, into, out = shape
    return max(1, min(COLD, COLD_BYTES // (into * out * dtype.itemsize)))


def _multiply(shape: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    rows, into, out = shape
    inputs = torch.randn(rows, into, device=device).to(dtype)
    weights = [torch.full((out, into), 0.01, dtype=dtype, device=device) for _ in range(_copies(shape, dtype))]

    def multiply() -> None:
        for weight in weights:
            torch.matmul(inputs, weight.T)

    return multiply
