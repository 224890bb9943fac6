"""Training runs: a fraction of the demo preset, stages 1 and 2 on a data file, LoRA, resuming, curves."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.errors import UsageError
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.train import finetune
from llava_mini_cli.train.demo_preset import stages
from llava_mini_cli.train.finetune import TrainOptions
from llava_mini_cli.train.loop import StageSettings
from llava_mini_cli.train.optimizer import orthogonalised

# transformers' Trainer and torch warn about matters of their own here (no accelerator, checkpoint format).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

COLOURS = ("red", "green", "blue")


def losses(directory: Path) -> list[float]:
    with (directory / "loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def shortened(settings: StageSettings, steps: int) -> StageSettings:
    return dataclasses.replace(settings, steps=steps, batch=4, log_every=1, save_every=steps, workers=0, bf16=False)


def test_a_fraction_of_the_demo_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"TOWER": 12, "SEARCH": 2, "LANGUAGE": 12, "STAGE1": 2, "FUSION": 2, "STAGE2": 3, "POLISH": 2}
    for name, count in steps.items():
        monkeypatch.setattr(stages, name, shortened(getattr(stages, name), count))
    said: list[str] = []
    target = stages.train_demo_model(tmp_path, said.append)
    for name in ("tower", "language"):
        fallen = losses(tmp_path / name)
        assert len(fallen) == 12
        assert min(fallen[-3:]) < 0.8 * fallen[0], name
        assert (tmp_path / name / "loss.png").stat().st_size > 1000
    model = LlavaMiniForConditionalGeneration.from_pretrained(target)
    processor = LlavaMiniProcessor.from_pretrained(target)
    inputs = processor(images=Image.new("RGB", (90, 90), "red"), text="What colour is the shape?")
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) < 10_000_000
    again = stages.train_demo_model(tmp_path, said.append)  # everything is finished: nothing is trained again
    assert len(losses(tmp_path / "tower")) == 12
    assert again == target


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number, colour in enumerate(COLOURS * 2):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
        turns = [("human", "<image>\nWhich?"), ("gpt", colour), ("human", "Sure?"), ("gpt", "yes")]
        said = [{"from": who, "value": text} for who, text in turns]
        records.append({"image": f"{number}.png", "conversations": said})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def options(data: Path, tiny: Path, output: Path, **changes: object) -> TrainOptions:
    plain = TrainOptions(data, str(tiny), output, batch=2, device_batch=2, epochs=2, learning_rate=3e-3, save_every=3)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in LlavaMiniForConditionalGeneration.from_pretrained(path).state_dict().items()}


def changed_parts(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    return {name.removeprefix("model.").split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_stage_2_learns_and_leaves_the_tower_alone(data: Path, tiny: Path, tmp_path: Path) -> None:
    target = finetune.finetune(options(data, tiny, tmp_path, average="answer"), lambda _: None)
    fallen = losses(tmp_path / "stage2")
    assert len(fallen) == 6
    assert fallen[-1] < fallen[0]
    parts = changed_parts(tiny, target)
    assert {"mm_projector", "compressor", "prefusion_layers", "layers", "lm_head"} <= parts
    assert "vision_tower" not in parts


def test_stage_1_trains_the_projector_alone(data: Path, tiny: Path, tmp_path: Path) -> None:
    target = finetune.finetune(options(data, tiny, tmp_path, stage=1, epochs=1), lambda _: None)
    assert changed_parts(tiny, target) == {"mm_projector"}


def test_lora_is_merged_into_an_ordinary_checkpoint(data: Path, tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    changes = {"lora_rank": 2, "gradient_checkpointing": True, "epochs": 1}
    target = finetune.finetune(options(data, tiny, tmp_path, **changes), said.append)
    parts = changed_parts(tiny, target)
    assert {"mm_projector", "compressor", "layers"} <= parts
    assert not parts & {"vision_tower", "embed_tokens", "lm_head"}
    assert "parameters trained" in said[0]


def test_a_stopped_run_goes_on_and_ends_where_an_unbroken_one_does(data: Path, tiny: Path, tmp_path: Path) -> None:
    whole = finetune.finetune(options(data, tiny, tmp_path / "whole"), lambda _: None)
    broken = options(data, tiny, tmp_path / "broken")
    first = finetune.finetune(broken, lambda _: None)
    (tmp_path / "broken" / "stage2" / "checkpoint-6").rename(tmp_path / "gone")  # as if stopped after step 3
    again = finetune.finetune(broken, lambda _: None)
    assert first == again
    old, new = weights(whole), weights(again)
    for name in old:
        torch.testing.assert_close(old[name], new[name], rtol=1e-3, atol=1e-4)
    assert len(losses(tmp_path / "broken" / "stage2")) == 6


def test_a_checkpoint_that_was_cut_short_is_passed_over(data: Path, tiny: Path, tmp_path: Path) -> None:
    run = options(data, tiny, tmp_path / "run")
    finetune.finetune(run, lambda _: None)
    (tmp_path / "run" / "stage2" / "checkpoint-6" / "trainer_state.json").unlink()  # written last
    finetune.finetune(run, lambda _: None)
    assert len(losses(tmp_path / "run" / "stage2")) == 6
    assert (tmp_path / "run" / "stage2" / "checkpoint-6" / "trainer_state.json").is_file()


def test_another_run_in_the_same_directory_is_refused_by_name(data: Path, tiny: Path, tmp_path: Path) -> None:
    run = options(data, tiny, tmp_path / "run", epochs=1)
    finetune.finetune(run, lambda _: None)
    with pytest.raises(UsageError, match=r"another run: epochs 2 \(was 1\)"):
        finetune.finetune(dataclasses.replace(run, epochs=2), lambda _: None)
    fewer = data.with_name("fewer.json")
    fewer.write_text(json.dumps(json.loads(data.read_text())[:4]))
    with pytest.raises(UsageError, match=r"records 4 \(was 6\); data "):
        finetune.finetune(dataclasses.replace(run, data=fewer), lambda _: None)


def test_stage_1_wants_media(data: Path, tiny: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    text = data.with_name("text.json")
    text.write_text(json.dumps([*json.loads(data.read_text())[:2], {"conversations": turns}]))
    run = options(text, tiny, tmp_path / "run", stage=1, epochs=1, batch=1)
    with pytest.raises(UsageError, match="record 3: stage 1 trains the projector on media"):
        finetune.finetune(run, lambda _: None)
    finetune.finetune(dataclasses.replace(run, skip_bad=True), lambda _: None)
    assert len(losses(tmp_path / "run" / "stage1")) == 2


@pytest.mark.parametrize(
    ("records", "epochs", "device_batch", "accumulate", "expected"),
    [(20, 3, 4, 64, 3), (100, 10, 4, 64, 10), (300, 10, 4, 64, 20), (256, 1, 4, 64, 1), (6, 0.5, 2, 1, 2)],
)
def test_as_many_passes_as_were_asked_for(
    records: int, epochs: float, device_batch: int, accumulate: int, expected: int
) -> None:
    assert finetune.updates(records, epochs, device_batch, accumulate) == expected


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="--device-batch"):
        TrainOptions(Path("a"), "m", Path("o"), batch=6, device_batch=4)
    with pytest.raises(UsageError, match="--stage"):
        TrainOptions(Path("a"), "m", Path("o"), stage=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--epochs"):
        TrainOptions(Path("a"), "m", Path("o"), epochs=0)
    with pytest.raises(UsageError, match="--lora-rank"):
        TrainOptions(Path("a"), "m", Path("o"), stage=1, lora_rank=4)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 8), (1, 4, 12), (3, 12, 4)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert float(values.min()) > 0.4
        assert float(values.max()) < 1.4
