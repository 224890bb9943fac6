"""What a frame's token is asked to hold: true labels, a loss that sees them, and the parts that learn from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.scenes import COLOURS, SHAPES, SIZES, Scene, Thing
from llava_mini_cli.train.demo import build_model, load_tokenizer
from llava_mini_cli.train.demo_data import DemoData
from llava_mini_cli.train.optimizer import build_optimizer
from llava_mini_cli.train.packed import PackedTrainer, TokenTrainer
from llava_mini_cli.train.token_truth import CELLS, HEADS, IGNORED, TokenData, TokenHeads, cell_truth, token_batch

RED = Thing("circle", "red", "large", 0.1, 0.2)
BLUE = Thing("square", "blue", "small", 0.9, 0.5)


def test_truth_stands_at_each_things_place() -> None:
    truth = cell_truth(Scene((RED, BLUE), "grey"))
    assert truth[0].tolist() == [SHAPES.index("circle") + 1, COLOURS.index("red"), SIZES.index("large")]
    assert truth[5].tolist() == [SHAPES.index("square") + 1, COLOURS.index("blue"), SIZES.index("small")]
    empty = np.delete(truth, (0, 5), axis=0)
    assert (empty == [0, IGNORED, IGNORED]).all()


def test_every_different_frame_of_a_medium_has_its_own_truth() -> None:
    data = DemoData("train", 64, images=0)
    moving = next(data[index] for index in range(64) if any(q.kind == "direction" for q in data[index].questions))
    assert moving.cells.shape == (len(moving.frames), CELLS, len(HEADS))
    assert (moving.cells[0] != moving.cells[-1]).any()


@pytest.mark.parametrize("tokens", [1, 4])
def test_the_loss_is_small_exactly_when_every_thing_is_known(tokens: int) -> None:
    heads = TokenHeads(8, tokens)
    truth = torch.from_numpy(cell_truth(Scene((RED, BLUE), "grey")))[None]
    logits = torch.full((CELLS, sum(HEADS.values())), -20.0)
    for cell, classes in enumerate(truth[0].tolist()):
        for first, number in zip((0, len(SHAPES) + 1, len(SHAPES) + 1 + len(COLOURS)), classes, strict=True):
            if number != IGNORED:
                logits[cell, first + number] = 20.0
    with torch.no_grad():
        heads.out.weight.zero_()
        heads.out.bias.copy_(logits.flatten())
        loss, known = heads(torch.randn(1, tokens, 8), truth)
        assert float(loss) < 1e-6
        assert float(known) == 1.0
        other = torch.from_numpy(cell_truth(Scene((RED, Thing("square", "red", "small", 0.9, 0.5)), "grey")))[None]
        loss, known = heads(torch.randn(1, tokens, 8), other)
    assert float(loss) > 10
    assert float(known) == 0.5


def test_frames_without_a_thing_have_a_loss() -> None:
    truth = torch.from_numpy(cell_truth(Scene((), "grey")))[None]
    loss, known = TokenHeads(8, 1)(torch.randn(1, 1, 8), truth)
    assert torch.isfinite(loss)
    assert float(known) == 0


def test_data_is_the_same_every_time_and_shows_what_it_says() -> None:
    data = TokenData("train", 40)
    for index in (0, 7):
        np.testing.assert_array_equal(data[index].pixels, data[index].pixels)
        np.testing.assert_array_equal(data[index].cells, data[index].cells)
    batch = token_batch([data[index] for index in range(40)])
    assert batch["pixel_values"].shape == (40, 3, 72, 72)
    assert batch["cells"].shape == (40, CELLS, len(HEADS))
    assert ((batch["cells"][:, :, 0] > 0).sum(1) > 0).all()  # something stands in every picture


def test_a_frames_token_learns_to_hold_the_frame(tmp_path: Path) -> None:
    """An untrained compressor and pre-fusion on the shipped tower; the language model stays as it is."""
    torch.manual_seed(0)
    model = build_model(model_dir() / "clip", load_tokenizer(tmp_path)).float()
    trainer = PackedTrainer(model)
    trainer.train_only(("mm_projector", "compressor", "prefusion_layers", "heads"))
    tokens, data = TokenTrainer(trainer), TokenData("train", 24)
    batch = token_batch([data[index] for index in range(24)])
    before = {name: value.clone() for name, value in trainer.state_dict().items()}
    optimizer = build_optimizer(tokens, 0.01, 2e-3)
    first = tokens(**batch)
    for _ in range(25):
        optimizer.zero_grad()
        tokens(**batch)["loss"].backward()
        optimizer.step()
    last = tokens(**batch)
    assert last["loss"].item() < 0.5 * first["loss"].item()
    assert last["known"].item() > first["known"].item()
    changed = {name for name, value in trainer.state_dict().items() if not torch.equal(value, before[name])}
    parts = {name.removeprefix("model.").removeprefix("model.").split(".")[0] for name in changed}
    assert parts == {"mm_projector", "compressor", "prefusion_layers", "heads"}
