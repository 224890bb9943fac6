"""What `--llm` means: who answers, with which half of the weights, and what is refused before a model is loaded."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config, write_tiny_checkpoint

from llava_mini_cli.config import EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.engine.devices import try_cards
from llava_mini_cli.engine.vllm import load
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model import LlavaMiniForConditionalGeneration
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


@pytest.mark.parametrize(
    ("model", "generation", "told"),
    [
        ({}, {}, None),
        ({"llm": "vllm"}, {}, "vllm"),
        ({"llm": "auto"}, {}, "auto"),
        ({"llm": "vllm", "dtype": "float32"}, {}, None),
        ({"llm": "vllm", "dtype": "float32"}, {"temperature": 0.5}, "vllm"),
        ({"dtype": "float32"}, {"temperature": 0.5}, None),
    ],
)
def test_rows_are_told_apart_where_tokens_may_differ(
    model: dict[str, Any], generation: dict[str, Any], told: str | None
) -> None:
    options = RunOptions(ModelOptions("demo", **model), SamplingOptions(), GenerationOptions(**generation))
    assert options.answer_settings().get("llm") == told


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
            {"llm": "vllm", "quantize": "fp8"},
            "--quantize fp8: our own language model has it alone; leave --llm vllm out",
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
