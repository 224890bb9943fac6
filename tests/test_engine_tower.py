"""The engine's own forms of products and layers give what the plain modules give, and memory errors are one kind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from llava_mini_cli.engine.linear import linear, linear_quick_gelu, linear_silu
from llava_mini_cli.engine.memory import Upload
from llava_mini_cli.engine.tower import patch_features
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.vision import VisionTower


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_the_tower_gives_what_the_plain_one_gives(activation: str, feature: str) -> None:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "hidden_act": activation,
    }
    config = LlavaMiniConfig.from_fields(
        {"vision_config": vision, "mm_hidden_size": 32, "mm_vision_select_feature": feature}
    )
    torch.manual_seed(0)
    tower = VisionTower(config).eval()
    pixels = torch.randn(3, 3, 56, 56)
    with torch.inference_mode():
        expected, seen = tower(pixels), patch_features(tower, pixels)
    assert seen.shape == expected.shape
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_layers(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias).to(dtype)
    inputs = torch.randn(2, 7, 24).to(dtype)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    with torch.inference_mode():
        plain = layer(inputs)
        torch.testing.assert_close(linear(layer, inputs), plain, **tolerance)
        torch.testing.assert_close(linear_silu(layer, inputs), functional.silu(plain), **tolerance)
        if bias:
            gelu = plain * torch.sigmoid(1.702 * plain)
            torch.testing.assert_close(linear_quick_gelu(layer, inputs, 1.702) / 1.702, gelu, **tolerance)


def test_upload_keeps_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert Upload(torch.device("cpu"))(pixels).tolist() == pixels.tolist()
