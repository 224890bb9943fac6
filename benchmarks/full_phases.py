"""The phases of a model's work one by one, beside single products of the same shapes: a process of its own, JSON out.

    python benchmarks/full_phases.py CHECKPOINT FORMAT [--rounds 2] [--rates]

The share of a phase is the time of its products, each measured by itself right behind it, in the time of the phase:
what is missing to 1 is attention, everything between the products, and what they disturb each other. The layers
themselves are multiplied, four of each shape in turn, so that weights come from memory as they do in the phase.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.encode import encode
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.int8_kernels import int8_available
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.generate import DecodeBatch, decode, prefill
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.pack import TextPack, pack_prompts
from llava_mini_cli.engine.packed_linear import Int8Linear

QUESTION = "What is shown in this picture, and what is the weather like?"
QUESTIONS = [QUESTION, *(f"Is the number {number} written anywhere in it?" for number in range(2, 17))]
CHUNK = 8  # frames that the engine encodes at once on a CPU
LONG = 180  # frames of a video whose prefix is prefilled
ROWS = (1, 16, 64, 256)
COLD = 4  # layers of a shape that are multiplied in turn
READ_BYTES = 1 << 28

Shape = tuple[int, int, int]  # rows, in, out


def model_options(checkpoint: Path, kind: str) -> ModelOptions:
    """The options of the command that ask for a number format."""
    if kind.startswith(("float", "bfloat")):
        return ModelOptions(model=str(checkpoint), dtype=cast(Any, kind))
    return ModelOptions(model=str(checkpoint), quantize=cast(Any, kind))


def seconds(function: Callable[[], object], rounds: int) -> float:
    """The least time of some rounds."""
    least = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        least = min(least, time.perf_counter() - began)
    return least


class Products:
    """The products that a phase consists of."""

    def __init__(self, model: nn.Module) -> None:
        layers = [
            layer for layer in model.modules() if hasattr(layer, "in_features") and hasattr(layer, "out_features")
        ]
        self.calls: dict[tuple[str, Shape], list[nn.Module]] = defaultdict(list)
        self.dtype: dict[str, torch.dtype] = {}
        self._hooks = [layer.register_forward_pre_hook(self._note) for layer in layers]

    def _note(self, layer: Any, given: tuple[torch.Tensor, ...]) -> None:
        rows, kind = given[0].numel() // layer.in_features, type(layer).__name__
        self.calls[kind, (rows, layer.in_features, layer.out_features)].append(layer)
        self.dtype[kind] = given[0].dtype

    def end(self) -> None:
        """Notes no more calls."""
        for hook in self._hooks:
            hook.remove()

    @property
    def operations(self) -> float:
        """Floating-point operations, two for each multiplication."""
        return sum(2.0 * rows * into * out * len(layers) for (_, (rows, into, out)), layers in self.calls.items())

    def seconds(self, rounds: int) -> float:
        """The time of all of them, from one product of each shape."""
        whole = 0.0
        for (kind, (rows, into, _)), layers in self.calls.items():
            some = layers[:: max(1, len(layers) // COLD)][:COLD]
            whole += len(layers) * mean_seconds(some, torch.randn(rows, into).to(self.dtype[kind]), rounds)
        return whole


def mean_seconds(layers: Sequence[nn.Module], inputs: torch.Tensor, rounds: int) -> float:
    """The mean time of some layers of one shape, one after the other."""

    def multiply() -> None:
        for layer in layers:
            layer(inputs)

    multiply()
    return seconds(multiply, rounds) / len(layers)


def phase(model: nn.Module, function: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds of a phase, its rate, and what share of it its products take."""
    products = Products(model)
    function()
    products.end()
    whole, alone = seconds(function, rounds), products.seconds(rounds)
    return {
        "seconds": round(whole, 4),
        "products_seconds": round(alone, 4),
        "share": round(alone / whole, 3),
        "gflops": round(products.operations / whole / 1e9, 1),
    }


def phases(engine: Engine, rounds: int) -> dict[str, dict[str, float]]:
    """Encoding, prefill and steps of an engine on noise; what is computed does not change how long it takes."""
    model = engine.model
    width, dtype, size = model.config.hidden_size, model.dtype, cast(int, model.config.vision.image_size)
    ids = engine.prompts.question_ids
    one, many = pack_prompts([ids(QUESTION)]), pack_prompts([ids(question) for question in QUESTIONS])
    pixels = torch.randn(CHUNK, 1, 3, size, size).to(dtype)

    def item(pack: TextPack, frames: int) -> PrefillItem:
        (group,) = pack.groups
        lengths = [pack.segments[number].stop - pack.segments[number].start for number in (group.shared, *group.tails)]
        text = [torch.randn(length, width).to(dtype) for length in (lengths[0] - 1 + frames, *lengths[1:])]
        return PrefillItem(text[0], tuple(text[1:]))

    def stepping(pack: TextPack) -> Callable[[], object]:
        cache, _ = prefill(model, [item(pack, 1)])
        rows = torch.arange(cache.rows_per_medium)
        return lambda: decode(model, [DecodeBatch(cache, rows)], rows + 1000)

    wanted: dict[str, tuple[Callable[[], object], int]] = {
        "encode 1 frame": (lambda: encode(model.model, pixels[:1], [one]), rounds),
        f"encode {CHUNK} frames": (lambda: encode(model.model, pixels, [one] * CHUNK), 1),
        "prefill 1 frame, 1 question": (lambda: prefill(model, [item(one, 1)]), rounds),
        "prefill 1 frame, 16 questions": (lambda: prefill(model, [item(many, 1)]), rounds),
        f"prefill {LONG} frames, 1 question": (lambda: prefill(model, [item(one, LONG)]), rounds),
        "step of 1 row": (stepping(one), 3 * rounds),
        "step of 16 rows": (stepping(many), 3 * rounds),
    }
    return {name: phase(model, function, count) for name, (function, count) in wanted.items()}


def rates(engine: Engine, rounds: int) -> dict[str, Any]:
    """Milliseconds of a product of the language model's largest shape by format and rows; how fast memory is read."""
    config = engine.model.config
    into, out = config.hidden_size, config.intermediate_size
    weight = torch.randn(out, into) * into**-0.5
    layers: dict[str, list[Any]] = {
        name: [_linear(weight.to(dtype)) for _ in range(2)]
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    if int8_available() is None:
        layers["int8"] = [Int8Linear.from_weight(weight, None) for _ in range(2)]
    found: dict[str, dict[str, float]] = {}
    for name, pair in layers.items():
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        times = {rows: mean_seconds(pair, torch.randn(rows, into).to(dtype), 2 * rounds) for rows in ROWS}
        found[name] = {str(rows): round(1e3 * time, 3) for rows, time in times.items()}
    memory = torch.ones(READ_BYTES // 4)
    memory.sum()
    read = READ_BYTES / seconds(memory.sum, 3 * rounds) / 1e9
    return {"shape": [out, into], "milliseconds": found, "read_gb_per_s": round(read, 1)}


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def main() -> None:
    """Writes one JSON object to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("format")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rates", action="store_true", help="measure the machine's products and memory, too")
    options = parser.parse_args()
    torch.manual_seed(0)
    began = time.perf_counter()
    engine = load_engine(model_options(options.checkpoint, options.format))
    result: dict[str, Any] = {"load_seconds": round(time.perf_counter() - began, 2), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        result["phases"] = phases(engine, options.rounds)
        if options.rates:
            result["rates"] = rates(engine, options.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
