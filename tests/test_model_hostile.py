"""Checkpoints of somebody who means ill: each is one line that names file and field, before a module is made."""

import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_config, write_tiny_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.errors import CheckpointError, ModelError
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.tensor_shapes import model_shapes, text_shapes
from llava_mini_cli.model.weight_headers import member, weight_files

SECONDS = 20.0  # a loaded machine's; alone it is well below one


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


@pytest.fixture
def no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error to build a module."""
    monkeypatch.setattr(LlavaMiniForConditionalGeneration, "__init__", lambda *_: pytest.fail("a module was made"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(checkpoint: Path, load: Callable[..., Any] = LlavaMiniForConditionalGeneration.from_pretrained) -> str:
    """The one line that a checkpoint is refused with, without its directory."""
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert time.monotonic() - began < SECONDS
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line.replace(f"{checkpoint}", "", 1)


# Fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "__import__"}, "/config.json: hidden_act '__import__': must be one of silu, "),
        ({"num_attention_heads": 0}, "/config.json: num_attention_heads 0: must be a whole number from 1 to "),
        ({"num_attention_heads": 3}, "/config.json: num_attention_heads 3: must divide hidden_size 64"),
        ({"num_key_value_heads": 3}, "/config.json: num_key_value_heads 3: must divide num_attention_heads 4"),
        ({"num_hidden_layers": 1_000_000}, "/config.json: num_hidden_layers 1000000: must be a whole number from 1 to"),
        ({"num_hidden_layers": True}, "/config.json: num_hidden_layers True: must be a whole"),
        ({"num_hidden_layers": "3"}, "/config.json: num_hidden_layers '3': must be a whole"),
        ({"num_hidden_layers": 3.0}, "/config.json: num_hidden_layers 3.0: must be a whole"),
        ({"hidden_size": -64}, "/config.json: hidden_size -64: must be a whole"),
        ({"vocab_size": 10**12}, "/config.json: vocab_size 1000000000000: must be a whole"),
        ({"vocab_size": 10**4000}, "/config.json: vocab_size (a very long number): must be a whole"),
        ({"vocab_size": 100}, "/config.json: bos_token_id 256: must be below vocab_size 100"),
        ({"eos_token_id": []}, "/config.json: eos_token_id []: must be a whole number"),
        ({"eos_token_id": [1, "x"]}, "/config.json: eos_token_id [1, 'x']: must be a whole number"),
        ({"eos_token_id": {}}, "/config.json: eos_token_id {}: must be a whole number"),
        ({"rms_norm_eps": "tiny"}, "/config.json: rms_norm_eps 'tiny': must be a number"),
        ({"rope_scaling": {"rope_type": "eval"}}, "/config.json: rope_scaling: rope_type 'eval': must be one of"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 0}}, "/config.json: rope_parameters: factor 0: must be"),
        ({"rope_theta": 0}, "/config.json: rope_theta 0: must be a number above 0"),
        ({"rope_parameters": [1]}, "/config.json: rope_parameters [1]: must be an object or null"),
        ({"head_dim": 7}, "/config.json: head_dim 7: must be even"),
        ({"dtype": "load"}, "/config.json: dtype 'load': must be one of float32"),
        ({"mm_projector_type": "mlp999999999x_gelu"}, "/config.json: mm_projector_type 'mlp999999999x_gelu': must be"),
        ({"mm_hidden_size": 128}, "/config.json: mm_hidden_size 128: must be hidden_size of the vision tower, 64"),
        ({"mm_vision_select_layer": -9}, "/config.json: mm_vision_select_layer -9: must be a hidden state"),
        ({"mm_vision_tower": ["clip"]}, "/config.json: mm_vision_tower ['clip']: must be a text of at most"),
        ({"mm_vision_tower": "x" * 9999}, f"/config.json: mm_vision_tower '{'x' * 59}...: must be a text of at most"),
        ({"compressor_num_heads": 7}, "/config.json: compressor_num_heads 7: must divide mm_hidden_size 64"),
        ({"resolution_ratio": 10**6}, "/config.json: resolution_ratio 1000000: must be a whole"),
        ({"video_frame_size": 10**6}, "/config.json: video_frame_size 1000000: must be a whole"),
        ({"vision_config": 7}, "/config.json: vision_config 7: must be an object"),
        ({"vision_config": {"patch_size": 0}}, "/config.json: patch_size 0: must be a whole"),
        ({"vision_config": {"hidden_act": "x" * 999}}, f"/config.json: hidden_act 'x{'x' * 58}...: must be one of"),
        ({"model_type": {"a": 1}}, ": a {'a': 1} model, not 'llava_mini_llama'"),
        ({"prefusion_layer_num": 900}, ": 8"),  # tensors missing
        ({"num_hidden_layers": 1000}, ": 8973 of 9108 tensors missing, among them model.layers.3.self_attn.q_proj"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    checkpoint: Path, fields: dict[str, object], words: str, no_module: None
) -> None:
    edit(checkpoint / "config.json", **fields)
    assert refused(checkpoint).startswith(words)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"[" * 100_000, "cannot be read (lists or objects too deep inside each other)"),
        ("config.json", b'{"a":' * 100_000, "cannot be read (lists or objects too deep inside each other)"),
        ("config.json", b'{"hidden_size": 1, "hidden_size": 2}', "cannot be read ('hidden_size' stands there twice)"),
        ("config.json", b'{"rope_theta": NaN}', "cannot be read (NaN is no number)"),
        ("config.json", b'{"rms_norm_eps": -Infinity}', "cannot be read (-Infinity is no number)"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"\xff\xfe{}", "cannot be read ('utf-8' codec"),
        ("config.json", b'{"x": ' + b"9" * 5000 + b"}", "cannot be read (Exceeds the limit"),
        ("generation_config.json", b'{"eos_token_id": []}', "eos_token_id []: must be a whole number"),
        ("generation_config.json", b'{"eos_token_id": 262}', "eos_token_id 262: must be below vocab_size 262"),
        ("generation_config.json", b"7", "not a JSON object"),
        ("clip/config.json", b'{"num_hidden_layers": 100000}', "num_hidden_layers 100000: must be a whole"),
        ("clip/config.json", b'{"vision_config": [1]}', "vision_config [1]: must be an object"),
        ("model.safetensors", b"", "damaged or unreadable ("),
        ("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}", "damaged or unreadable ("),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]", "damaged or unreadable ("),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    checkpoint: Path, file: str, content: bytes, words: str, no_module: None
) -> None:
    (checkpoint / file).write_bytes(content)
    assert refused(checkpoint).startswith(f"/{file}: {words}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": "big"}, "size 'big': must be a whole number from 1 to 4096 or an object"),
        ({"size": {"shortest_edge": 10**9}}, "size: shortest_edge 1000000000: must be a whole"),
        ({"crop_size": 224}, "crop_size 224 x 224: must be image_size of the vision tower, 112"),
        ({"image_std": [0, 0, 0]}, "image_std [0, 0, 0]: must be a list of 1 to 3, each a number above 0"),
        ({"image_mean": "grey"}, "image_mean 'grey': must be a list"),
        ({"rescale_factor": True}, "rescale_factor True: must be a number"),
    ],
)
def test_what_pictures_go_through_is_checked(checkpoint: Path, fields: dict[str, object], words: str) -> None:
    edit(checkpoint / "clip" / "preprocessor_config.json", **fields)
    line = refused(checkpoint, LlavaMiniProcessor.from_pretrained)
    assert line.startswith(f"/clip/preprocessor_config.json: {words}")


def test_other_fields_are_dropped(checkpoint: Path) -> None:
    """Transformers would fetch a kernel for the first, make labels for the second and write over its own methods."""
    fields = {"_attn_implementation": "evil/kernel", "num_labels": 10**9, "to_dict": 1, "auto_map": {"AutoConfig": "x"}}
    vision = json.loads((checkpoint / "clip" / "config.json").read_text())
    edit(checkpoint / "config.json", **fields, vision_config=vision | fields | {"attn_implementation": "evil/kernel"})
    config = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint).config
    assert (config._attn_implementation, config.vision._attn_implementation) == ("sdpa", "sdpa")
    assert config.num_labels == 2
    assert not hasattr(config, "auto_map")


# Weight files


def test_shapes_are_those_of_the_modules() -> None:
    for changes in (
        {}, {"attention_bias": True, "mlp_bias": True}, {"compressor_type": "average"}, {"mm_projector_type": "linear"},
        {"mm_projector_type": "mlp3x_gelu", "compressor_size": 2}, {"tie_word_embeddings": True},
        {"prefusion_layer_num": 0, "head_dim": 8},
    ):  # fmt: skip
        config = tiny_config(**changes)
        with torch.device("meta"):
            model = LlavaMiniForConditionalGeneration(config)
        assert {key: tuple(value.shape) for key, value in model.named_parameters()} == model_shapes(config)
    text = CLIPTextConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=8, num_attention_heads=2)
    with torch.device("meta"):
        module = CLIPTextModel(text)
    assert {key: tuple(value.shape) for key, value in module.named_parameters()} == text_shapes(text)


def test_a_tensor_of_another_shape_or_format_is_named_before_a_module_is_made(
    checkpoint: Path, no_module: None
) -> None:
    file = checkpoint / "model.safetensors"
    state = load_file(file)
    save_file(state | {"model.norm.weight": torch.zeros(65)}, file)
    assert "model.norm.weight has shape [65], the configuration asks for [64]" in refused(checkpoint)
    save_file(state | {"model.norm.weight": torch.zeros(64, dtype=torch.int8)}, file)
    assert "model.norm.weight is stored in a number format that weights do not have" in refused(checkpoint)
    save_file({key: value for key, value in state.items() if "lm_head" not in key}, file)
    assert "1 of 135 tensors missing, among them lm_head.weight [262, 64]" in refused(checkpoint)


def test_offsets_beyond_the_file_or_over_each_other_are_refused(checkpoint: Path, no_module: None) -> None:
    file = checkpoint / "model.safetensors"
    for offsets in ([0, 1 << 40], [4, 0], [0, 2]):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
        assert "model.safetensors: damaged or unreadable (" in refused(checkpoint)
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": one, "b": one}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert "model.safetensors: damaged or unreadable (" in refused(checkpoint)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ([1], "weight_map [1]: must be an object"),
        ({"a": 7}, "weight_map {'a': 7}: must be an object"),
        ({"a": "../tiny/model.safetensors"}, "'../tiny/model.safetensors' is no file of this directory"),
        ({"a": "/etc/passwd"}, "'/etc/passwd' is no file of this directory"),
        ({"a": ""}, "'' is no file of this directory"),
        ({"a": "x\0y"}, r"'x\x00y' is no file of this directory"),
        ({"a": "clip"}, "clip: not a regular file"),
        ({"a": "gone.safetensors"}, "1 of 1 shards missing: gone.safetensors"),
        ({"a": "x" * 300}, f"1 of 1 shards missing: {'x' * 300}"),
    ],
)
def test_an_index_names_files_of_its_directory(
    checkpoint: Path, weight_map: object, words: str, no_module: None
) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert words in refused(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "clip/config.json"])
def test_pipes_and_links_out_of_the_checkpoint_are_refused(checkpoint: Path, name: str, tmp_path: Path) -> None:
    path = checkpoint / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert f"{name}: a link that leaves the checkpoint, to " in refused(checkpoint)
    path.unlink()
    os.mkfifo(path)
    assert f"{name}: not a regular file" in refused(checkpoint)


def test_the_links_of_the_hubs_cache_are_followed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "cache" / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / ("a" * 40)
    shutil.copytree(checkpoint, snapshot)
    (snapshot / "config.json").rename(repo / "blobs" / "1")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert member(snapshot, "config.json") == snapshot / "config.json"
    LlavaMiniForConditionalGeneration.from_pretrained(snapshot)
    (repo / "other").touch()
    (snapshot / "generation_config.json").unlink()
    (snapshot / "generation_config.json").symlink_to("../../other")
    with pytest.raises(CheckpointError, match="a link that leaves the checkpoint"):
        member(snapshot, "generation_config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (checkpoint / "x.json").symlink_to(repo / "blobs" / "1")  # a folder of links into the cache, of an older client
    assert member(checkpoint, "x.json") == checkpoint / "x.json"


class Evil:
    """A pickle that runs a command where it is trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def pickled(checkpoint: Path, content: object) -> Path:
    """A torch pickle of anything, in place of the weights."""
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    torch.save(content, checkpoint / "pytorch_model.bin")
    return checkpoint / "pytorch_model.bin"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "holds a list, not tensors by name"),
        (torch.zeros(1), "holds a Tensor, not tensors by name"),
        ({"a": 1}, "'a' holds a int, not a tensor"),
        ({1: torch.zeros(1)}, "1 holds a Tensor, not a tensor"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "a has shape [1000000, 1000000], more than the file holds"),
        (Evil(), "damaged or unreadable ("),
    ],
)
def test_a_pickle_holds_tensors_and_nothing_else(
    checkpoint: Path, content: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    pickled(checkpoint, content)
    assert f"pytorch_model.bin: {words}" in refused(checkpoint)
    assert not Path("pwned").exists()


def test_a_pickle_that_unpacks_to_more_than_it_is_is_refused(checkpoint: Path) -> None:
    path = pickled(checkpoint, {})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 26))
    assert "pytorch_model.bin: damaged or unreadable ('archive/data.pkl' is compressed)" in refused(checkpoint)
    path.write_bytes(pickle.dumps(Evil()))
    assert "pytorch_model.bin: damaged or unreadable (not a zip file" in refused(checkpoint)


@pytest.mark.parametrize(
    "end",
    [
        struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 1 << 30, 0, 0),
        struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 0xFFFFFFFF, 0, 0),
    ],
)
def test_a_pickle_with_members_without_end_is_refused(checkpoint: Path, end: bytes) -> None:
    pickled(checkpoint, {}).write_bytes(b"x" * 1000 + end)
    assert "pytorch_model.bin: damaged or unreadable (its list of members is too large)" in refused(checkpoint)


def test_weights_that_no_memory_holds_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = MemoryThere(1 << 18, "the cgroup x")
    monkeypatch.setattr("llava_mini_cli.model.pretrained.memory_there", lambda: there)
    assert ": the weights take 0.0 GiB in float32, and the cgroup x leaves 0.0 GiB" in refused(checkpoint)
    monkeypatch.setattr("llava_mini_cli.model.pretrained.memory_there", lambda: None)
    LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)


def test_a_missing_shard_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    (tmp_path / "config.json").write_bytes(b" " * ((16 << 20) + 1))
    assert refused(tmp_path) == "/config.json: cannot be read (larger than 16 MiB)"


def test_memory_that_runs_out_meanwhile_is_the_reason(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    for place in ("llava_mini_cli.model.checkpoint.safe_open", "llava_mini_cli.model.weight_headers.safe_open"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            with pytest.raises(ModelError, match="no memory left on cpu for its weights"):
                load_engine(ModelOptions(str(checkpoint), device="cpu"))
