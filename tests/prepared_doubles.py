"""Packed layers of a few bytes, and a load that asks for them as a model's does."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava_mini_cli.engine.int8_kernels import Int8Kernel
from llava_mini_cli.engine.mapped_weights import is_packed, unpack
from llava_mini_cli.engine.packed_linear import Int8Linear
from llava_mini_cli.engine.prepared import PreparedSupply
from llava_mini_cli.engine.prepared_file import PackedLayer
from llava_mini_cli.engine.prepared_wanted import Wanted

NAMES = tuple(f"layers.{number}.linear" for number in range(6))
OUTPUTS, INPUTS = 96, 160


def made_layer(number: int, kernel: Int8Kernel = "onednn") -> Int8Linear:
    numbers = torch.Generator().manual_seed(number)
    return Int8Linear.from_weight(torch.randn(OUTPUTS, INPUTS, generator=numbers), None, kernel)


def wanted(**changes: Any) -> Wanted:
    """What the load asks for; whatever it takes, it is worth keeping unless `worth` says otherwise."""
    settings: dict[str, Any] = {
        "about": {"digest": "0123"},
        "model": "tiny",
        "total": len(NAMES) * OUTPUTS * INPUTS,
        "bound": 1 << 30,
        "say": lambda line: None,
        "worth": 0.0,
    }
    return Wanted(**(settings | changes))


def load(supply: PreparedSupply, after: Callable[[int], object] = lambda count: None) -> tuple[list[PackedLayer], int]:
    """All layers, and how many of them were made. `after` is called with the number of those that are there."""
    layers: list[PackedLayer] = []
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


def are_right(layers: list[PackedLayer]) -> bool:
    """True if every layer holds and computes what making it gives, bit for bit."""
    return all(are_same(layer, made_layer(number)) for number, layer in enumerate(layers))


def are_same(one: PackedLayer, other: PackedLayer) -> bool:
    rows = torch.randn(5, one.in_features, generator=torch.Generator().manual_seed(7))
    parts, others = one.parts(), other.parts()
    return (
        torch.equal(one(rows), other(rows))
        and parts.keys() == others.keys()
        and all(torch.equal(_plain(parts[name]), _plain(others[name])) for name in parts)
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return unpack(tensor) if is_packed(tensor) else tensor


def main(place: str, when: str) -> None:
    """A process of its own that loads, goes on from the second layer when it is told to, and says what it made."""

    def after(count: int) -> None:
        print("layer", count, flush=True)
        if count == 2 and when == "until told":
            sys.stdin.readline()

    with PreparedSupply(wanted(say=lambda line: print(line, flush=True)), Path(place)) as supply:
        layers, count = load(supply, after)
    print("made", count, are_right(layers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
