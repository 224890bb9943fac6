"""FLOPs and memory that bench counts, against the closed form, whole models, and the paper."""

from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config

from llava_mini_cli.bench import counting
from llava_mini_cli.bench.counted_tables import flops_table, layers_table, memory_table
from llava_mini_cli.bench.counting import FlopCounts, flops
from llava_mini_cli.bench.made_models import AFTER, BEFORE, meta_llava, meta_model
from llava_mini_cli.bench.report import Table
from llava_mini_cli.bench.shapes import preset_shape
from llava_mini_cli.bench.subject import Subject
from llava_mini_cli.engine import flops as closed
from llava_mini_cli.model.configuration import LlavaMiniConfig

TERA = 1e12
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_hidden_layers": 5, "num_key_value_heads": 1},
    {"resolution_ratio": 2, "compressor_size": 3},
    {"prefusion_layer_num": 0},
    {"num_hidden_layers": 1, "compressor_size": 2},
]


def counted_only(preset: Any) -> Subject:
    shape = preset_shape(preset)
    config = LlavaMiniConfig.from_fields(shape.fields)
    return Subject(preset, shape.words, config, torch.device("cpu"), torch.float32, "float32", None, "no need")


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("questions", [1, 3])
def test_the_engines_products_are_those_of_the_closed_form(fields: dict[str, Any], questions: int) -> None:
    config = tiny_config(**fields)
    rows = BEFORE + config.vision_tokens_per_frame + questions * AFTER
    text = BEFORE + 1 + questions * AFTER
    products = [
        *closed.tower(config, 1),
        *closed.compression(config, 1),
        *closed.projection(config, 1),
        *closed.prefusion(config, 1, text),
        *closed.language_model(config, rows, questions),
    ]
    found = FlopCounts(config).engine(questions)
    assert found["products"] * TERA == pytest.approx(sum(product.flops for product in products))
    parts = [value for name, value in found.items() if name not in ("total", "products")]
    assert sum(parts) == pytest.approx(found["total"])
    assert found["products"] < found["total"]


@pytest.mark.parametrize("fields", SHAPES)
def test_two_layers_tell_of_all(fields: dict[str, Any]) -> None:
    config = tiny_config(**fields)
    whole = torch.zeros(1, BEFORE + AFTER + config.vision_tokens_per_frame, config.hidden_size, device="meta")
    model = meta_model(config)
    assert FlopCounts(config).plain()["llm"] * TERA == pytest.approx(flops(lambda: model(inputs_embeds=whole)).whole)
    llava: Any = meta_llava(config)
    patches = config.parts_per_frame * config.patch_grid**2
    longer = torch.zeros(1, BEFORE + AFTER + patches, config.hidden_size, device="meta")
    spoken = flops(lambda: llava.lm_head(llava.model.language_model(inputs_embeds=longer).last_hidden_state))
    assert FlopCounts(config).llava()["llm"] * TERA == pytest.approx(spoken.whole)


def test_a_product_and_attention_are_told_apart() -> None:
    left, right = torch.zeros(3, 5, device="meta"), torch.zeros(5, 7, device="meta")
    assert flops(lambda: left @ right) == counting.Flops(2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    heads = torch.zeros(1, 2, 3, 5, device="meta")
    seen = flops(lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads))
    assert (seen.whole > 0, seen.products) == (True, 0)


@pytest.fixture(scope="module")
def vicuna() -> tuple[Table, Table]:
    """The tables of Vicuna-7B: by component, and beside the paper's Table 6."""
    subject = counted_only("vicuna-7b")
    counts = FlopCounts(subject.config)
    return flops_table(subject, counts), layers_table(counts)


def rows(table: Table, **values: Any) -> list[dict[str, Any]]:
    """The records that have some values."""
    return [dict(record) for record in table.records if values.items() <= record.items()]


def test_totals_are_within_5_percent_of_the_papers(vicuna: tuple[Table, Table]) -> None:
    by_paper: dict[float, Any] = {record["paper"]: record for record in rows(vicuna[1])}
    assert sorted(by_paper) == [0.96, 1.16, 1.21, 1.46, 1.79, 1.96, 2.85, 8.55]
    for paper, record in by_paper.items():
        assert record["plain"] == pytest.approx(paper, rel=0.05)
        assert record["products"] == pytest.approx(paper, rel=0.005)  # attention is what the paper leaves out
        if record["prefusion_layers"] not in ("0", "LLaVA-1.5"):
            assert record["engine"] < record["plain"]


def test_components_at_two_sizes(vicuna: tuple[Table, Table]) -> None:
    table = vicuna[0]
    for pixels in (336, 672):
        for tokens in (1, 4, 16, 64):
            (plain,) = rows(table, model="Mini, plain", pixels=pixels, vision_tokens=tokens)
            (engine,) = rows(table, model="Mini, engine", pixels=pixels, vision_tokens=tokens)
            assert engine["total"] < plain["total"]
            assert engine["prefusion"] < plain["prefusion"]
            assert engine["tower"] < plain["tower"]
    (ours,) = rows(table, model="Mini, plain", pixels=336, vision_tokens=1)
    (paper,) = rows(table, model="Mini, paper", pixels=336)
    assert (paper["total"], ours["over_paper"]) == (1.96, pytest.approx(2.02 / 1.96, rel=0.01))
    assert ours["projection"] == pytest.approx(paper["projection"], rel=0.02)
    (hd,) = rows(table, model="Mini, plain", pixels=672, vision_tokens=1)
    assert hd["products"] == pytest.approx(7.19, rel=0.005)  # as the note of the table says
    (llava,) = rows(table, model="LLaVA-1.5", pixels=672)
    assert (llava["vision_tokens"], llava["products"]) == (2880, pytest.approx(40.49, rel=0.005))


def test_other_models_have_no_figures_of_the_paper() -> None:
    subject = counted_only("demo")
    table = flops_table(subject, FlopCounts(subject.config))
    assert {record["paper"] for record in table.records} == {None}
    assert {record["unit"] for record in table.records} == {"G"}
    plain = FlopCounts(subject.config).plain(compressor_size=1, resolution_ratio=1)
    assert table.records[0]["total"] == pytest.approx(1e3 * plain["total"], rel=1e-3)
    assert "over_paper" not in {column.key for column in table.columns}
    assert not any("7.19" in note for note in table.notes)


def test_memory_of_videos_is_in_proportion_to_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = counted_only("vicuna-7b")
    monkeypatch.setattr(Subject, "bytes_left", 10_649_600)
    table = memory_table(subject)
    each = (2 * 32 * 4096 + 4096) * 4 / 1e6  # keys and values of 32 layers, and the token
    assert [(r["frames"], r["llava_mini_mb"]) for r in table.records] == [
        (frames, pytest.approx(frames * each, rel=1e-3)) for frames in (1, 100, 1_000, 3_600, 10_800)
    ]
    assert table.records[0]["llava_15_mb"] == pytest.approx(576 * 2 * 32 * 4096 * 4 / 1e6)
    assert "memory here for 10 frames, of LLaVA-1.5 0." in table.notes[-1]
    monkeypatch.setattr(Subject, "bytes_left", None)
    assert not any("memory here" in note for note in memory_table(subject).notes)
