"""The engine's own forms of layers give what transformers' layers give, and pixels reach their device."""

import numpy as np
import pytest
import torch
from tiny_checkpoints import tiny_config
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from llava_mini_cli.engine.attention import attend_causally
from llava_mini_cli.engine.dense import compile_dense, finish, normalised, project
from llava_mini_cli.engine.memory import Upload
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prefusion import additive_mask
from llava_mini_cli.model.vision import VisionTower


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_the_tower_gives_clips_hidden_state_and_its_summary(activation: str, feature: str) -> None:
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
        clip = tower.vision_tower(pixels, output_hidden_states=True)
        features, hidden = tower.see(pixels)
        torch.testing.assert_close(tower.summary(hidden), clip.pooler_output)
        torch.testing.assert_close(tower(pixels), features)
    torch.testing.assert_close(hidden, clip.hidden_states[-2])
    torch.testing.assert_close(features, hidden if feature == "cls_patch" else hidden[:, 1:])


@pytest.mark.parametrize("first_query", [0, 5])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_parts_are_those_of_a_llama_layer(dtype: torch.dtype, activation: str, first_query: int) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, hidden_act=activation
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).to(dtype).eval()
    hidden = torch.randn(2, 7, 32).to(dtype)
    rotary = LlamaRotaryEmbedding(config)(hidden, torch.arange(7)[None])
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    with torch.inference_mode():
        plain = layer(hidden, attention_mask=additive_mask(causal, dtype)[None, None], position_embeddings=rotary)
        queries, keys, values = project(layer, normalised(layer.input_layernorm, hidden), rotary, first_query)
        attended = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=causal[first_query:], enable_gqa=True
        )
        ours = finish(layer, hidden[:, first_query:], attended.transpose(1, 2).flatten(2))
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(ours, plain[:, first_query:], **tolerance)


def test_upload_keeps_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert Upload(torch.device("cpu"))(pixels).tolist() == pixels.tolist()


def test_a_compiler_that_does_not_work_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(function: object, dynamic: bool) -> object:
        assert dynamic

        def fails(*_: object) -> None:
            raise RuntimeError("no compiler\nat all")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    model = LlavaMiniForConditionalGeneration(tiny_config())
    with pytest.raises(UsageError, match=r"--compile: torch.compile failed \(no compiler\)"):
        compile_dense(model)


@pytest.mark.parametrize("queries", [1, 5, 7, 9])
def test_causal_attention_of_the_last_queries_is_that_of_the_whole(queries: int) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    whole = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
    found = attend_causally(query[:, :, -queries:], keys, values)
    torch.testing.assert_close(found, whole[:, :, -queries:])
