"""The closed form of a model's products against what torch counts on meta tensors, number for number."""

from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from llava_mini_cli.engine import flops
from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.flops import WeightProduct
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.configuration import LlavaMiniConfig

IMAGE = -200
CASES: list[dict[str, Any]] = [
    {},
    {"resolution_ratio": 2, "compressor_size": 3},
    {"mm_projector_type": "linear", "compressor_type": "average"},
    {"mm_projector_type": "mlp3x_gelu", "mm_vision_select_layer": 1},
    {"prefusion_layer_num": 0},
    {"prefusion_layer_num": 1, "num_key_value_heads": 1},
]


def counted(function: Any, *arguments: Any) -> tuple[Any, dict[str, dict[str, int]]]:
    """What a function gives, and the multiplications and additions of each class of modules by operator."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), torch.device("meta"):
        given = function(*arguments)
    found = counter.get_flop_counts().items()
    return given, {module: {str(name): count for name, count in ops.items()} for module, ops in found}


def with_weights(counts: dict[str, dict[str, int]]) -> int:
    """Those of a whole function whose products with weights are not sliced; attention has its own operators."""
    return sum(counts["Global"].get(name, 0) for name in ("aten.mm", "aten.addmm", "aten.convolution"))


def total(products: list[WeightProduct]) -> int:
    return sum(product.flops for product in products)


def meta_model(changes: dict[str, Any]) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniConfig]:
    config = tiny_config(**changes)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config).eval().requires_grad_(False), config


@pytest.mark.parametrize("changes", CASES)
def test_each_part_has_the_products_that_torch_counts(changes: dict[str, Any]) -> None:
    model, config = meta_model(changes)
    size, frames = config.vision.image_size, 3
    pixels = torch.zeros(frames * config.parts_per_frame, 3, size, size, device="meta")
    features, seen = counted(model.model.vision_tower, pixels)
    assert total(flops.tower(config, frames)) == with_weights(seen)
    pack = pack_prompts([[5, 6, IMAGE, 7, 8, 9], [5, 6, IMAGE, 10, 11]])
    _, seen = counted(encode_features, model.model, features.unflatten(0, (frames, -1)), [pack] * frames)
    layers = sum(count for module in ("Linear", "Sequential") for count in seen.get(module, {}).values())
    assert total(flops.projection(config, frames)) + total(flops.prefusion(config, frames, len(pack))) == layers
    patches = (config.parts_per_frame - 1 or 1) * features.shape[1]
    attention = 4 * frames * config.vision_tokens_per_frame * patches * config.mm_hidden_size
    compressing = sum(seen.get("QueryCompressor", {}).values())
    assert total(flops.compression(config, frames)) == max(0, compressing - attention)
    prefix, tail = torch.zeros(7, config.hidden_size, device="meta"), torch.zeros(3, config.hidden_size, device="meta")
    _, seen = counted(prefill, model, [PrefillItem(prefix, (tail, tail))])
    products = flops.language_model(config, 7, 0) + flops.language_model(config, 6, 2)
    assert total(products) == with_weights(seen)


def test_what_is_packed_is_told_apart() -> None:
    config = tiny_config()
    assert [product.is_packed for product in flops.tower(config, 1)] == [False, True, True]
    assert not any(product.is_packed for product in flops.compression(config, 1))
    linear = flops.projection(config, 1) + flops.prefusion(config, 1, 2) + flops.language_model(config, 2, 1)
    assert all(product.is_packed for product in linear)


def test_the_published_model() -> None:
    """In units of 1e9; the paper's Table 14 has the same shapes for the tower, the projection and the compression."""
    config = LlavaMiniConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    billions = {
        "tower": total(flops.tower(config, 1)) / 1e9,
        "compression": total(flops.compression(config, 1)) / 1e9,
        "projection": total(flops.projection(config, 1)) / 1e9,
        "a step": total(flops.language_model(config, 1, 1)) / 1e9,
    }
    assert {name: round(value, 1) for name, value in billions.items()} == {
        "tower": 334.7, "compression": 2.4, "projection": 24.2, "a step": 15.0,
    }  # fmt: skip
