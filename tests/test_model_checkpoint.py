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
from llava_mini_cli.model.checkpoint import weight_files

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
