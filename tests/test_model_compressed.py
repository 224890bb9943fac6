"""Checkpoints with quantised layers, read without vLLM: the weights that they mean, and damaged ones."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from compressed_checkpoints import SCHEMES, compress, is_llama_linear, quantization, set_quantization
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.engine.fit import needs
from llava_mini_cli.errors import CheckpointError, UsageError
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, compressed
from llava_mini_cli.model.checkpoint import load_config, look_at_weights

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("plain"), hidden_size=128, num_key_value_heads=4)


@pytest.fixture
def packed(plain: Path, tmp_path: Path) -> Path:
    compress(plain, tmp_path / "packed", "W4A16")
    return tmp_path / "packed"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_those_that_are_meant(plain: Path, tmp_path: Path, scheme: str) -> None:
    meant = compress(plain, tmp_path / "q", scheme)
    whole = dict(LlavaMiniForConditionalGeneration.from_pretrained(plain).named_parameters())
    found = dict(LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "q").named_parameters())
    assert len(meant) == 7 * (3 + 4)
    assert all(torch.equal(found[name], weight) for name, weight in meant.items())
    assert all(torch.equal(found[name], whole[name]) for name in whole if name not in meant)
    assert not any(torch.equal(found[name], whole[name]) for name in meant)
    half = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "q", dtype="bfloat16")
    assert all(torch.equal(half.get_parameter(name), weight.bfloat16()) for name, weight in meant.items())


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_numbers_may_have_any_width(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    of_four = SCHEMES["W4A16_ASYM"]
    monkeypatch.setitem(SCHEMES, "odd", {**of_four, "weights": {**of_four["weights"], "num_bits": bits}})
    meant = compress(plain, tmp_path / "q", "odd")
    found = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "q")
    assert all(torch.equal(found.get_parameter(name), weight) for name, weight in meant.items())


def test_any_layer_may_be_quantised(plain: Path, tmp_path: Path) -> None:
    """Those of a vision tower that the checkpoint holds, the table of embeddings and the head, parts in two files."""
    standing = tmp_path / "standing"
    LlavaMiniForConditionalGeneration.from_pretrained(plain).save_pretrained(standing)
    meant = compress(standing, tmp_path / "q", "W8A8", lambda name: re.search(EVERYWHERE, name) is not None)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    files = {True: "model-00001-of-00002.safetensors", False: "model-00002-of-00002.safetensors"}
    places = {name: files[name.endswith("scale")] for name in tensors}
    for file in files.values():
        shard = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(shard, tmp_path / "q" / file, metadata={"format": "pt"})
    (tmp_path / "q" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "q" / "model.safetensors").unlink()
    found = dict(LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "q").named_parameters())
    assert len(meant) == 20
    for name, weight in meant.items():
        assert torch.equal(found[name.replace("vision_model.", "")], weight)


EVERYWHERE = r"(fc1|q_proj|embed_tokens|lm_head|mm_projector\.0|attn\.out_proj)\.weight$"


def test_layers_may_have_different_schemes(plain: Path, tmp_path: Path) -> None:
    """What `targets` says of each counts, as of vLLM's layers."""
    first = compress(plain, tmp_path / "a", "W4A16", lambda name: is_llama_linear(name) and "mlp" in name)
    second = compress(
        tmp_path / "a",
        tmp_path / "b",
        "FP8_DYNAMIC",
        lambda name: name.endswith("q_proj.weight") and "layers" in name and "tower" not in name,
    )
    fields = quantization(SCHEMES["W4A16"])
    fields["format"] = "mixed-precision"
    fields["config_groups"] = {
        "group_0": {"targets": ["re:.*mlp.*"], **SCHEMES["W4A16"]},
        "group_1": {"targets": [name.removesuffix(".weight") for name in second], **SCHEMES["FP8_DYNAMIC"]},
    }
    set_quantization(tmp_path / "b", fields)
    found = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert all(torch.equal(found.get_parameter(name), weight) for name, weight in (first | second).items())


def test_memory_is_counted_of_what_is_held(plain: Path, packed: Path) -> None:
    """Decompressed weights in the number format of the computation, and on vLLM the bytes of the files."""
    config, fields = load_config(plain), load_config(plain).to_dict()
    whole = needs(fields, look_at_weights(plain, config), ["float32"], "float32")["float32"]
    own = needs(fields, look_at_weights(packed, config), ["float32"], "float32")["float32"]
    assert own.own + own.mapped == whole.own + whole.mapped
    assert own.scratch > whole.scratch
    on_vllm = needs(fields, look_at_weights(packed, config, is_on_vllm=True), ["float32"], "float32")["float32"]
    numbers = 3 * (4 + 3) * 128 * 128
    stored = sum(one.nbytes for name, one in load_file(packed / "model.safetensors").items() if is_a_part(name))
    assert own.own - on_vllm.own == 4 * numbers - stored
    assert numbers / 2 < stored < numbers


def is_a_part(name: str) -> bool:
    return name.startswith("model.layers.") and "_proj.weight" in name


def change(folder: Path, **parts: torch.Tensor | None) -> None:
    """Puts other tensors in place of some parts of a layer."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for part, tensor in parts.items():
        del tensors[f"{UP}.{part}"]
        if tensor is not None:
            tensors[f"{UP}.{part}"] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("scheme", "parts", "words"),
    [
        ("W4A16", {"weight_scale": None}, "no {up}.weight_scale, which layers stored as pack-quantized have"),
        ("W4A16", {"weight_shape": None}, "no {up}.weight_shape, which layers stored as pack-quantized have"),
        ("W4A16", {"weight_packed": None}, "no {up}.weight_packed, which"),
        ("W4A16_ASYM", {"weight_zero_point": None}, "no {up}.weight_zero_point, which"),
        ("W8A8", {"weight_scale": None}, "no {up}.weight_scale, which layers stored as int-quantized have"),
        ("W8A8", {"weight": None}, "no {up}.weight, which"),
        (
            "W4A16",
            {"weight_scale": torch.ones(128, 3)},
            "{up}.weight_scale has shape [128, 3], the scheme of pack-quantized in config.json asks for [128, 4]",
        ),
        ("W4A16", {"weight_packed": torch.ones(128, 15, dtype=torch.int32)}, "asks for [128, 16]"),
        ("W4A16_ASYM", {"weight_zero_point": torch.ones(128, 4, dtype=torch.int32)}, "asks for [16, 4]"),
        ("W8A8", {"weight_scale": torch.ones(128)}, "{up}.weight_scale has shape [128], the scheme of int-quantized"),
        ("W8A8", {"weight": torch.ones(64, 128, dtype=torch.int8)}, "{up}.weight has shape [64, 128]"),
        ("W8A16", {"weight_packed": torch.ones(128, 16, dtype=torch.int32)}, "asks for [128, 32]"),
        ("FP8_BLOCK", {"weight_scale": torch.ones(2, 1)}, "asks for [1, 1]"),
        ("W4A16", {"weight_shape": torch.tensor([128, 127])}, "{up}.weight_shape is [128, 127], the configuration"),
        ("W4A16", {"weight_scale": torch.ones(128, 4).int()}, "{up}.weight_scale holds torch.int32, its scheme asks"),
        ("W8A8", {"weight": torch.ones(128, 128)}, "{up}.weight holds torch.float32, its scheme asks for torch.int8"),
        ("W4A16", {"weight_packed": torch.ones(128, 16).long()}, "{up} cannot be decompressed (Expected torch.int32"),
    ],
)
def test_damaged_layers_are_told(
    plain: Path, tmp_path: Path, scheme: str, parts: dict[str, torch.Tensor | None], words: str
) -> None:
    compress(plain, tmp_path, scheme)
    change(tmp_path, **parts)
    with pytest.raises(CheckpointError) as caught:
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert words.format(up=UP) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_that_do_not_divide_a_weight_are_told(tmp_path: Path) -> None:
    """The library takes them for smaller ones."""
    write_tiny_checkpoint(tmp_path / "plain", hidden_size=192, intermediate_size=192)
    config = {**SCHEMES["W8A8"], "weights": SCHEMES["FP8_BLOCK"]["weights"]}
    compress(tmp_path / "plain", tmp_path / "q", "FP8_DYNAMIC")
    change(tmp_path / "q", weight_scale=torch.ones(2, 2))
    set_quantization(tmp_path / "q", quantization({**config, "format": "float-quantized"}))
    with pytest.raises(CheckpointError, match=r"_proj: blocks of 128 x 128 do not divide \[192, 192\]"):
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "q")


def edited(*path: str, to: Any) -> dict[str, Any]:
    """A configuration of four bits with another value at a place in it."""
    fields = json.loads(json.dumps(quantization(SCHEMES["W4A16"])))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return fields


def groups(target: str) -> dict[str, Any]:
    """Two groups of layers with the same target."""
    return {name: {"targets": [target], **SCHEMES["W4A16"]} for name in ("group_0", "group_1")}


ENDLESS = r"re:(?:.|[a-z]|\w)*[A-Z]"  # for a name of 40 letters it would take years
WEIGHTS = ("config_groups", "group_0", "weights")
FLOAT_OF_FOUR = {
    "targets": ["Linear"],
    "format": "float-quantized",
    "weights": {"num_bits": 4, "type": "float", "strategy": "channel"},
}
NO_BLOCKS = {"num_bits": 8, "strategy": "block", "block_structure": [0, 8]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "quantization_config []: must be an object"),
        ("int8", "quantization_config 'int8': must be an object"),
        ({}, "quantization_config: quant_method None: must be one of compressed-tensors, awq, gptq, fp8"),
        (edited("quant_method", to=["awq"]), "quantization_config: quant_method ['awq']: must be one of"),
        (edited("quant_method", to="bitsandbytes"), "quant_method 'bitsandbytes': must be one of"),
        (edited("config_groups", to=7), "quantization_config: config_groups: Input should be a valid dictionary"),
        (edited("config_groups", to={}), f"config_groups: no weights for {UP[:14]}"),
        (edited("config_groups", to={"odd": ["Linear"]}), "quantization_config: "),
        (edited(*WEIGHTS, "num_bits", to="few"), "config_groups.group_0.weights.num_bits: Input should be"),
        (edited(*WEIGHTS, "num_bits", to=0), "config_groups: num_bits 0: must be 1 to 8"),
        (edited(*WEIGHTS, "num_bits", to=9), "config_groups: num_bits 9: must be 1 to 8"),
        (edited(*WEIGHTS, "group_size", to=24), "mlp.down_proj: blocks of 1 x 24 do not divide [128, 128]"),
        (edited("config_groups", "group_0", to=FLOAT_OF_FOUR), "num_bits 4 of type float: must be 8"),
        (edited(*WEIGHTS, to=NO_BLOCKS), "blocks of 0 x 8 do not divide [128, 128]"),
        (edited(*WEIGHTS, "strategy", to="odd"), "group_0.weights.strategy: Value error, 'odd' is not"),
        (edited(*WEIGHTS, "group_size", to=-5), "quantization_config: config_groups.group_0.weights"),
        (edited("config_groups", "group_0", "weights", to=None), "config_groups: no weights for"),
        (edited("config_groups", to=groups(ENDLESS)), f"targets: {ENDLESS!r}: regex timed out"),
        (edited("config_groups", to=groups("re:(")), "targets: 're:(': missing )"),
        (edited("config_groups", to=groups("odd")), "config_groups: no weights for"),
        (edited("config_groups", "group_0", "format", to="marlin-24"), "format marlin-24: "),
        (edited("config_groups", "group_0", "format", to="nvfp4-pack-quantized"), "format nvfp4-pack-quantized: "),
        (edited("transform_config", to={"config_groups": {}}), "transform_config: "),
    ],
)
def test_odd_configurations_are_told(packed: Path, value: Any, words: str) -> None:
    set_quantization(packed, value)
    with pytest.raises(CheckpointError) as caught:
        LlavaMiniForConditionalGeneration.from_pretrained(packed)
    assert str(caught.value).startswith(f"{packed / 'config.json'}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_patterns_together_have_a_bounded_time(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes less than that."""
    bounds: list[float] = []

    def match(pattern: str, name: str, *, timeout: float) -> None:
        bounds.append(timeout)
        if timeout < 0.6:
            raise TimeoutError("regex timed out")
        time.sleep(0.6)

    monkeypatch.setattr(compressed, "PATTERN_SECONDS", 1.0)
    monkeypatch.setattr(regex, "match", match)
    set_quantization(packed, edited("config_groups", to=groups("re:slow")))
    with pytest.raises(CheckpointError, match="targets: 're:slow': regex timed out"):
        LlavaMiniForConditionalGeneration.from_pretrained(packed)
    assert len(bounds) == 2
    assert bounds[0] == 1
    assert 0 <= bounds[1] < 0.41


def test_what_is_no_matrix_cannot_be_quantised(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    tensors["model.norm.weight_scale"] = torch.ones(1)
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"config_groups: model\.norm: \[128\] is no matrix"):
        LlavaMiniForConditionalGeneration.from_pretrained(packed)


def test_without_the_library_one_line_says_how_to_install_it(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.needs.is_installed", lambda name: name != "compressed_tensors")
    with pytest.raises(UsageError) as caught:
        look_at_weights(packed, load_config(packed))
    words = "quantization_config: compressed-tensors needs compressed_tensors: pip install 'llava-mini-cli[compressed]'"
    assert str(caught.value) == f"{packed / 'config.json'}: {words}"


def test_the_library_is_not_imported_for_plain_layers(plain: Path, tmp_path: Path) -> None:
    """Nor where none of the layers that are read is quantised."""
    compress(plain, tmp_path, "W4A16", lambda name: name.startswith("model.layers.") and is_llama_linear(name))
    code = "import sys; from pathlib import Path; from llava_mini_cli.engine.vllm.load import half_of\n"
    code += "from llava_mini_cli.model import LlavaMiniForConditionalGeneration as Model\n"
    code += "from llava_mini_cli.model.checkpoint import load_config\n"
    code += f"folder = Path({str(tmp_path)!r}); Model.from_pretrained(folder, config=half_of(load_config(folder)))\n"
    code += "assert 'compressed_tensors' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
