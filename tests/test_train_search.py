"""The CLIP's search stage: texts whose truth is known, and a score that is trained on it."""

import numpy as np
import torch
from transformers import CLIPModel

from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import caption
from llava_mini_cli.demo.scenes import Scene, Thing, generator, random_scene
from llava_mini_cli.train.demo_preset.search_text import (
    SearchText,
    TextPart,
    coded_scene,
    coded_text,
    search_text,
    truth_table,
    untrue_text,
)
from llava_mini_cli.train.demo_preset.search_training import UNTRUE, SearchCollator, SearchData, SearchTrainer
from llava_mini_cli.train.demo_preset.stages import load_tokenizer

RED = Thing("circle", "red", "large", 0.1, 0.2)
BLUE = Thing("square", "blue", "small", 0.9, 0.5)
SCENE = Scene((RED, BLUE), "grey")


def test_a_text_says_what_its_parts_say() -> None:
    text = SearchText((TextPart("orange", "circle"), TextPart("blue", "square", "small", "right")))
    assert text.words() == "an orange circle and a small blue square at the right"
    whole = SearchText(tuple(TextPart(t.colour, t.shape, t.size, t.place) for t in SCENE.things), is_caption=True)
    assert whole.words() == caption(SCENE)


def test_truth_of_parts() -> None:
    assert SearchText((TextPart("red", "circle"),)).is_true(SCENE)
    assert SearchText((TextPart("blue", "square", place="right"), TextPart("red", "circle", "large"))).is_true(SCENE)
    assert not SearchText((TextPart("blue", "square", place="left"),)).is_true(SCENE)
    assert not SearchText((TextPart("red", "circle"), TextPart("red", "square"))).is_true(SCENE)


def test_drawn_texts_are_true_and_changed_ones_are_not() -> None:
    for index in range(200):
        rng = generator("train", index)
        scene = random_scene(rng, "train")
        text = search_text(rng, scene)
        assert text.is_true(scene)
        assert not untrue_text(rng, text, scene).is_true(scene)


def test_the_table_agrees_with_the_parts() -> None:
    rng = generator("train", 0)
    scenes = [random_scene(rng, "train", count) for count in (1, 2, 3, 4) * 3]
    texts = [search_text(rng, scene) for scene in scenes] + [SearchText((TextPart("red", "circle"),))]
    table = truth_table([coded_scene(scene) for scene in scenes], [coded_text(text) for text in texts])
    wanted = np.array([[text.is_true(scene) for text in texts] for scene in scenes])
    np.testing.assert_array_equal(table, wanted)
    assert wanted.any()
    assert not wanted.all()


def test_the_score_is_trained_and_what_llava_mini_reads_is_not() -> None:
    clip = CLIPModel.from_pretrained(model_dir() / "clip").float()
    collator = SearchCollator(load_tokenizer(model_dir()))
    data = SearchData("train", 8)
    batch = collator([data[index] for index in range(8)])
    assert batch["truth"].shape == (8, 8 * (1 + UNTRUE))
    assert batch["truth"][torch.arange(8), torch.arange(8) * (1 + UNTRUE)].all()
    trainer = SearchTrainer(clip)
    with torch.no_grad():
        before = clip.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
        scores = clip.vision_model(batch["pixel_values"]).pooler_output
    optimizer = torch.optim.AdamW([p for p in trainer.parameters() if p.requires_grad], 1e-3)
    losses: list[float] = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = trainer(**batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        after = clip.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
        assert not torch.equal(clip.vision_model(batch["pixel_values"]).pooler_output, scores)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
