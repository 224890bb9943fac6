"""The parts of the model by themselves: what the configuration says, positions, rasters, labels, CLIP's texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import byte_tokenizer, tiny_config
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.activations import QuickGELUActivation

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.model.clip_space import TextTower, embed_images, load_image_projection
from llava_mini_cli.model.compressor import AveragePool, resize_positions, sincos_positions
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration, _spread_labels, stitch
from llava_mini_cli.model.prefusion import additive_mask, is_padding, text_positions
from llava_mini_cli.model.projector import build_projector
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID
from llava_mini_cli.model.vision import QuickGelu, VisionTower


def test_what_a_configuration_says_of_one_frame() -> None:
    plain, split = tiny_config(), tiny_config(resolution_ratio=2, compressor_size=3)
    assert (plain.parts_per_frame, plain.vision_tokens_per_frame, plain.patch_grid) == (1, 1, 8)
    assert (split.parts_per_frame, split.vision_tokens_per_frame) == (5, 9)
    assert tiny_config(vision_config=None).vision.image_size == 336


@pytest.mark.parametrize(("select", "layers_run"), [(-2, 2), (-1, 3), (1, 1)])
def test_the_tower_is_cut_at_the_selected_hidden_state(select: int, layers_run: int) -> None:
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(tiny_config(mm_vision_select_layer=select))
    assert model.model.vision_tower.layers_run == layers_run


def test_projectors_by_name() -> None:
    assert isinstance(build_projector(tiny_config(mm_projector_type="linear")), nn.Linear)
    three = build_projector(tiny_config(mm_projector_type="mlp3x_gelu", mm_hidden_size=24, hidden_size=32))
    assert isinstance(three, nn.Sequential)
    assert [type(layer).__name__ for layer in three] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert three(torch.zeros(2, 24)).shape == (2, 32)
    with pytest.raises(CheckpointError, match="'mlp2x_relu'"):
        build_projector(tiny_config(mm_projector_type="mlp2x_relu"))


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    table = sincos_positions(3, 8)
    assert table.shape == (9, 8)
    column, row = 2.0, 1.0
    angles = [column, column / 100, row, row / 100]  # 10000^(-1/2)
    wanted = torch.tensor(angles).reshape(2, 2)
    torch.testing.assert_close(table[1 * 3 + 2], torch.cat([wanted.sin(), wanted.cos()], dim=1).flatten())
    assert resize_positions(table, 3) is table
    assert resize_positions(table, 5).shape == (25, 8)
    flat = torch.full((4, 6), 2.5, dtype=torch.bfloat16)
    assert torch.equal(resize_positions(flat, 4), flat[:1].expand(16, -1))


def test_average_pooling_is_the_mean_of_each_cell() -> None:
    pool = AveragePool(tiny_config(compressor_size=2))
    features = torch.arange(16.0).reshape(1, 16, 1)
    pooled, weights = pool(features)
    assert pooled[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert weights is None


def test_pieces_are_stitched_to_one_raster() -> None:
    pieces = torch.arange(16).reshape(1, 4, 4, 1)  # 2 x 2 pieces of 2 x 2 patches
    assert stitch(pieces, 2)[0, :, 0].reshape(4, 4).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_padding_does_not_advance_positions() -> None:
    ids = torch.tensor([[5, 0, IMAGE_TOKEN_ID, 7, 1]])
    assert is_padding(ids).tolist() == [[False, True, True, False, False]]
    assert text_positions(ids, 10).tolist() == [[10, 1, 1, 11, 12]]
    mask = additive_mask(torch.tensor([True, False]), torch.float16)
    assert mask.tolist() == [0.0, torch.finfo(torch.float16).min]


def test_labels_move_behind_the_frames() -> None:
    ids = torch.tensor([5, IMAGE_TOKEN_ID, 6, 7])
    labels = torch.tensor([-100, -100, 6, 7])
    assert _spread_labels(ids, labels, 6).tolist() == [-100, -100, -100, -100, 6, 7]
    assert _spread_labels(ids, labels, 4) is labels
    text = torch.tensor([5, 6])
    assert _spread_labels(text, text, 7) is text


def test_frames_and_counts_have_to_agree() -> None:
    torch.manual_seed(0)
    model = LlavaMiniForConditionalGeneration(tiny_config()).eval()
    ids = torch.tensor([[5, IMAGE_TOKEN_ID, 6]])
    pixels = torch.zeros(2, 1, 3, 112, 112)
    with pytest.raises(ValueError, match="ask for 1 frames, pixel_values has 2"):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(ValueError, match="one image placeholder, not 2"):
        model(input_ids=torch.cat([ids, ids], 1), pixel_values=pixels[:1])
    with torch.no_grad():
        text = model.generate(input_ids=ids[:, :1], max_new_tokens=2)
        assert text.shape[1] <= 2
        logits = model(input_ids=ids[:, ::2], pixel_values=pixels[:1], frame_counts=torch.tensor([1])).logits
    assert logits.shape[1] == 2  # no placeholder: the frame is read, and its token is nowhere


def write_clip(tower: Path, **without: bool) -> CLIPTextModel:
    """A whole tiny CLIP as far as texts go; parts that are named are left out."""
    tokenizer = byte_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = CLIPTextModel(config).eval()
    state = {f"text_model.{key}": value.contiguous() for key, value in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    state["text_projection.weight"] = torch.randn(8, 16)
    state["visual_projection.weight"] = torch.randn(8, 12)
    tower.mkdir()
    if "tokenizer" not in without:
        tokenizer.save_pretrained(tower)
    fields: dict[str, Any] = {} if "text_config" in without else {"text_config": config.to_dict()}
    (tower / "config.json").write_text(json.dumps(fields))
    kept = {key: value for key, value in state.items() if not any(name in key for name in without)}
    save_file(kept, tower / "model.safetensors")
    return model


def test_texts_are_embedded_at_their_end(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "clip")
    tower = TextTower.load(tmp_path / "clip")
    assert tower.length == 24
    texts = ["a cat", "two black dogs"]
    both = tower.embed(texts)
    assert both.shape == (2, 8)
    for text, found in zip(texts, both, strict=True):
        ids = [*byte_tokenizer()(text)["input_ids"]]
        ids = ids if ids[-1] == 257 else [*ids, byte_tokenizer().eos_token_id]
        with torch.no_grad():
            summary = model(input_ids=torch.tensor([ids])).pooler_output
        wanted = nn.functional.normalize(summary @ tower.projection.T, dim=-1)[0]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert tower.embed(["x" * 23]).shape == (1, 8)
    with pytest.raises(ValueError, match="the text has 25 tokens and CLIP reads at most 24"):
        tower.embed(["x" * 24])


def test_a_query_is_the_mean_of_its_wordings(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    tower = TextTower.load(tmp_path / "clip")
    wanted = nn.functional.normalize(tower.embed(["a cat", "a cat.", "A cat."]).mean(0), dim=-1)
    for query in ("a cat", " a cat. "):
        torch.testing.assert_close(tower.embed_query(query), wanted)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("text_config", "no text_config in config.json"),
        ("text_model", "no text_model weights"),
        ("text_projection", "no text_projection"),
        ("tokenizer", "no tokenizer"),
    ],
)
def test_a_clip_without_its_text_half_says_what_is_missing(tmp_path: Path, part: str, words: str) -> None:
    write_clip(tmp_path / "clip", **{part: True})
    with pytest.raises(CheckpointError, match=f"has {words}; searching by text"):
        TextTower.load(tmp_path / "clip")


def test_missing_tensors_of_the_text_half_are_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", final_layer_norm=True)
    with pytest.raises(CheckpointError, match="2 tensors of the text half are missing, among them final_layer_norm"):
        TextTower.load(tmp_path / "clip")


def test_the_projection_of_pictures_is_there_or_not(tmp_path: Path) -> None:
    write_clip(tmp_path / "whole")
    projection = load_image_projection(tmp_path / "whole", 12)
    assert projection is not None
    assert projection.shape == (8, 12)
    summary = torch.randn(3, 12)
    torch.testing.assert_close(
        embed_images(summary, projection), nn.functional.normalize(summary @ projection.T, dim=-1)
    )
    write_clip(tmp_path / "half", visual_projection=True)
    assert load_image_projection(tmp_path / "half", 12) is None


def test_the_activation_of_clip_is_written_over_its_input_where_no_gradient_is_wanted() -> None:
    states = torch.linspace(-9, 9, 1001)
    wanted = QuickGELUActivation()(states)
    given = states.clone().requires_grad_()
    out = QuickGelu()(given)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    out.sum().backward()
    assert torch.equal(given.detach(), states)
    with torch.no_grad():
        over = states.clone()
        out = QuickGelu()(over)
        assert out is over
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-7)
        half = QuickGelu()(states.bfloat16()).float()
    torch.testing.assert_close(half, wanted, rtol=2**-6, atol=2**-9)


@pytest.mark.parametrize(("name", "replaced"), [("quick_gelu", True), ("gelu", False)])
def test_only_the_activation_of_that_name_is_replaced(name: str, replaced: bool) -> None:
    vision = {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlavaMiniConfig.from_fields({"vision_config": {**vision, "hidden_act": name}})
    with torch.device("meta"):
        layers = VisionTower(config).vision_tower.encoder.layers
    assert [isinstance(layer.mlp.activation_fn, QuickGelu) for layer in layers] == [replaced] * 2
