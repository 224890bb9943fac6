"""`llava-mini bench` from end to end on the demo model's shape, and what it says where something is missing."""

import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config, write_tiny_checkpoint
from typer.testing import CliRunner, Result

from llava_mini_cli.bench import decode_table as decoding
from llava_mini_cli.bench import run, speed_tables, subject, timing
from llava_mini_cli.bench.made_models import llava_beside, random_model
from llava_mini_cli.bench.pages import markdown, page
from llava_mini_cli.bench.report import Report, Table
from llava_mini_cli.bench.shapes import PRESETS, preset_shape
from llava_mini_cli.bench.subject import subject_of_preset
from llava_mini_cli.bench.timing import LayerProducts, RepeatedFrames, alternate
from llava_mini_cli.commands.main import app
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.model.configuration import LlavaMiniConfig

CPU = torch.device("cpu")
NAMES = ["flops", "memory", "phases", "latency", "rates", "memory_held", "decode"]


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One round of everything, a video of a second, and products that are timed once for all models of a shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "ROUNDS", 1)
        patch.setattr(subject, "measure", cache(subject.measure))
        patch.setattr(decoding, "SCENE_S", 1)
        patch.setattr(decoding, "COPIES", 1)
        patch.setattr(decoding, "DECODERS", ("ffmpeg",))
        yield


@pytest.fixture(scope="module")
def report() -> Report:
    said: list[str] = []
    found = run.bench(ModelOptions("demo", device="cpu", dtype="float32"), "demo", said.append)
    assert said[0] == "counting operations"
    return found


def table_of(report: Report, name: str) -> Table:
    return next(table for table in report.tables if table.name == name)


@pytest.fixture
def decoded(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has further reports take the table of decoding from the first: no model has a part in it."""
    monkeypatch.setattr(run, "decode_table", lambda rounds: table_of(report, "decode"))


def test_every_table_is_there_and_measured(report: Report) -> None:
    assert [table.name for table in report.tables] == NAMES
    assert all(table.records and table.notes for table in report.tables)
    assert report.facts["measured"] == "yes"
    for table in report.tables:
        keys = {column.key for column in table.columns}
        assert all(keys <= record.keys() | {"paper", "over_paper"} for record in table.records), table.name
        times = [v for r in table.records for k, v in r.items() if k in ("ms", "gflops", "times_real", "share")]
        assert all(isinstance(time, float) and time > 0 for time in times)


def test_latency_has_every_number_of_tokens_and_the_papers_cards(report: Report) -> None:
    records = table_of(report, "latency").records
    assert [(record["model"], record["vision_tokens"]) for record in records] == [
        ("LLaVA-Mini", 1), ("LLaVA-Mini", 4), ("LLaVA-Mini", 16), ("LLaVA-Mini", 64), ("LLaVA-1.5", 36),
    ]  # fmt: skip
    assert (records[0]["a100_ms"], records[-1]["rtx_3090_ms"], records[-1]["times"]) == (38.64, 198.75, 1.0)
    assert records[0]["paper_times"] == pytest.approx(113.04 / 38.64, abs=1e-4)


def test_keys_and_values_that_are_held_are_those_that_are_counted(report: Report) -> None:
    ours, llava = table_of(report, "memory_held").records
    assert ours["measured_mb"] == ours["counted_mb"]
    assert llava["measured_mb"] == pytest.approx(llava["counted_mb"])


def test_the_rate_of_images_is_beside_that_of_llava(report: Report) -> None:
    images, *others = table_of(report, "rates").records
    assert images["ratio"] == pytest.approx(float(images["llava_mini"] or 0) / float(images["llava_15"] or 1), rel=0.01)
    assert {other["llava_15"] for other in others} == {None}


def test_json_markdown_and_the_page_hold_every_figure(report: Report) -> None:
    told = json.loads(json.dumps(report.whole()))
    assert [table["name"] for table in told["tables"]] == NAMES
    text = markdown(report, {"One image to the first token": "a.svg"})
    shown = page(report, {"One image to the first token": b"<svg/>"})
    assert text.count("![") == shown.count("<img") == 1
    for table in report.tables:
        assert (f"## {table.title}\n" in text, f"<h2>{escape(table.title)}</h2>" in shown) == (True, True)
        for row in table.cells():
            assert "| " + " | ".join(row) + " |" in text
            assert all(f">{escape(cell)}</td>" in shown for cell in row)
    checker = Balanced()
    checker.feed(shown)
    assert (checker.open, checker.loads) == ([], [])


class Balanced(HTMLParser):
    """Elements that are not closed, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_strangers_name_is_text_in_every_format() -> None:
    table = Table("t", "<b>", (), (), ["<script>"])
    told = Report({"model": "<img src=x>"}, [table])
    assert "<img src=x>" not in page(told, {})
    assert "<script>" not in page(told, {})


# The command


@pytest.fixture
def made(report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the command has measured: the report that is there already."""
    asked: list[Any] = []

    def bench(options: ModelOptions, preset: str | None, tell: Any) -> Report:
        asked.append((options, preset))
        tell("measuring")
        return report

    monkeypatch.setattr(run, "bench", bench)
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_report_in_each_format(made: list[Any], report: Report) -> None:
    for suffix in ("json", "md", "html"):
        result = llava_mini("bench", "--preset", "demo", "-o", f"r.{suffix}", "--device", "cpu")
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        assert result.stderr == f"llava-mini: measuring\nllava-mini: the report is in r.{suffix}\n"
    assert made[0] == (ModelOptions("demo", device="cpu"), "demo")
    assert json.loads(Path("r.json").read_text()) == json.loads(json.dumps(report.whole()))
    drawn = sorted(path.name for path in Path().glob("*.svg"))
    assert drawn == ["r-flops.svg", "r-latency.svg", "r-memory.svg"]
    assert all(name in Path("r.md").read_text() for name in drawn)
    assert Path("r.html").read_text().count("data:image/svg+xml;base64,") == 3
    assert b"</svg>" in Path("r-flops.svg").read_bytes()


def test_without_a_file_json_is_printed_where_nobody_looks(made: list[Any]) -> None:
    for more in ((), ("-o", "-")):
        result = llava_mini("bench", "--preset", "proportions", "-q", *more)
        assert (result.exit_code, result.stderr) == (0, "")
        assert [table["name"] for table in json.loads(result.stdout)["tables"]] == NAMES
    assert made[0][1] == "proportions"


def test_a_preset_comes_before_a_model(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MINI_MODEL", "mine")
    assert llava_mini("bench", "--dtype", "bfloat16").exit_code == 0
    assert llava_mini("bench", "--preset", "hd").exit_code == 0
    assert made == [(ModelOptions("mine", dtype="bfloat16"), None), (ModelOptions("hd"), "hd")]


def test_tables_at_a_terminal(report: Report, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from llava_mini_cli.commands import bench as command

    monkeypatch.setenv("COLUMNS", "80")
    command._show(report)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert all(table.title in shown for table in report.tables)
    assert "198.8" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("", 2, "there is no model to measure: give --preset, such as --preset proportions, or --model"),
        ("--preset demo -o r.pdf", 2, "--output 'r.pdf': a report is .json, .md or .html"),
        ("--preset demo -o gone/r.md", 1, "cannot write 'gone/r.md': there is no folder 'gone'"),
        ("--preset demo --device banana", 2, "--device banana: no device has this name; .*"),
        ("--preset demo --device cuda:99", 2, "--device cuda:99: .*"),
        ("-m ./gone", 1, r"model \./gone: no such directory.*"),
        ("-m picture", 1, "picture: no config.json"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: str, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture").mkdir()
    (tmp_path / "picture" / "a.png").write_bytes(b"no checkpoint")
    result = llava_mini("bench", *arguments.split())
    assert re.fullmatch(f"llava-mini: error: {line}\n", result.stderr), result.stderr
    assert (result.exit_code, result.stdout) == (code, "")


@pytest.mark.usefixtures("decoded")
def test_a_checkpoint_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny")
    options = ModelOptions(str(tmp_path / "tiny"), device="cpu", dtype="float32")
    found = run.bench(options, None, lambda _: None)
    assert [table.name for table in found.tables] == NAMES
    assert all(table.records for table in found.tables)


# Little memory


def little(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(subject, "memory_of", lambda _: MemoryThere(size, "the machine"))


@pytest.mark.usefixtures("decoded")
def test_what_does_not_fit_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    little(monkeypatch, 1 << 30)
    said: list[str] = []
    found = run.bench(ModelOptions("llama-3.1-8b", device="cpu"), "llama-3.1-8b", said.append)
    (why,) = [line for line in said if "nothing of the model" in line]
    assert re.search(r"the model needs 1\d\.\d GiB of memory, and the machine leaves 1\.0 GiB$", why)
    assert [table.name for table in found.tables] == NAMES
    assert [table.name for table in found.tables if table.records] == ["flops", "memory", "decode"]
    assert all(table.notes[0].startswith("Not measured: ") for table in found.tables if not table.records)
    assert str(found.facts["measured"]).startswith("no: the model needs")


@pytest.mark.usefixtures("decoded")
def test_a_table_for_which_memory_ran_out_is_left_out(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "flops_table", lambda *_: table_of(report, "flops"))  # of the same shape

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(speed_tables, "llava_answer", full)
    found = run.bench(ModelOptions("demo", device="cpu", dtype="float32"), "demo", lambda _: None)
    left = {table.name: table.notes for table in found.tables if not table.records}
    assert left == {name: ["Not measured: memory ran out."] for name in ("latency", "memory_held")}
    assert table_of(found, "rates").records[0]["llava_15"] is None


def test_without_an_encoder_decoding_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/nowhere/ffmpeg")
    found = run._decoding(1)
    assert found.name == "decode"
    assert found.notes == ["Not measured: [Errno 2] No such file or directory: '/nowhere/ffmpeg'."]


# What is measured


def test_every_preset_is_a_model() -> None:
    for name in PRESETS:
        assert LlavaMiniConfig.from_fields(preset_shape(name).fields).eos_token_id is None


def test_llava_has_our_weights_and_an_answer_its_whole_length() -> None:
    config = tiny_config()
    model = random_model(config, torch.float32, CPU)
    llava = llava_beside(model)
    assert llava.model.language_model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    assert llava.lm_head.weight is model.lm_head.weight
    ours = model.model.vision_tower.vision_tower.encoder.layers[0].mlp.fc1.weight
    assert llava.model.vision_tower.encoder.layers[0].mlp.fc1.weight is ours
    assert not [name for name, one in [*model.named_parameters(), *llava.named_parameters()] if one.is_meta]
    again = random_model(config, torch.float32, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_works_take_turns_and_the_first_go_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    clock = iter([9.0, 1.0, 2.0, 30.0, 5.0, 4.0, 3.0, 6.0])

    def seconds(work: Any, device: torch.device) -> float:
        work()
        return next(clock)

    monkeypatch.setattr(timing, "seconds", seconds)
    works = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    assert alternate(3, CPU, works) == {"a": 3.0, "b": 6.0}
    assert done == ["a", "b"] * 4
    clock = iter([9.0, 1.0])
    assert alternate(1, CPU, works, warm=True) == {"a": 9.0, "b": 1.0}
    clock = iter([7.0, 9.0, 8.0])
    assert alternate(1, CPU, {"a": lambda: None}, repeats=2) == {"a": 8.0}


def test_the_limit_is_of_the_layers_that_are_used() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4), torch.nn.Linear(4, 8))
    products = LayerProducts(layers, lambda: layers(torch.zeros(2, 3, 4)))
    assert dict(products.calls) == {((6, 4, 8), torch.float32): 2, ((6, 8, 4), torch.float32): 1}
    assert products.flops == 3 * 2 * 6 * 4 * 8
    taken = dict.fromkeys(products.works(CPU), 4.0)  # of four multiplications each
    assert products.whole(taken) == 3.0
    for work in products.works(CPU).values():
        work()


def test_a_large_weight_has_no_copies() -> None:
    assert timing._copies((1, 1 << 14, 1 << 14), torch.float32) == 1
    assert timing._copies((1, 64, 64), torch.float32) == timing.COLD


def test_repeated_frames_are_as_many_as_asked_for() -> None:
    source = RepeatedFrames(70, 8)
    assert [len(chunk.pixels) for chunk in source] == [32, 32, 6]
    assert [float(chunk.times[0]) for chunk in source] == [0.0, 32.0, 64.0]


def test_a_slow_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject_of_preset("demo", ModelOptions("demo", device="cpu", dtype="float32"))
    monkeypatch.setattr(subject, "ROUNDS", 3)
    assert (made.is_slow, made.rounds) == (False, 3)
    monkeypatch.setattr(subject, "SLOW_NUMBERS", 1000)
    assert (made.is_slow, made.rounds) == (True, 1)
    made.device = torch.device("cuda")
    assert made.rounds == 3
