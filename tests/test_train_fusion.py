"""What pre-fusion is asked: true labels, losses that see them, and the parts that learn from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import DemoQuestion, image_question
from llava_mini_cli.demo.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, generator, random_scene
from llava_mini_cli.train.demo_preset.demo_data import DemoData
from llava_mini_cli.train.demo_preset.fusion_truth import CELLS, HEADS, IGNORED, FusionHeads, cell_truth, named_truth
from llava_mini_cli.train.demo_preset.packed_model import FusionTrainer, PackedTrainer
from llava_mini_cli.train.demo_preset.packing import Packer, PromptIds
from llava_mini_cli.train.demo_preset.stages import FUSION_PARTS, build_model, load_tokenizer
from llava_mini_cli.train.optimizer import build_optimizer

RED = Thing("circle", "red", "large", 0.1, 0.2)
BLUE = Thing("square", "blue", "small", 0.9, 0.5)
SCENE = Scene((RED, BLUE), "grey")
CIRCLE = [SHAPES.index("circle") + 1, COLOURS.index("red"), SIZES.index("large")]
SQUARE = [SHAPES.index("square") + 1, COLOURS.index("blue"), SIZES.index("small")]


def test_truth_of_a_frame_stands_at_each_things_place() -> None:
    truth = cell_truth(SCENE)
    assert truth[0].tolist() == CIRCLE
    assert truth[5].tolist() == SQUARE
    empty = np.delete(truth, (0, 5), axis=0)
    assert (empty == [0, IGNORED, IGNORED]).all()


def test_truth_of_a_question_is_of_the_things_that_it_names() -> None:
    asked = (
        DemoQuestion("relation", "Is the square left or right of the circle?", "right", (BLUE, RED)),
        DemoQuestion("yesno", "Is there a cross?", "no", (None,)),
        DemoQuestion("background", "What colour is the background?", "grey"),
    )
    truth = named_truth(asked)
    assert truth[0].tolist() == [[*SQUARE, 5], [*CIRCLE, 0]]
    assert truth[1].tolist() == [[0, IGNORED, IGNORED, IGNORED], [IGNORED] * 4]
    assert (truth[2] == IGNORED).all()


@pytest.mark.parametrize("kind", ["colour", "place", "size", "json", "relation", "places"])
def test_questions_say_what_they_are_about(kind: str) -> None:
    for index in range(60):
        rng = generator("train", index)
        scene = random_scene(rng, "train", 1 + index % 4)
        question = image_question(rng, scene, "train", kind)
        if question is None:
            continue
        assert len(question.about) == (2 if kind in ("relation", "places") else 1)
        assert all(thing in scene.things for thing in question.about)
        for thing in question.about:
            assert thing is not None
            if kind in ("colour", "place", "size"):
                assert question.answer == getattr(thing, kind)
            elif kind == "json":
                assert f'"{thing.colour}"' in question.answer


def test_questions_of_existence_are_about_the_one_thing_or_nothing() -> None:
    seen: set[str] = set()
    for index in range(300):
        rng = generator("train", index)
        question = image_question(rng, random_scene(rng, "train"), "train", "yesno")
        assert question is not None
        if question.about == (None,):
            assert question.answer == "no"
        seen.add("nothing" if question.about == (None,) else str(len(question.about)))
    assert seen == {"nothing", "0", "1", "2"}


def test_every_different_frame_of_a_medium_has_its_own_truth() -> None:
    data = DemoData("train", 64, images=0)
    moving = next(data[index] for index in range(64) if any(q.kind == "direction" for q in data[index].questions))
    assert moving.cells.shape == (len(moving.frames), CELLS, 3)
    assert (moving.cells[0] != moving.cells[-1]).any()


def sure_bias(truth: torch.Tensor, classes: list[int]) -> torch.Tensor:
    """Logits that are sure of `[slots, heads]` truth, flat."""
    logits = torch.full((len(truth), sum(classes)), -20.0)
    firsts = np.cumsum([0, *classes[:-1]]).tolist()
    for slot, numbers in enumerate(truth.tolist()):
        for first, number in zip(firsts, numbers, strict=True):
            if number != IGNORED:
                logits[slot, first + number] = 20.0
    return logits.flatten()


@pytest.mark.parametrize("tokens", [1, 4])
def test_the_loss_of_frames_is_small_exactly_when_every_thing_is_known(tokens: int) -> None:
    heads = FusionHeads(8, tokens)
    truth = torch.from_numpy(cell_truth(SCENE))[None]
    with torch.no_grad():
        heads.cells.weight.zero_()
        heads.cells.bias.copy_(sure_bias(truth[0], list(HEADS.values())[:3]))
        loss, known = heads.frames(torch.randn(1, tokens, 8), truth)
        assert float(loss) < 1e-6
        assert float(known) == 1.0
        other = torch.from_numpy(cell_truth(Scene((RED, Thing("square", "red", "small", 0.9, 0.5)), "grey")))[None]
        loss, known = heads.frames(torch.randn(1, tokens, 8), other)
    assert float(loss) > 10
    assert float(known) == 0.5


def test_the_loss_of_texts_is_small_exactly_when_what_they_name_is_known() -> None:
    heads = FusionHeads(8, 1)
    asked = DemoQuestion("relation", "", "", (BLUE, RED)), DemoQuestion("relation", "", "", (RED, BLUE))
    truth = torch.from_numpy(named_truth(asked))
    with torch.no_grad():
        heads.named.weight.zero_()
        heads.named.bias.copy_(sure_bias(truth[0], list(HEADS.values())))
        loss, known = heads.texts(torch.randn(1, 8), truth[:1])
        assert float(loss) < 1e-6
        assert float(known) == 1.0
        loss, known = heads.texts(torch.randn(2, 8), truth)
    assert float(loss) > 10
    assert float(known) == 0.5


def test_nothing_to_judge_is_no_loss() -> None:
    heads = FusionHeads(8, 1)
    loss, known = heads.frames(torch.randn(1, 1, 8), torch.from_numpy(cell_truth(Scene((), "grey")))[None])
    assert torch.isfinite(loss)
    assert float(known) == 0
    loss, _ = heads.texts(torch.zeros(0, 8), torch.from_numpy(named_truth(())))
    assert loss.item() == 0


def test_questions_end_where_the_packer_says(tmp_path: Path) -> None:
    prompts = PromptIds(load_tokenizer(tmp_path))
    data = DemoData("train", 32)
    media = [data[index] for index in (0, 1, 12)]
    batch = Packer(prompts, 37, 1)(media)
    flat = batch["text_ids"]
    every = [question for medium in media for question in medium.questions]
    about = [question for question in every if question.about or question.kind == "background"]
    ends = batch["truth"]["ends"].tolist()
    assert len(ends) == len(about) > 3
    for end, question in zip(ends, about, strict=True):
        asked = prompts.after(question.text)
        assert tuple(flat[end + 1 - len(asked) : end + 1].tolist()) == asked
    np.testing.assert_array_equal(batch["truth"]["named"].numpy(), named_truth(about))


def test_pre_fusion_learns_from_what_it_is_asked(tmp_path: Path) -> None:
    """Untrained compressor, projector and pre-fusion on the shipped tower; the language model stays as it is."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tmp_path)
    trainer = PackedTrainer(build_model(model_dir() / "clip", tokenizer).float())
    trainer.train_only(FUSION_PARTS)
    fusion, data = FusionTrainer(trainer), DemoData("train", 16, images=12)
    batch = Packer(PromptIds(tokenizer), 37, 1)([data[index] for index in range(16)])
    before = {name: value.clone() for name, value in trainer.state_dict().items()}
    optimizer = build_optimizer(fusion, 0.01, 2e-3)
    first = fusion(**batch)
    for _ in range(15):
        optimizer.zero_grad()
        fusion(**batch)["loss"].backward()
        optimizer.step()
    last = fusion(**batch)
    assert last["loss"].item() < 0.7 * first["loss"].item()
    assert last["seen"].item() > first["seen"].item()
    changed = {name for name, value in trainer.state_dict().items() if not torch.equal(value, before[name])}
    parts = {name.removeprefix("model.").removeprefix("model.").split(".")[0] for name in changed}
    assert parts == {"mm_projector", "compressor", "prefusion_layers", "heads"}
