"""What `--llm` means: who answers, with which half of the weights, and what is refused before a model is loaded."""

import json
import math
import re
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from compressed_checkpoints import SCHEMES, compress, quantization, set_quantization
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_config, write_tiny_checkpoint

from llava_mini_cli.config import EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.engine import choose_format
from llava_mini_cli.engine import load as engine_load
from llava_mini_cli.engine.devices import try_cards
from llava_mini_cli.engine.vllm import load
from llava_mini_cli.engine.vllm.link import VllmEnded
from llava_mini_cli.engine.vllm.messages import Start
from llava_mini_cli.engine.vllm.quantised import as_on_vllm
from llava_mini_cli.errors import CheckpointError, ModelError, UsageError
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.weight_headers import Stored
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.inspect_medium import InspectOptions
from llava_mini_cli.pipelines.settings import RunOptions


@pytest.mark.parametrize(
    ("options", "device", "taken"),
    [
        ({}, "cuda", False),
        ({"llm": "vllm"}, "cpu", True),
        ({"llm": "auto"}, "cpu", False),
        ({"llm": "auto"}, "cuda:1", True),
        ({"llm": "auto", "quantize": "int4"}, "cuda", False),
        ({"llm": "auto", "compile": True}, "cuda", False),
    ],
)
def test_who_answers(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], device: str, taken: bool) -> None:
    monkeypatch.setattr(load, "is_installed", lambda package: package == "vllm")
    assert load.takes_vllm(ModelOptions("demo", **options), torch.device(device)) is taken
    monkeypatch.setattr(load, "is_installed", lambda package: False)
    assert load.takes_vllm(ModelOptions("demo", **options), torch.device(device)) is (options == {"llm": "vllm"})


def test_nothing_of_it_imports_vllm() -> None:
    assert load.Process is not None
    assert not any(name.partition(".")[0] == "vllm" for name in sys.modules)


def test_half_of_a_model_is_what_turns_frames_into_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_checkpoint(tmp_path)
    whole = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
    half = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path, config=load.half_of(whole.config))
    wanted, found = dict(whole.named_parameters()), dict(half.named_parameters())
    assert wanted.keys() - found.keys() == {name for name in wanted if name.startswith(("model.layers.", "lm_head."))}
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert not caplog.records


def test_vllm_is_given_the_configuration_of_a_plain_llama() -> None:
    own = tiny_config()
    fields = load.language_model_config(own).to_dict()
    assert (fields["model_type"], fields["num_key_value_heads"]) == ("llama", own.num_key_value_heads)
    assert not [name for name in fields if name.startswith(("mm_", "vision", "compressor", "prefusion"))]
    assert fields["rope_parameters"] == own.to_dict()["rope_parameters"]
    assert "quantization_config" not in fields


def test_vllm_is_told_how_a_checkpoint_is_quantised(tmp_path: Path) -> None:
    quantised = quantization(SCHEMES["W8A8"])
    load.language_model_config(tiny_config(), quantised).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == quantised


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its language model's layers and pre-fusion's in eight bits."""
    folder = tmp_path_factory.mktemp("in_eight_bits")
    plain = write_tiny_checkpoint(folder / "plain", hidden_size=512, intermediate_size=2048)
    compress(plain, folder / "quantised", "W8A8")
    return folder / "quantised"


def chosen(folder: Path, device: str = "cpu", **options: Any) -> Any:
    return engine_load._choose(ModelOptions(str(folder), **{"llm": "vllm", **options}), torch.device(device))


def test_with_quantised_weights_auto_is_a_number_format_that_vllm_has(quantised: Path) -> None:
    assert chosen(quantised, llm="own").number == "float32"
    found = chosen(quantised)
    assert (found.kind, found.number) == ("bfloat16", "bfloat16")
    assert chosen(quantised, dtype="float16").number == "float16"
    words = (
        f"--dtype float32: the weights of {quantised} are quantised, with which vLLM computes in bfloat16 or float16"
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        chosen(quantised, dtype="float32")
    with pytest.raises(
        UsageError, match=re.escape(f"--quantize fp8: the weights of {quantised} are quantised already")
    ):
        chosen(quantised, quantize="fp8")


def started(monkeypatch: pytest.MonkeyPatch, model: str, **options: Any) -> tuple[Start, dict[str, Any]]:
    """What vLLM's process is told for some options, and the configuration that it is given."""
    found: list[tuple[Start, dict[str, Any]]] = []

    def ended(start: Start, **_: object) -> None:
        found.append((start, json.loads(start.config)))
        raise VllmEnded("it was not there")

    monkeypatch.setattr(load, "Process", ended)
    with pytest.raises(ModelError, match=re.escape(f"model {model}: vLLM cannot load it (it was not there)")):
        engine_load.load_engine(ModelOptions(model, llm="vllm", device="cpu", **options))
    return found[0]


def test_what_vllm_is_told_of_quantised_weights(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, config = started(monkeypatch, "demo", quantize="fp8")
    assert (start.quantization, start.dtype, "quantization_config" in config) == ("fp8_per_channel", "bfloat16", False)
    start, config = started(monkeypatch, "demo")
    assert (start.quantization, "quantization_config" in config) == (None, False)
    start, config = started(monkeypatch, str(quantised))
    assert (start.quantization, start.dtype) == (None, "bfloat16")
    assert config["quantization_config"] == quantization(SCHEMES["W8A8"])


@pytest.mark.parametrize(("free", "share"), [(80, 0.95), (44, 0.5), (3, 0.05), (0, 0.05)])
def test_vllm_takes_what_is_free_but_for_our_half(monkeypatch: pytest.MonkeyPatch, free: int, share: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 80 << 30))
    assert load._share(torch.device("cuda")) == pytest.approx(share)


def test_memory_counts_as_vllm_holds_the_weights(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our own would need, or the plain model, is no reason to refuse it."""
    plain = quantised.parent / "plain"
    needs = [chosen(plain, dtype="bfloat16").need, chosen(plain, quantize="fp8").need, chosen(quantised).need]
    layers = 3 * (512 * 512 * 2 + 2 * 256 * 512 + 3 * 512 * 2048)
    assert needs[0].bytes - needs[1].bytes == pytest.approx(layers, rel=0.02)
    assert needs[2].own > needs[1].own
    monkeypatch.setattr(choose_format, "memory_of", lambda device: MemoryThere(needs[1].bytes, "the test"))
    assert chosen(plain, quantize="fp8").number == "bfloat16"
    with pytest.raises(UsageError, match="what would fit"):
        chosen(plain, dtype="bfloat16")


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_other_methods_are_for_the_language_model_on_vllm_alone(quantised: Path, tmp_path: Path, method: str) -> None:
    """Their tensors lie under names and in shapes of their own; pre-fusion has to be plain."""
    folder = write_tiny_checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith("model.layers.") and "_proj" in name]:
        tensors[name.replace("weight", "qweight")] = tensors.pop(name).to(torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_quantization(folder, {"quant_method": method, "bits": 4, "group_size": 32})
    assert chosen(folder).number == "bfloat16"
    words = f"config.json: quantization_config: quant_method {method}: model.layers.0.mlp.down_proj cannot be read; "
    words += "--llm vllm reads it in the language model's own layers"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        chosen(folder, llm="own")
    name = "model.prefusion_layers.0.mlp.up_proj.weight"
    tensors[name.replace("weight", "qweight")] = tensors.pop(name).to(torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.prefusion_layers\.0\.mlp\.up_proj cannot be read"):
        chosen(folder)


def test_a_layer_that_is_damaged_is_told_before_vllm_reads_it(quantised: Path, tmp_path: Path) -> None:
    """vLLM itself would compute with whatever its memory holds."""
    tensors = load_file(quantised / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    copytree(quantised, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"no model\.layers\.1\.mlp\.up_proj\.weight_scale, which layers stored as"
    ):
        chosen(tmp_path)


@pytest.mark.parametrize(
    ("model", "generation", "told"),
    [
        ({}, {}, None),
        ({"llm": "vllm"}, {}, "vllm"),
        ({"llm": "auto"}, {}, "auto"),
        ({"llm": "vllm", "dtype": "float32"}, {}, None),
        ({"llm": "vllm", "dtype": "float32"}, {"temperature": 0.5}, "vllm"),
        ({"dtype": "float32"}, {"temperature": 0.5}, None),
        ({"llm": "vllm", "quantize": "fp8"}, {}, "vllm"),
        ({"llm": "auto", "quantize": "fp8", "dtype": "bfloat16"}, {}, "auto"),
    ],
)
def test_rows_are_told_apart_where_tokens_may_differ(
    model: dict[str, Any], generation: dict[str, Any], told: str | None
) -> None:
    options = RunOptions(ModelOptions("demo", **model), SamplingOptions(), GenerationOptions(**generation))
    assert options.answer_settings().get("llm") == told
    assert options.answer_settings()["quantize"] == model.get("quantize")


def test_evidence_is_refused_before_the_model_is_looked_for() -> None:
    def wanted(llm: Any) -> RunOptions:
        evidence = EvidenceOptions(most=2)
        return RunOptions(ModelOptions("none", llm=llm), SamplingOptions(), GenerationOptions(), evidence=evidence)

    with pytest.raises(UsageError, match="--evidence: our own language model has it alone; leave --llm vllm out"):
        wanted("vllm")
    assert wanted("auto").model.llm == "own"
    with pytest.raises(UsageError, match="inspect: our own language model has it alone"):
        InspectOptions(ModelOptions("none", llm="vllm"), SamplingOptions())


def test_an_index_without_captions_has_nothing_to_answer() -> None:
    with pytest.raises(UsageError, match="index without --caption-every: our own language model has it alone"):
        IndexOptions(ModelOptions("none", llm="vllm"), SamplingOptions())
    assert IndexOptions(ModelOptions("none", llm="auto"), SamplingOptions()).model.llm == "own"
    captions = IndexOptions(ModelOptions("none", llm="vllm"), SamplingOptions(), caption_every=2)
    assert (captions.model.llm, captions.settings("bfloat16")["llm"]) == ("vllm", "vllm")
    exact = IndexOptions(ModelOptions("none", llm="vllm", dtype="float32"), SamplingOptions(), caption_every=2)
    assert "llm" not in exact.settings("float32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llm": "both"}, "--llm both: must be one of own, vllm, auto"),
        (
            {"llm": "vllm", "quantize": "int8"},
            "--quantize int8: our own language model has it alone; --llm vllm has fp8",
        ),
        (
            {"llm": "vllm", "quantize": "int4", "dtype": "float32"},
            "--quantize int4: our own language model has it alone; --llm vllm has fp8",
        ),
        (
            {"llm": "vllm", "quantize": "fp8", "dtype": "float32"},
            "--dtype float32: vLLM computes with quantised weights in bfloat16 or float16",
        ),
        ({"llm": "vllm", "device": "mps"}, "--llm vllm: on cpu and cuda, not on mps"),
        ({"llm": "vllm", "tensor_parallel": 0}, "--tensor-parallel must be at least 1, not 0"),
        ({"llm": "auto", "tensor_parallel": 2}, "--tensor-parallel goes with --llm vllm"),
        ({"gpu_memory": 0.5}, "--gpu-memory goes with --llm vllm"),
        (
            {"llm": "vllm", "gpu_memory": 1.5},
            "--gpu-memory must be above 0 and at most 1, not 1.5",
        ),
        (
            {"llm": "vllm", "gpu_memory": math.nan},
            "--gpu-memory must be above 0 and at most 1, not nan",
        ),
        ({"llm": "vllm", "compile": True}, "--compile: our own language model has it alone; leave --llm vllm out"),
    ],
)
def test_options_that_vllm_cannot_follow(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelOptions("demo", **changes)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("cuda", {}, None),
        ("cuda:3", {}, None),
        ("cuda:2", {"tensor_parallel": 2, "gpu_memory": 0.5}, None),
        ("cuda", {"tensor_parallel": 5}, "--tensor-parallel 5: CUDA devices here: 4, and cuda is to be the first"),
        ("cuda:3", {"tensor_parallel": 2}, "--tensor-parallel 2: CUDA devices here: 4, and cuda:3 is to be the first"),
        ("cpu", {"tensor_parallel": 2}, None),
        (
            "cpu",
            {"gpu_memory": 0.5},
            "--gpu-memory is about cards, and the model is on cpu",
        ),
    ],
)
def test_cards_have_to_be_there(
    monkeypatch: pytest.MonkeyPatch, device: str, options: dict[str, Any], words: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked = ModelOptions("demo", llm="vllm", **options)
    if words is None:
        try_cards(asked, torch.device(device))
        return
    with pytest.raises(UsageError) as caught:
        try_cards(asked, torch.device(device))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("heads", "keys", "width", "cards", "is_shared"),
    [(32, 8, 96, 8, True), (32, 8, 96, 16, True), (32, 8, 96, 3, False), (32, 8, 98, 4, False), (24, 8, 96, 12, False)],
)
def test_a_model_is_shared_among_cards_in_equal_parts(
    heads: int, keys: int, width: int, cards: int, is_shared: bool
) -> None:
    """Of few heads of keys several cards have the same."""
    config = tiny_config(num_attention_heads=heads, num_key_value_heads=keys, intermediate_size=width, hidden_size=96)
    if is_shared:
        load.check_spread(config, cards)
        return
    with pytest.raises(UsageError, match=f"^--tensor-parallel {cards}: the model's {heads} heads, {keys} heads"):
        load.check_spread(config, cards)


@pytest.mark.parametrize(("device", "cards", "rows"), [("cuda", 2, 5), ("cuda", 4, 3), ("cuda", 1, 9), ("cpu", 2, 9)])
def test_a_card_needs_memory_for_its_part_of_the_language_model(
    tmp_path: Path, device: str, cards: int, rows: int
) -> None:
    write_tiny_checkpoint(tmp_path)
    names = ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.prefusion_layers.0.mlp.up_proj.weight")
    stored = {name: Stored((9, 4), torch.float32, tmp_path, 144) for name in names}
    options = ModelOptions(str(tmp_path), llm="vllm", tensor_parallel=cards)
    _, held = as_on_vllm(options, stored, torch.device(device), tmp_path)
    assert [one.shape for one in held.values()] == [(rows, 4), (rows, 4), (9, 4)]
