"""Checkpoints load in every published form, and each damaged one says what is wrong in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_tiny_checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llava_mini_cli.errors import CheckpointError, LlavaMiniError, ModelNotFound
from llava_mini_cli.model import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.checkpoint import TOWER_FILE, load_tower, read_tensors
from llava_mini_cli.model.pretrained import generation_config, pick_device, pick_dtype
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE
from llava_mini_cli.model.weight_headers import read_json, weight_files

Model = LlavaMiniForConditionalGeneration


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def message(checkpoint: Path) -> str:
    """The one line that loading this checkpoint fails with."""
    with pytest.raises(LlavaMiniError) as caught:
        Model.from_pretrained(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_auto_classes_find_the_classes(checkpoint: Path) -> None:
    assert type(AutoConfig.from_pretrained(checkpoint)) is LlavaMiniConfig
    assert type(AutoModelForImageTextToText.from_pretrained(checkpoint)) is Model
    assert type(AutoProcessor.from_pretrained(checkpoint)) is LlavaMiniProcessor


def test_float32_on_the_cpu_and_another_dtype_on_demand(checkpoint: Path) -> None:
    assert {p.dtype for p in Model.from_pretrained(checkpoint).parameters()} == {torch.float32}
    half = Model.from_pretrained(checkpoint, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.model.compressor.pos_embed.dtype == torch.float32


def test_a_pickle_and_its_shards_load_like_safetensors(checkpoint: Path) -> None:
    want = Model.from_pretrained(checkpoint).state_dict()
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for name, keys in parts.items():
        torch.save({key: state[key] for key in keys}, checkpoint / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    got = Model.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(got[key], want[key]) for key in want)
    (checkpoint / "pytorch_model-2.bin").unlink()
    assert "1 of 2 shards missing: pytorch_model-2.bin" in message(checkpoint)


def test_safetensors_come_before_pickles(checkpoint: Path) -> None:
    torch.save({}, checkpoint / "pytorch_model.bin")
    assert [path.name for path in weight_files(checkpoint)] == ["model.safetensors"]


def test_the_tower_is_found_beside_the_checkpoint_and_in_the_working_directory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "clip").rename(tmp_path / "clip")
    Model.from_pretrained(checkpoint)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "clip").rename(tmp_path / "elsewhere" / "clip")
    assert "its vision tower 'clip'" in message(checkpoint)
    monkeypatch.chdir(tmp_path / "elsewhere")
    Model.from_pretrained(checkpoint)


def test_missing_and_misshapen_tensors_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    state = load_file(path)
    query = state.pop("model.compressor.query")
    save_file(state, path)
    assert "1 of 135 tensors missing, among them model.compressor.query [1, 64]" in message(checkpoint)
    save_file({**state, "model.compressor.query": torch.zeros(4, 64)}, path)
    assert "model.compressor.query has shape [4, 64], the configuration asks for [1, 64]" in message(checkpoint)
    save_file({**state, "model.compressor.query": query}, path)
    Model.from_pretrained(checkpoint)


def test_damaged_files_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path}: damaged" in message(checkpoint)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs" in message(checkpoint)
    path.unlink()
    assert "no weights" in message(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert "pytorch_model.bin: damaged" in message(checkpoint)
    torch.save({"model.norm.weight": subprocess.Popen}, checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin: damaged" in message(checkpoint)


def test_bad_configurations_are_named(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    whole = path.read_text()
    edit(path, hidden_size="wide")
    assert "config.json" in message(checkpoint)
    path.write_text(whole)
    edit(path, model_type="llava")
    assert "a 'llava' model" in message(checkpoint)
    path.write_text(whole)
    edit(path, mm_projector_type="spatial")
    assert "mm_projector_type 'spatial'" in message(checkpoint)
    path.write_text(whole[:40])
    assert "cannot be read" in message(checkpoint)
    path.unlink()
    assert "no config.json" in message(checkpoint)


def test_a_checkpoint_without_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        LlavaMiniProcessor.from_pretrained(checkpoint)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("no-such-model", str(tmp_path / "nowhere"), str(tmp_path / "file")):
        with pytest.raises(ModelNotFound):
            Model.from_pretrained(name)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_id_that_cannot_be_had_fails_within_seconds(offline: str, tmp_path: Path) -> None:
    code = (
        "from llava_mini_cli.hub import find_model\nfrom llava_mini_cli.errors import ModelNotFound\n"
        "import time\nstarted = time.monotonic()\n"
        "try: find_model('llava-mini-tests/no-such-model')\nexcept ModelNotFound as error: print(error)\n"
        "print(time.monotonic() - started)"
    )
    # A proxy that refuses every connection stands in for a network that is not there.
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), **proxy}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, seconds = run.stdout.splitlines()
    assert "hf download llava-mini-tests/no-such-model" in message
    assert float(seconds) < 5


def test_loading_takes_about_one_copy_of_the_weights(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6)
    code = (
        "import resource, sys\nfrom llava_mini_cli.model import LlavaMiniForConditionalGeneration as M\n"
        "import llava_mini_cli.model.checkpoint\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "m = M.from_pretrained(sys.argv[1])\n"
        "print(1024 * (peak() - before), sum(p.nbytes for p in m.parameters()))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, check=True)
    grown, weights = map(int, run.stdout.split())
    # float32 weights, and the bfloat16 file mapped while it is read
    assert weights > 500e6
    assert grown < 1.6 * weights


def test_average_pooling_and_no_prefusion_are_configuration(tmp_path: Path) -> None:
    import numpy as np

    checkpoint = write_tiny_checkpoint(tmp_path, compressor_type="average", compressor_size=2, prefusion_layer_num=0)
    model = Model.from_pretrained(checkpoint)
    assert not list(model.model.compressor.parameters())
    batch = LlavaMiniProcessor.from_pretrained(checkpoint)(images=np.zeros((9, 9, 3), np.uint8), text="What?")
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape[1] == batch["input_ids"].shape[1] - 1 + 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"eos_token_id": [257, 261]}, ([257, 261], 257)),
        ({"eos_token_id": 261}, (261, 261)),
        ({"eos_token_id": 261, "pad_token_id": 9}, (261, 9)),
        ({}, (12, 12)),
        (None, (12, 12)),
    ],
)
def test_generation_ends_as_the_checkpoint_says_and_is_greedy(
    tmp_path: Path, fields: dict[str, object] | None, expected: tuple[object, int]
) -> None:
    if fields is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({**fields, "temperature": 0.6, "do_sample": True}))
    config = LlavaMiniConfig.from_fields({"eos_token_id": 12, "bos_token_id": 11, "pad_token_id": None})
    found = generation_config(tmp_path, config)
    assert (found.eos_token_id, found.pad_token_id) == expected
    assert found.bos_token_id == 11
    assert not found.do_sample
    own = LlavaMiniConfig.from_fields({"eos_token_id": 12, "bos_token_id": 11, "pad_token_id": 3})
    assert generation_config(tmp_path, own).pad_token_id == (9 if fields and "pad_token_id" in fields else 3)


def test_the_tower_alone_is_that_of_the_whole_model(checkpoint: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(checkpoint)
    want = model.model.vision_tower.state_dict()
    pixels = torch.randn(1, 3, 112, 112)
    model.save_pretrained(tmp_path / "saved")
    for directory in (checkpoint, tmp_path / "saved"):
        tower = load_tower(directory)
        assert not tower.training
        assert tower.state_dict().keys() == want.keys()
        assert all(torch.equal(value, want[key]) for key, value in tower.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(tower(pixels), model.model.vision_tower(pixels))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["unfreeze_mm_vision_tower"]


def test_a_checkpoint_that_should_hold_its_tower_and_does_not_takes_the_named_one(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = Model.from_pretrained(checkpoint).state_dict()
    edit(checkpoint / "config.json", unfreeze_mm_vision_tower=True)
    got = Model.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert "holds no vision tower of its own; taking clip" in caplog.text


def test_a_tower_in_the_checkpoint_does_not_count_unless_the_configuration_says_so(checkpoint: Path) -> None:
    want = Model.from_pretrained(checkpoint).state_dict()
    state = load_file(checkpoint / "model.safetensors")
    towers = {key: value + 1 for key, value in want.items() if key.startswith(TOWER_MODULE)}
    published = {TOWER_FILE + key.removeprefix(TOWER_MODULE): value for key, value in towers.items()}
    save_file({**state, **published}, checkpoint / "model.safetensors")
    got = Model.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(got[key], want[key]) for key in towers)
    edit(checkpoint / "config.json", unfreeze_mm_vision_tower=True)
    got = Model.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(got[key], value) for key, value in towers.items())


def test_tensors_without_a_place_are_warned_of_and_old_buffers_are_not(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint / "model.safetensors"
    state = load_file(path)
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}, path)
    Model.from_pretrained(checkpoint)
    assert caplog.text == ""
    save_file({**state, "model.spare.weight": torch.zeros(2)}, path)
    Model.from_pretrained(checkpoint)
    assert "1 tensors not used, among them model.spare.weight" in caplog.text


def test_tied_embeddings_are_the_head(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    state = load_file(path)
    del state["lm_head.weight"]
    save_file(state, path)
    assert "lm_head.weight" in message(checkpoint)
    edit(checkpoint / "config.json", tie_word_embeddings=True)
    model = Model.from_pretrained(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, state["model.embed_tokens.weight"].float())
    model.save_pretrained(tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    again = Model.from_pretrained(tmp_path / "saved")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_how_a_model_is_asked_for(checkpoint: Path) -> None:
    assert Model.from_pretrained(checkpoint, torch_dtype=torch.float16, low_cpu_mem_usage=True).dtype == torch.float16
    model = Model.from_pretrained(checkpoint, device_map={"": "cpu"}, dtype="auto", attn_implementation="eager")
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert (model.config._attn_implementation, model.name_or_path) == ("eager", str(checkpoint))
    with pytest.raises(TypeError, match="'quantisation'"):
        Model.from_pretrained(checkpoint, quantisation=4)
    own = LlavaMiniConfig.from_pretrained(checkpoint)
    own.tokenizer_padding_side = "left"
    assert Model.from_pretrained(checkpoint, config=own).config.tokenizer_padding_side == "left"


def test_names_of_devices_and_number_formats() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_device("cpu") == pick_device("auto") == cpu
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_dtype("auto", cpu) == torch.float32
    assert pick_dtype("float16", cpu) == pick_dtype(torch.float16, cuda) == torch.float16


def test_a_shard_that_the_index_names_is_missing(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards missing: 2.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "2.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["1.safetensors", "2.safetensors"]


def test_tensors_are_read_by_their_beginning(tmp_path: Path) -> None:
    tensors = {"a.x": torch.ones(1), "a.y": torch.ones(2), "b.x": torch.ones(3)}
    save_file(tensors, tmp_path / "m.safetensors")
    torch.save(tensors, tmp_path / "m.bin")
    for name in ("m.safetensors", "m.bin"):
        assert {key for key, _ in read_tensors(tmp_path / name, "a.")} == {"a.x", "a.y"}
        assert {key: len(tensor) for key, tensor in read_tensors(tmp_path / name)} == {"a.x": 1, "a.y": 2, "b.x": 3}


def test_a_json_file_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config.json: not a JSON object"):
        read_json(tmp_path / "config.json")
