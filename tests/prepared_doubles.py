"""Layers that can be kept, of a few bytes, and a load that asks for them as a model's does."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_mini_cli.engine.mapped_weights import is_packed, pack, unpack
from llava_mini_cli.engine.prepared import PreparedSupply, Supply, Wanted

NAMES = tuple(f"layers.{number}.linear" for number in range(6))
OUTPUTS, INPUTS = 96, 160


class KeptLayer(nn.Module):
    """A packed weight, its scales and a bias in bfloat16."""

    def __init__(self, parts: Mapping[str, torch.Tensor], number: int) -> None:
        super().__init__()
        self.tensors = dict(parts)
        self.number = number

    def parts(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def facts(self) -> dict[str, Any]:
        return {"number": self.number}

    def use(self, parts: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(parts)


def made_layer(number: int) -> KeptLayer:
    numbers = torch.Generator().manual_seed(number)
    weight = torch.randint(-127, 128, (OUTPUTS, INPUTS), dtype=torch.int8, generator=numbers)
    bias = torch.rand(OUTPUTS, generator=numbers).bfloat16()
    return KeptLayer({"weight": pack(weight), "scales": torch.rand(OUTPUTS, generator=numbers), "bias": bias}, number)


def restored(facts: dict[str, Any], parts: dict[str, torch.Tensor]) -> KeptLayer:
    return KeptLayer(parts, facts["number"])


def wanted(**changes: Any) -> Wanted:
    """What the load asks for; whatever it takes, it is worth keeping unless `worth` says otherwise."""
    settings: dict[str, Any] = {
        "about": {"digest": "0123"},
        "model": "tiny",
        "sizes": dict.fromkeys(NAMES, OUTPUTS * INPUTS),
        "restore": restored,
        "bound": 1 << 30,
        "say": lambda line: None,
        "worth": 0.0,
    }
    return Wanted(**(settings | changes))


def load(supply: Supply, after: Callable[[int], object] = lambda count: None) -> tuple[list[Any], int]:
    """All layers, and how many of them were made. `after` is called with the number of those that are there."""
    layers: list[Any] = []
    count = 0
    for number, name in enumerate(NAMES):
        layer = supply.take(name)
        if layer is None:
            layer = made_layer(number)
            count += 1
            supply.made(name, layer)
        layers.append(layer)
        after(len(layers))
    return layers, count


def are_right(layers: list[KeptLayer]) -> bool:
    """True if every layer holds what making it gives, bit for bit."""
    return all(
        layer.number == number and _same(layer.parts(), made_layer(number).parts())
        for number, layer in enumerate(layers)
    )


def _same(parts: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return set(parts) == set(others) and all(
        is_packed(parts[name]) == is_packed(tensor) and torch.equal(_plain(parts[name]), _plain(tensor))
        for name, tensor in others.items()
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return unpack(tensor) if is_packed(tensor) else tensor


def main(place: str, pause: str) -> None:
    """A process of its own that loads, with a pause after each layer, and says how many layers it made."""

    def after(count: int) -> None:
        print("layer", count, flush=True)
        time.sleep(float(pause))

    with PreparedSupply(wanted(say=lambda line: print(line, flush=True)), Path(place)) as supply:
        layers, count = load(supply, after)
    print("made", count, are_right(layers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
