"""A model whose linear layers are packed while it is read: which ones, what stays, and what such a model cannot do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames
from golden_cases import CASES, OWN, Scenario, write_case
from test_model_golden import media_of
from torch import nn

from llava_mini_cli.config import GenerationOptions, ModelOptions, Quantization
from llava_mini_cli.engine import quantize as module
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.int8_kernels import Int8Kernel, input_bits, int8_available, int8_kernels
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear, int4_available
from llava_mini_cli.engine.quantize import Packing, StoredEmbedding, check_packing, quantize, restored
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.errors import CheckpointError, ModelError, UsageError
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model import checkpoint as reading

pytestmark = pytest.mark.skipif(int8_available() is not None, reason=str(int8_available()))
needs_int4 = pytest.mark.skipif(int4_available() is not None, reason=str(int4_available()))
CASE = "mini-llama3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(CASE, tmp_path_factory.mktemp(CASE))


def load(checkpoint: Path, maker: Any = None, **options: Any) -> LlavaMiniForConditionalGeneration:
    return LlavaMiniForConditionalGeneration.from_pretrained(checkpoint, maker=maker, **options)


def layers(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, layer in model.named_modules() if type(layer) is kind}


def test_every_linear_layer_is_packed_but_those_inside_the_compressor(checkpoint: Path) -> None:
    plain = load(checkpoint)
    model = load(checkpoint, Packing("int8", torch.float32))
    assert layers(model, Int8Linear) == layers(plain, nn.Linear)
    assert len(layers(model, nn.Linear) | layers(model, nn.modules.linear.NonDynamicallyQuantizableLinear)) == 1
    for name in layers(model, Int8Linear):
        layer, linear = model.get_submodule(name), plain.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        made = Int8Linear.from_weight(linear.weight, linear.bias)
        inputs = torch.randn(3, linear.in_features)
        assert torch.equal(layer(inputs), made(inputs)), name  # the bias came, whichever was first in the file
    left = {name: value for name, value in model.named_parameters() if not name.endswith(".bias")}
    assert all(torch.equal(value, plain.get_parameter(name)) for name, value in left.items())


@needs_int4
def test_of_4_bits_are_the_language_models_layers_alone(checkpoint: Path) -> None:
    model = load(checkpoint, Packing("int4", torch.float32))
    four, eight = layers(model, Int4Linear), layers(model, Int8Linear)
    assert four == {name for name in four | eight if name.startswith("model.layers.")}
    assert four
    assert "lm_head" in eight


def test_embeddings_stay_as_they_are_stored(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint).bfloat16().save_pretrained(tmp_path)
    model = load(tmp_path, Packing("int8", torch.float32))
    table = model.model.embed_tokens
    assert isinstance(table, StoredEmbedding)
    assert table.weight.dtype == torch.bfloat16
    assert model.model.embed_text(torch.tensor([[3, -200]])).dtype == torch.float32
    assert torch.equal(table(torch.tensor([3])), table.weight[3:4].float())
    assert model.dtype == model.model.dtype == torch.float32
    assert load(tmp_path, Packing("int8", torch.bfloat16), dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=needs_int4)])
def test_a_model_that_is_loaded_is_packed_alike(kind: Quantization, checkpoint: Path) -> None:
    read, model = load(checkpoint, Packing(kind, torch.float32)), load(checkpoint)
    quantize(model, kind)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, read(ids).logits)


def test_a_head_that_shares_the_table_is_packed_for_itself(tmp_path: Path) -> None:
    folder = write_case(CASE, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": True}))
    plain = load(folder)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    model = load(folder, Packing("int8", torch.float32))
    assert isinstance(model.lm_head, Int8Linear)
    inputs = torch.randn(2, plain.config.hidden_size)
    made = Int8Linear.from_weight(plain.model.embed_tokens.weight, None)
    assert torch.equal(model.lm_head(inputs), made(inputs))


class Kept:
    """Layers that were packed before."""

    def __init__(self, layers: dict[str, nn.Module] | None = None) -> None:
        self.layers = layers or {}
        self.asked: list[str] = []
        self.told: dict[str, nn.Module] = {}

    def take(self, name: str) -> nn.Module | None:
        self.asked.append(name)
        return self.layers.get(name)

    def made(self, name: str, layer: Any) -> None:
        self.told[name] = layer


@pytest.mark.parametrize("kernel", int8_kernels())
@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=needs_int4)])
def test_layers_that_were_packed_before_are_taken(kind: Quantization, kernel: Int8Kernel, checkpoint: Path) -> None:
    first = Kept()
    model = load(checkpoint, Packing(kind, torch.float32, kernel, first))
    assert set(first.told) == set(first.asked) == layers(load(checkpoint), nn.Linear)
    assert list(first.told) == first.asked  # made in several threads, told in order
    again = {name: restored(layer.facts(), layer.parts()) for name, layer in first.told.items()}  # type: ignore[operator]
    second = Kept(dict(again))
    taken = load(checkpoint, Packing(kind, torch.float32, kernel, second))
    assert second.told == {}
    assert all(taken.get_submodule(name) is layer for name, layer in again.items())
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(taken(ids).logits, model(ids).logits)
    one = next(iter(again.values()))
    before = one.parts()
    one.use({**before, "scales": before["scales"] * 2})
    assert one.parts()["packed"] is before["packed"]
    assert torch.equal(one.parts()["scales"], first.told[next(iter(again))].parts()["scales"] * 2)  # type: ignore[operator]


def test_kept_layers_compute_with_the_kernel_of_this_run(checkpoint: Path) -> None:
    for before, now, then in (
        ("onednn", "onednn_by_4", "onednn_by_4"), ("onednn_by_4", "onednn", "onednn"),
        ("unpacked", "onednn", "unpacked"), ("onednn", "unpacked", "onednn"),
    ):  # fmt: skip
        if {before, now} <= set(int8_kernels()):
            layer = Int8Linear.from_weight(torch.ones(4, 4), None, before)  # type: ignore[arg-type]
            packing = Packing("int8", torch.float32, now, Kept({"lm_head": layer}))  # type: ignore[arg-type]
            assert packing.layer("lm_head", nn.Linear(4, 4), torch.ones(4, 4)) is layer
            assert layer.kernel == then
            assert layer._bits == input_bits(then)  # type: ignore[arg-type]


def test_few_layers_are_made_at_once_and_a_failure_ends_the_loading(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, most = 0, 0

    class Counted(Packing):
        def layer(self, name: str, empty: nn.Module, weight: torch.Tensor) -> Any:
            nonlocal waiting, most
            waiting += module.is_packable(empty)
            most = max(most, waiting)
            return super().layer(name, empty, weight)

        def made(self, name: str, layer: nn.Module) -> None:
            nonlocal waiting
            waiting -= 1

    load(checkpoint, Counted("int8", torch.float32))
    assert (waiting, most) == (0, reading.MAKING + 1)

    def full(*_: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Packing, "_packed", full)
    with pytest.raises(MemoryError, match="no more"):
        load(checkpoint, Packing("int8", torch.float32))


def test_a_weight_that_is_missing_is_told_as_ever(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_head(path: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((key, value) for key, value in read(path, prefix) if key != "lm_head.weight")

    read: Callable[..., Iterator[tuple[str, torch.Tensor]]] = reading.read_tensors
    monkeypatch.setattr(reading, "read_tensors", without_head)
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors missing, among them lm_head\.weight"):
        load(checkpoint, Packing("int8", torch.float32))


def test_a_packed_model_is_not_saved(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, Packing("int8", torch.float32))
    with pytest.raises(ModelError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--quantize fp8: .*int8"):
        check_packing("fp8")
    monkeypatch.setattr(module, "int4_available", lambda: "no such kernel")
    check_packing("int8")
    with pytest.raises(UsageError, match=r"^--quantize int4: not to be had on this CPU \(no such kernel\)$"):
        check_packing("int4")
    monkeypatch.setattr(module, "int8_available", lambda: "nothing is there")
    for kind in ("int8", "int4"):
        with pytest.raises(UsageError, match=rf"^--quantize {kind}: not to be had on this CPU \(nothing is there\)$"):
            check_packing(kind)


def engine_of(checkpoint: Path, **options: Any) -> Engine:
    return load_engine(ModelOptions(model=str(checkpoint), device="cpu", prompt_layout="reference", **options))


def test_an_engine_answers_in_int8(checkpoint: Path) -> None:
    engine = engine_of(checkpoint, quantize="int8")
    assert engine.dtype == "float32"
    frames = ArrayFrames(np.zeros((3, engine.frame_size, engine.frame_size, 3), np.uint8))
    (answer,) = engine.run([Request("video", "video", frames, ("What?",), GenerationOptions(max_new_tokens=3))])
    assert isinstance(answer, Answer)
    assert len(answer.token_ids) == 3


def test_packed_layers_are_not_compiled(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"^--compile: not together with --quantize on a CPU"):
        engine_of(checkpoint, quantize="int8", compile=True)


@pytest.mark.parametrize("case", CASES)
def test_drift_from_the_reference_stays_within_what_is_stated(case: str, tmp_path: Path) -> None:
    """docs/engine.md says how much was measured; here random weights, on which roundings weigh most."""
    folder, scenario = write_case(case, tmp_path), Scenario(OWN, case, "image")
    want = scenario.tensors()
    bounds = {"bfloat16": 0.06, "int8": 0.12}
    for form, bound in bounds.items():
        packing = Packing("int8", torch.float32) if form == "int8" else None
        model = load(folder, packing, dtype="float32" if packing else form)
        media = media_of(scenario, LlavaMiniProcessor.from_pretrained(folder))
        with torch.no_grad():
            logits = model(input_ids=want["input_ids"], **media).logits.float()
        drift = (logits - want["logits"]).norm() / want["logits"].norm()
        assert 1e-4 < drift < bound, (form, drift)
