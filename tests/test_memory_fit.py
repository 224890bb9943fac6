"""Counting what a model needs, the choice of its format, the refusal, and the bounds that follow."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from engine_oracle import make_oracle

from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine import choose_format as choosing
from llava_mini_cli.engine import fit
from llava_mini_cli.engine.choose_format import Choice, choose_format
from llava_mini_cli.engine.fit import PROCESS_BYTES, Need, needs, refusal
from llava_mini_cli.engine.packed_linear import Int4Linear, int4_available
from llava_mini_cli.engine.quantize import Packing, is_packable
from llava_mini_cli.engine.work_bytes import MEDIA_BYTES, Bounds, Sizes, Work, bounds
from llava_mini_cli.errors import UsageError
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.model.configuration import LlavaMiniConfig

GIB = 1 << 30
FIELDS: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "vocab_size": 1000, "compressor_size": 2, "resolution_ratio": 2,
    "vision_config": {"hidden_size": 32, "num_attention_heads": 4, "image_size": 28, "patch_size": 14},
}  # fmt: skip


class Stored(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


BF16, F32 = torch.bfloat16, "float32"  # headers may be told by torch's types or by their names
STORED = {
    "model.embed_tokens.weight": Stored((1000, 64), BF16),
    "model.layers.0.mlp.up_proj.weight": Stored((96, 64), BF16),
    "lm_head.weight": Stored((50, 64), BF16),
    "model.layers.0.mlp.up_proj.bias": Stored((96,), BF16),
    "model.layers.0.input_layernorm.weight": Stored((64,), BF16),
    "model.prefusion_layers.11.self_attn.q_proj.weight": Stored((64, 128), BF16),
    "model.compressor.pos_embed": Stored((4, 32), F32),
    "model.vision_tower.vision_tower.encoder.layers.0.mlp.fc1.weight": Stored((10, 32), F32),
}
LINEAR, SMALL, TOWER = 96 * 64 + 64 * 128, 96 + 64, 10 * 32
OTHERS = 1000 * 64 + 50 * 64 + SMALL


def weights(kind: WeightFormat, rest: WeightFormat = "bfloat16", **more: bool) -> tuple[int, int, int]:
    need = needs(FIELDS, STORED, [kind], rest, **more)[kind]
    return need.own, need.mapped, need.scratch


def test_sizes_are_read_from_a_configuration() -> None:
    assert Sizes.of(FIELDS) == Sizes(
        width=64, inner=96, keys=2 * 16, layers=3, vocabulary=1000, positions=5 * 4 + 4, tower_positions=5 * 5,
        tower_width=32, pixels=5 * 28 * 28,
    )  # fmt: skip
    plain = {**FIELDS, "resolution_ratio": 1, "head_dim": 8, "num_key_value_heads": None}
    sizes = Sizes.of(plain)
    assert (sizes.positions, sizes.tower_positions, sizes.pixels, sizes.keys) == (4 + 4, 5, 28 * 28, 4 * 8)
    assert Sizes.of(LlavaMiniConfig(**FIELDS).to_dict()) == Sizes.of(FIELDS)


def test_weights_in_the_format_of_their_file_stay_there() -> None:
    assert weights("bfloat16") == (2 * TOWER, 2 * (OTHERS + LINEAR) + 4 * 128, 0)
    assert weights("float32") == (4 * (OTHERS + LINEAR), 4 * (TOWER + 128), 0)
    assert weights("float16") == (2 * (OTHERS + LINEAR + TOWER), 4 * 128, 0)


def test_on_a_card_nothing_stays_in_a_file() -> None:
    own = 2 * (OTHERS + LINEAR + TOWER) + 4 * 128
    assert weights("bfloat16", is_mapped=False) == (own, 0, 2 * 64_000)  # a tensor comes as it is stored


def test_weights_in_fewer_bits_and_the_two_largest_on_their_way() -> None:
    packed = [(96, 64), (64, 128), (10, 32), (50, 64)]  # the tower's and the head are among them
    elements, channels = sum(out * into for out, into in packed), 96 + 64 + 10 + 50
    largest = 96 * 64 + 64 * 128
    table = 2 * 1000 * 64  # stays as it is stored, whatever the rest is
    assert weights("int8") == (elements + 8 * channels, table + 2 * SMALL + 4 * 128, 2 * largest)
    assert weights("int8", "float32") == (elements + 8 * channels + 4 * SMALL, table + 4 * 128, 2 * largest)
    four, eight = 96 * 64 // 2 + 4 * 96 * (64 // 64 + 1), elements - 96 * 64 + 8 * (channels - 96)
    assert weights("int4") == (four + eight, table + 2 * SMALL + 4 * 128, 2 * largest)


def test_on_a_card_all_llama_layers_are_in_4_bits_and_need_more_on_their_way() -> None:
    own = (96 * 64 + 64 * 128) // 2 + 4 * (96 * 2 + 64 * 2) + 2 * (OTHERS + TOWER) + 4 * 128
    assert weights("int4", is_mapped=False) == (own, 0, max(2 * 64 * 1000, 5 * 64 * 128))


def test_on_a_card_the_llama_layers_alone_are_in_fewer_bits() -> None:
    own = LINEAR + 8 * (96 + 64) + 2 * (OTHERS + TOWER) + 4 * 128
    assert weights("fp8", is_mapped=False) == (own, 0, 2 * 64 * 1000)  # the table as it is stored
    assert weights("int8", is_mapped=False) == (own, 0, 2 * 64 * 1000)


def test_a_head_that_is_the_table_is_packed_for_itself() -> None:
    alone = dict(STORED)
    del alone["lm_head.weight"]
    tied = needs(FIELDS, alone, ["int8", "bfloat16"], "bfloat16")
    assert tied["int8"].own - weights("int8")[0] == (1000 - 50) * (64 + 8)
    assert tied["int8"].mapped == weights("int8")[1]
    assert weights("bfloat16")[1] - tied["bfloat16"].mapped == 2 * 50 * 64


def test_what_is_packed_is_what_the_loader_packs(tmp_path: Path) -> None:
    model = make_oracle(tmp_path / "m").model
    found = {name for name, tensor in model.state_dict().items() if fit._is_packed(name, tensor, on_cpu=True)}
    assert found == {f"{name}.weight" for name, module in model.named_modules() if is_packable(module)}
    assert any("mm_projector" in name for name in found)
    if int4_available() is not None:
        return
    packing, weight = Packing("int4", torch.float32), torch.zeros(16, 32)
    in_four_bits = {name for name in found if fit._packed_in(name, "int4", on_cpu=True) == "int4"}
    made = {name: packing._packed(name.removesuffix(".weight"), weight) for name in found}
    assert in_four_bits == {name for name, layer in made.items() if isinstance(layer, Int4Linear)} != set()


def test_work_in_numbers() -> None:
    sizes = Sizes.of(FIELDS)
    work = Work.of(sizes, 2, is_packed=False)
    assert work == Work(2 * (3 * 96 + 288), int(2 * 12.5 * 25 * 32) + 12 * 5 * 784, 24, 2 * 3 * 32 * 2, 0)
    assert Work.of(sizes, 4, is_packed=True).packed_rows == 512 * 16 * (96 + 64)
    assert work.encoding(1, 0) == work.tower_frame  # which is more than 24 positions take
    assert work.encoding(3, 100) == 3 * 124 * work.position + 5 * 100 * 124
    packed = replace(work, packed_rows=7)
    assert packed.encoding(3, 100) == work.encoding(3, 100) + 7
    assert packed.prefilling(10, 20) == 10 * work.position + 20 * work.cached + 7


def test_all_that_a_model_needs() -> None:
    work = Work.of(Sizes.of(FIELDS), 2, is_packed=False)
    for frames in (1, 7):
        need = needs(FIELDS, STORED, ["bfloat16"], "bfloat16", frames=frames)["bfloat16"]
        assert need.kind == "bfloat16"
        beside = work.encoding(frames, 128) + 256 * work.cached + 8 * 1000
        assert need.work == PROCESS_BYTES + MEDIA_BYTES[1] + beside
        assert need.bytes == need.own + need.mapped + need.work
    assert Need("int4", 10, 20, GIB, 5).bytes == 30 + GIB + PROCESS_BYTES


# Words


def total(kind: WeightFormat, gib: float) -> Need:
    """A need of so many GiB in all."""
    return Need(kind, int(gib * GIB) - PROCESS_BYTES, 0, 0, PROCESS_BYTES)


THERE = MemoryThere(8 * GIB, "the cgroup /x")


def test_a_refusal_says_what_would_fit() -> None:
    others = {"bfloat16": total("bfloat16", 8.1), "int8": total("int8", 8), "int4": total("int4", 2.25)}
    line = refusal("--dtype float32", total("float32", 35.12), THERE, others)
    assert line == (
        "--dtype float32: the model needs 35.1 GiB of memory, and the cgroup /x leaves 8.0 GiB; "
        "what would fit: --quantize int8 (8.0 GiB), --quantize int4 (2.2 GiB)"
    )
    line = refusal("--dtype float32 --batch-size 9", total("float32", 9), THERE, {}, 4)
    assert line.endswith("leaves 8.0 GiB; what would fit: --batch-size 4")
    line = refusal("--dtype float32", total("float32", 35), THERE, {"int8": total("int8", 9.5)})
    assert line.endswith("leaves 8.0 GiB; no format fits, int8 needs least with 9.5 GiB")


# The choice


CPU = torch.device("cpu")
CONFIG = LlavaMiniConfig(**FIELDS)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """GiB that each format needs, plus a tenth for each frame at once beyond the first; `there`: what there is."""
    found: dict[str, float] = {"float32": 35, "bfloat16": 18, "float16": 36, "int8": 11, "int4": 7, "fp8": 12}
    found["there"] = 99

    def counted(
        fields: object, stored: object, kinds: list[WeightFormat], rest: WeightFormat, *, frames: int, is_mapped: bool
    ) -> dict[WeightFormat, Need]:
        assert is_mapped
        dearer = 1 if (kinds, rest) == (["int8"], "float32") else 0
        return {kind: total(kind, found[kind] + dearer + 0.1 * (frames - 1)) for kind in kinds}

    monkeypatch.setattr(choosing, "needs", counted)
    monkeypatch.setattr("llava_mini_cli.engine.fit.needs", counted)
    monkeypatch.setattr(choosing, "memory_there", lambda: MemoryThere(int(found["there"] * GIB), "the cgroup /x"))
    monkeypatch.setattr(choosing, "measured_rates", lambda *_: None)
    for name in ("int8_available", "int4_available"):
        monkeypatch.setattr(choosing, name, lambda: None)
    return found


def chosen(**options: Any) -> Choice:
    return choose_format(ModelOptions("m", **options), CONFIG, STORED, CPU)


def refused(**options: Any) -> str:
    with pytest.raises(UsageError) as error:
        chosen(**options)
    return str(error.value)


@pytest.mark.parametrize(
    ("there", "quickest", "kind", "number"),
    [
        (35, "float32", "float32", "float32"),
        (35, "bfloat16", "bfloat16", "bfloat16"),
        (34, "float32", "bfloat16", "bfloat16"),
        (18, "float32", "bfloat16", "bfloat16"),
        (17, "float32", "int8", "float32"),
        (17, "bfloat16", "int8", "bfloat16"),
        (11, "float32", "int8", "bfloat16"),  # the rest of it in float32 would not fit
    ],
)
def test_auto_takes_the_quickest_that_fits(
    sizes: dict[str, float], monkeypatch: pytest.MonkeyPatch, there: float, quickest: str, kind: str, number: str
) -> None:
    def quickest_of(formats: object) -> str:
        assert formats == ["float32", "bfloat16"]
        return quickest

    monkeypatch.setattr(choosing, "measured_rates", lambda *_: SimpleNamespace(quickest=quickest_of))
    sizes["there"] = there
    choice = chosen()
    assert (choice.kind, choice.number) == (kind, number)
    assert choice.dtype == getattr(torch, number)
    assert (choice.note is None) == (kind != "int8")


def test_a_small_model_is_taken_in_float32_and_all_fits_where_nobody_knows(
    sizes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen().kind == "float32"
    monkeypatch.setattr(choosing, "memory_there", lambda: None)
    assert [chosen().kind, chosen(quantize="int4").kind] == ["float32", "int4"]


def test_int8_by_itself_says_why(sizes: dict[str, float]) -> None:
    sizes["there"] = 12
    assert chosen().note == (
        "the model is held in int8, which costs a little accuracy: bfloat16 needs 18.0 GiB, and the cgroup /x leaves "
        "12.0 GiB"
    )
    assert chosen(quantize="int8").note is None


def test_int4_is_never_taken_by_itself(sizes: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes["there"] = 10
    words = (
        "--dtype auto (int8): the model needs 11.0 GiB of memory, and the cgroup /x leaves 10.0 GiB; what would fit: "
    )
    assert refused() == words + "--quantize int4 (7.0 GiB)"
    monkeypatch.setattr(choosing, "int8_available", lambda: "no kernel")
    assert refused().startswith("--dtype auto (bfloat16): the model needs 18.0 GiB")
    monkeypatch.setattr(choosing, "int4_available", lambda: "no kernel")
    assert refused().endswith("; no format fits, bfloat16 needs least with 18.0 GiB")


def test_what_was_asked_for_and_does_not_fit(sizes: dict[str, float]) -> None:
    sizes["there"] = 34
    assert refused(dtype="float32") == (
        "--dtype float32: the model needs 35.0 GiB of memory, and the cgroup /x leaves 34.0 GiB; what would fit: "
        "--dtype bfloat16 (18.0 GiB), --quantize int8 (11.0 GiB), --quantize int4 (7.0 GiB)"
    )
    sizes["there"] = 5
    line = refused(quantize="fp8", dtype="bfloat16")
    assert line.startswith("--quantize fp8: the model needs 12.0 GiB")
    assert line.endswith("; no format fits, int4 needs least with 7.0 GiB")
    assert "float16" not in line


def test_fewer_frames_at_once_may_do(sizes: dict[str, float]) -> None:
    sizes["there"] = 36.05
    line = refused(dtype="float32", batch_size=32)
    assert line.startswith("--dtype float32 --batch-size 32: the model needs 38.1 GiB")
    assert "what would fit: --batch-size 11, --dtype bfloat16 (21.1 GiB)" in line
    assert chosen(dtype="float32", batch_size=11).kind == "float32"


def test_a_card_says_how_much_it_has(sizes: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 8 * GIB))
    assert choosing.memory_of(torch.device("cuda:1")) == MemoryThere(3 * GIB, "cuda:1")
    assert choosing.memory_of(CPU) == MemoryThere(99 * GIB, "the cgroup /x")
    assert choosing.formats_to_be_had(torch.device("cuda")) == ["bfloat16", "int8", "int4"]


# Bounds


WORK = Work(position=1000, tower_frame=10, frame_positions=872, cached=4096, packed_rows=0)
FRAME = 1000 * 1000 + 5 * 128 * 1000  # bytes of one with 128 positions of text


def test_bounds_are_the_usual_ones_where_there_is_memory() -> None:
    usual = Bounds(8, 4 * GIB, 512 << 20, None)
    assert bounds(None, WORK, None) == usual
    assert bounds(100 * GIB, WORK, None) == replace(usual, work_bytes=90 * GIB - (512 << 20))
    assert bounds(None, WORK, 3).chunk_frames == bounds(0, WORK, 3).chunk_frames == 3


def test_bounds_shrink_with_what_is_left_and_have_a_floor() -> None:
    left = 2 << 30
    assert bounds(left, WORK, None) == Bounds(8, int(left * 0.3), int(left * 0.1), int(left * 0.9) - int(left * 0.1))
    assert bounds(2 * 5 * FRAME, WORK, None).chunk_frames == 5
    assert bounds(2 * 5 * FRAME - 2, WORK, None).chunk_frames == 4
    assert bounds(0, WORK, None) == Bounds(1, 64 << 20, 64 << 20, FRAME + 256 * 4096)
