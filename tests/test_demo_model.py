"""The shipped demo model: its size, its layout, that it answers and not babbles, and that its CLIP finds pictures."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import caption
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import generator, random_scene
from llava_mini_cli.demo.tokens import CHAT_TEMPLATE, EOT
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.train.demo_preset.pixels import normalised, resized
from llava_mini_cli.train.demo_preset.score import Score, answers, items, score

MANY = 40


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    model = LlavaMiniForConditionalGeneration.from_pretrained(model_dir(), dtype=torch.float32).eval()
    return model, LlavaMiniProcessor.from_pretrained(model_dir())


def test_it_is_small_and_its_context_long(demo: tuple[Any, Any]) -> None:
    model, _ = demo
    assert 2_000_000 < sum(p.numel() for p in model.parameters()) < 4_000_000
    assert sum(file.stat().st_size for file in model_dir().rglob("*") if file.is_file()) < 10_000_000
    assert model.config.max_position_embeddings >= 16_384
    assert model.config.vision_tokens_per_frame == 1


def test_its_prompt_layout_is_the_one_that_training_uses(demo: tuple[Any, Any]) -> None:
    config = json.loads((model_dir() / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("colour", 0.95),
        ("shape", 0.95),
        ("size", 0.95),
        ("place", 0.85),
        ("count", 0.9),
        ("relation", 0.95),
        ("background", 0.95),
        ("yesno", 0.9),
        ("json", 0.95),
        ("caption", 0.8),
        ("direction", 0.95),
        ("order", 0.9),
        ("event_count", 0.8),
        ("appears", 0.95),
        ("vanishes", 0.9),
        ("moving", 0.9),
        ("brief", 0.95),
        ("video_yesno", 0.9),
        ("video_caption", 0.75),
    ],
)
def test_it_answers(demo: tuple[Any, Any], kind: str, least: float) -> None:
    found = score(*demo, kind, MANY)
    assert found.share >= least, found.line()


def test_answers_do_not_depend_on_the_batch(demo: tuple[Any, Any]) -> None:
    asked = [item for kind in ("colour", "count", "place") for item in items(kind, 4)]
    assert answers(*demo, asked) == [answers(*demo, [item])[0] for item in asked]


def test_its_clip_finds_pictures_by_their_captions() -> None:
    clip = CLIPModel.from_pretrained(model_dir() / "clip", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir() / "clip")
    scenes, pictures = [], []
    for index in range(MANY):
        rng = generator("heldout", index)
        scenes.append(random_scene(rng, "heldout"))
        pictures.append(resized(render(scenes[-1], random_look(rng, scenes[-1].background), 112, rng)))
    texts = tokenizer([caption(scene) + EOT for scene in scenes], padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = clip.get_image_features(pixel_values=normalised(np.stack(pictures))).pooler_output
        said = clip.get_text_features(**texts).pooler_output
    similar = torch.nn.functional.normalize(seen, dim=1) @ torch.nn.functional.normalize(said, dim=1).T
    found = (similar.argmax(0) == torch.arange(MANY)).float().mean()
    assert found >= 0.7


def test_intervals_are_wilsons() -> None:
    low, high = Score("x", 8, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert Score("x", 10, 10).interval[1] == pytest.approx(1.0)
