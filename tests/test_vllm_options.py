"""What `--llm` means: who answers, with which half of the weights, and what is refused before a model is loaded."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config, write_tiny_checkpoint

from llava_mini_cli.config import EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
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
        ({"llm": "vllm", "compile": True}, "--compile: our own language model has it alone; leave --llm vllm out"),
    ],
)
def test_options_that_vllm_cannot_follow(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelOptions("demo", **changes)
    assert str(caught.value) == words
