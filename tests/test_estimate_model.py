"""Estimates from made-up rates and pieces: what is added up, what is kept, and what doctor and a dry run make of it."""

import json
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configured_cli import llava_mini
from tiny_checkpoints import tiny_config, write_tiny_checkpoint
from torch import nn

from llava_mini_cli.commands.doctor import outlook_lines
from llava_mini_cli.commands.times import in_words
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine import estimating, flops, outlook, overhead, prepared, timed_engine
from llava_mini_cli.engine.estimate import (
    Estimate,
    Estimates,
    FormatOutlook,
    Outlook,
    RunWork,
    keep_estimates,
    kept_estimates,
)
from llava_mini_cli.engine.fit import Need, needs
from llava_mini_cli.engine.overhead import LeftOut, Pieces, stand_in
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.packed_linear import Int8Linear
from llava_mini_cli.engine.quantize import Packing
from llava_mini_cli.engine.rates import Rates
from llava_mini_cli.engine.timed_engine import Texts, TimedEngine
from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.schema.read_schema import answer_schema
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.checkpoint import load_config, look_at_weights
from llava_mini_cli.pipelines import model_outlook
from llava_mini_cli.pipelines.footprint import Footprint
from llava_mini_cli.pipelines.forecast import RunTime, forecast
from llava_mini_cli.pipelines.health import Fact
from llava_mini_cli.pipelines.settings import RunOptions

E = Estimate(
    load=5.0, picture=3.0, frame=2.0, frame_question=0.5,
    medium=1.0, position=0.125, question=0.25, step=0.5, row=0.0625,
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llava-mini" / "estimates"


def test_what_a_person_asks_about_is_the_sum_of_its_pieces() -> None:
    assert E.image == 4.0
    assert E.minute == 60 * 2.0 + 1.0 + 59 * 0.125
    assert (E.answer(), E.answer(2)) == (32.0, 1.0)
    assert (E.further_question(), E.further_question(8)) == (0.5 + 0.25 + 4.0, 1.25)


def test_a_run_is_the_sum_of_all_of_its_media() -> None:
    took = E.run(RunWork(media=2, frames=10, frame_questions=20, rows=6, new_tokens=4))
    assert took.load == 5.0
    assert took.frames == 10 * 2.0 + 20 * 0.5
    assert took.answers == 2 * 1.0 + 8 * 0.125 + 4 * 0.25 + 4 * (0.5 + 5 * 0.0625)
    assert took.total == took.load + took.frames + took.answers
    chosen = E.run(RunWork(2, 10, 20, rows=6, new_tokens=4, chosen_rows=5, choice_tokens=48))
    assert chosen.answers == 2 * 1.0 + 8 * 0.125 + 4 * 0.25 + 48 * 0.25 / 24 + 4 * 0.5
    none = E.run(RunWork(2, 10, 20, rows=6, new_tokens=4, chosen_rows=6))
    assert none.answers == 2 * 1.0 + 8 * 0.125 + 4 * 0.25  # no step at all
    many = E.run(RunWork(media=65, frames=65, frame_questions=0, rows=65, new_tokens=1))
    assert many.answers == 65 * 1.0 + 2 * 0.5 + 63 * 0.0625  # no more than 64 answers share a step


# Kept


def model(folder: Path, content: bytes = b"{}", weights: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(b"x" * weights)
    return folder


def test_estimates_are_kept_by_model(tmp_path: Path, cache: Path) -> None:
    here = model(tmp_path / "m")
    assert kept_estimates(here) is None
    found = Estimates("bfloat16", {"float32": E, "bfloat16": replace(E, load=1.0)})
    keep_estimates(here, found)
    assert kept_estimates(here) == found
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept_estimates(model(tmp_path / "copy")) == found
    assert kept_estimates(model(tmp_path / "other", b'{"a": 1}')) is None
    assert kept_estimates(model(tmp_path / "larger", weights=4)) is None
    keep_estimates(here, Estimates(None, {}))
    assert kept_estimates(here) == Estimates(None, {})


@pytest.mark.parametrize("change", [{"load": -1.0}, {"load": "1"}, {"load": True}, {"more": 1.0}])
def test_numbers_that_cannot_be_are_unknown(tmp_path: Path, cache: Path, change: dict[str, object]) -> None:
    here = model(tmp_path / "m")
    keep_estimates(here, Estimates("float32", {"float32": E}))
    (file,) = cache.iterdir()
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"formats": {"float32": asdict(E) | change, "bfloat16": asdict(E), "x": 1}}))
    assert kept_estimates(here) == Estimates("float32", {"bfloat16": E})
    for damage in ({"formats": []}, {"auto": "float64"}, {"auto": 1}):
        file.write_text(json.dumps(fields | damage))
        assert kept_estimates(here) is None


def test_of_two_measurements_the_lesser_numbers_count() -> None:
    old = Estimates("int8", {"float32": replace(E, load=4.0, step=9.0, row=0.03125), "int8": E})
    assert Estimates("bfloat16", {"float32": E}).least(old) == Estimates(
        "bfloat16", {"float32": replace(E, row=0.03125), "int8": E}
    )  # loading takes what it takes now
    assert old.least(None) is old


# Measured


class SomePieces:
    """Pieces that take made-up seconds, whatever the model: thousandths of frames, questions, tokens and positions."""

    def request(self, frames: int, questions: int, tokens: int) -> float:
        return (100 + 8 * frames + 4 * questions + (tokens - 1) * (3 + 2 * questions)) / 1024

    def fuse(self, frames: int, questions: int) -> float:
        return (frames + questions) / 1024

    def prefill(self, positions: int, questions: int) -> float:
        return (positions + 2 * questions) / 1024


RATES = Rates(
    (8, 8),
    {
        "float32 mkl": (1.0, 2.0, 4.0),
        "float32 onednn": (2.0, 2.0, 8.0),
        "bfloat16 onednn": (0.5, 1.0, 2.0),
        "int8 onednn": (0.25, 0.5, 1.0),
    },
)


def total(products: list[flops.WeightProduct], kind: Any, rest: Any) -> float:
    return sum(
        one.times * (RATES.seconds(kind if one.is_packed else rest, one.rows, one.elements) or 0) for one in products
    )


@pytest.mark.parametrize(("kind", "rest"), [("float32", "float32"), ("int8", "bfloat16")])
def test_products_by_their_rates_and_pieces_are_added(kind: Any, rest: Any) -> None:
    config, pieces = tiny_config(), SomePieces()
    found = estimating.estimate(config, kind, rest, RATES, pieces, 7.0)  # pyright: ignore[reportArgumentType]
    assert found is not None

    def spoken(positions: int, rows: int) -> float:
        return total(flops.language_model(config, positions, rows), kind, rest)

    one, nine = (total(flops.prefusion(config, 1, 36 + count * 24), kind, rest) for count in (1, 9))
    seen = total(flops.tower(config, 1) + flops.projection(config, 1), kind, rest)
    position = (256 / 1024 + spoken(36 + 256, 0) - spoken(36, 0)) / 256
    assert found.load == 7.0
    assert found.position == pytest.approx(position)
    assert found.image == pytest.approx(112 / 1024 + seen + one + spoken(36 + 24, 1))
    assert found.frame + position == pytest.approx(8 / 1024 + seen + one + spoken(37 + 24, 1) - spoken(36 + 24, 1))
    assert found.picture == pytest.approx(found.frame)
    assert found.step == pytest.approx(5 / 1024 + spoken(1, 1))
    assert found.step + 8 * found.row == pytest.approx(21 / 1024 + spoken(9, 9))
    further = 4 / 1024 + (nine - one + spoken(36 + 9 * 24, 9) - spoken(36 + 24, 1)) / 8
    assert found.frame_question == pytest.approx(1 / 1024 + (nine - one) / 8)
    assert found.question == pytest.approx(further - found.frame_question)


def test_what_was_not_measured_is_not_guessed() -> None:
    config, pieces = tiny_config(), SomePieces()
    given: Any = pieces
    assert estimating.estimate(config, "int4", "bfloat16", RATES, given, 0.0) is None
    assert estimating.estimate(config, "int8", "float16", RATES, given, 0.0) is None


@pytest.mark.parametrize(("long", "asked"), [(1.0, (8, 16, 65)), (112 / 1024, (1, 2, 9))])
def test_requests_are_shorter_where_a_picture_takes_long(
    long: float, asked: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, heard = SomePieces(), list[tuple[int, int, int]]()
    plain = given.request
    monkeypatch.setattr(given, "request", lambda *one: heard.append(one) or plain(*one))
    monkeypatch.setattr(estimating, "LONG_S", long)
    found = estimating.estimate(tiny_config(), "float32", "float32", None, given, 0.0)  # pyright: ignore
    first, second, tokens = asked
    assert set(heard) == {(1, 1, 1), (1, 9, 1), (first, 1, 1), (second, 1, 1), (1, 1, tokens), (1, 9, tokens)}
    assert found is not None
    assert (found.frame, found.step, found.image) == (7 / 1024, 5 / 1024, 112 / 1024)


def test_a_small_model_is_its_requests_alone() -> None:
    given: Any = SomePieces()
    found = estimating.estimate(tiny_config(), "float32", "float32", None, given, 0.0)
    assert found is not None
    assert (found.position, found.frame) == (1 / 1024, 7 / 1024)
    assert (found.image, found.minute) == (112 / 1024, pytest.approx((104 + 60 * 8) / 1024))
    assert (found.step, found.row) == (5 / 1024, 2 / 1024)
    assert (found.frame_question, found.question) == (1 / 1024, 3 / 1024)


class ShrinkingPieces(SomePieces):
    """Pieces of which the larger ones were measured at a better moment."""

    def request(self, frames: int, questions: int, tokens: int) -> float:
        return 8 / (frames * questions * tokens)

    def fuse(self, frames: int, questions: int) -> float:
        return 1 / questions

    def prefill(self, positions: int, questions: int) -> float:
        return 1 / positions


def test_nothing_takes_less_than_no_time() -> None:
    given: Any = ShrinkingPieces()
    found = estimating.estimate(tiny_config(), "float32", "float32", None, given, 0.0)
    assert found is not None
    assert min(asdict(found).values()) == 0.0
    assert found.image == 8.0


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> LlavaMiniProcessor:
    return LlavaMiniProcessor.from_pretrained(str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")))


@pytest.mark.parametrize("products", [False, True])
def test_pieces_are_the_engines_own_work(
    products: bool, processor: LlavaMiniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(work: Any) -> float:
        work()
        return 2.0

    monkeypatch.setattr(overhead, "_least", once)
    monkeypatch.setattr(overhead, "CUT_LAYERS", 1)
    monkeypatch.setattr(TimedEngine, "seconds", lambda self, *request: 100.0)
    config = tiny_config()
    pieces = Pieces(config, "bfloat16", "bfloat16", Texts(5, 3), processor, processor.prompts(), products=products)
    tower, layers = (1, 1) if products else (flops.tower_layers(config), config.num_hidden_layers)
    assert (tower, layers) == (1, 1) or tower > 1 < layers
    assert pieces.request(2, 3, 1) == 100.0 + 2.0 * (tower - 1) + 2.0 * (layers - 1)
    assert pieces.request(2, 3, 5) == 100.0 + 2.0 * (tower - 1) + (2.0 + 4 * 2.0) * (layers - 1)
    assert pieces.fuse(2, 3) == 2.0
    assert pieces.prefill(6, 2) == 2.0 * layers
    monkeypatch.setattr(overhead, "_least", lambda work: 9.0)
    assert pieces.fuse(2, 3) == 2.0  # once
    assert pieces.fuse(2, 2) == 9.0


@pytest.mark.parametrize("products", [False, True])
def test_requests_are_timed_whole(
    products: bool, processor: LlavaMiniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ticks = iter(range(1000))
    monkeypatch.setattr(timed_engine.time, "perf_counter", lambda: 3.0 * next(ticks))
    prompts = processor.prompts()

    class Heard:
        def question_ids(self, question: str) -> list[int]:
            asked.append(question)
            return prompts.question_ids(question)

        def answer_text(self, ids: list[int]) -> str:
            return prompts.answer_text(ids)

    config = tiny_config()
    config.max_position_embeddings = 16  # with which no such request would fit
    model = stand_in(config, "float32", "float32", products=products)
    engine = TimedEngine(model, processor, Heard(), Texts(5, 3))
    known = [engine.seconds(1, 1, 1), engine.seconds(3, 2, 70)]
    assert engine._engine.frames_encoded == 1 + 3  # each took long, and so was made once
    assert [engine.seconds(1, 1, 1), engine.seconds(3, 2, 70)] == known
    assert len(asked) == len(set(asked)) + 1 == 3
    (group,) = pack_prompts([engine._engine.prompts.question_ids(one) for one in set(asked)]).groups
    assert len(group.tails) == 2
    assert all(0 <= one < model.config.vocab_size for one in engine._engine.prompts.question_ids("a") if one > 0)


def test_products_are_left_out_or_packed() -> None:
    config = tiny_config()
    without = stand_in(config, "bfloat16", "bfloat16", products=False)
    assert not any(type(module) is nn.Linear for module in without.modules())
    assert isinstance(without.lm_head, LeftOut)
    assert not without.lm_head(torch.zeros(2, config.hidden_size)).any()
    assert without.lm_head(torch.zeros(2, 1, config.hidden_size)).shape == (2, 1, config.vocab_size)
    packed = stand_in(config, "int8", "float32", products=True)
    linear = [module for module in packed.modules() if isinstance(module, Int8Linear)]
    kept = [module for module in packed.model.compressor.modules() if isinstance(module, nn.Linear)]
    count = sum(type(module) is nn.Linear for module in LlavaMiniForConditionalGeneration(config).modules())
    assert (len(linear), len(kept)) == (count, 1)
    assert packed.model.norm.weight.dtype == torch.float32


def test_the_time_of_a_piece_is_the_least_and_a_long_one_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    def least(*seconds: float) -> tuple[float, int]:
        clock, left = Clock(), list(seconds)
        monkeypatch.setattr(overhead, "time", clock)

        def work() -> None:
            clock.now += left.pop(0)

        return overhead._least(work), len(seconds) - len(left)

    assert least(0.25, 0.125, 9.0) == (0.125, 2)
    assert least(*[0.0078125] * 30) == (0.0078125, 20)
    assert least(2.0, 1.0) == (2.0, 1)


# Loading


def test_only_what_is_not_in_memory_is_read_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file, size in zip(files, (3 << 20, 1 << 20), strict=True):
        file.write_bytes(bytes(size))
    assert estimating._places({files[0]: 30, files[1]: 10}, 4) == [
        (files[0], 0), (files[0], 10), (files[0], 20), (files[1], 0),
    ]  # fmt: skip
    monkeypatch.setattr(estimating, "_is_in_memory", lambda file, place: True)
    assert estimating.reading_seconds(files) == 0.0
    monkeypatch.setattr(estimating, "_is_in_memory", lambda file, place: file == files[0])
    read: list[Path] = []
    monkeypatch.setattr(estimating, "_read", lambda file, place: read.append(file) or 1 << 20)
    ticks = iter([0.0, 8.0])  # 16 reads of a mebibyte: 2 a second
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: next(ticks))
    assert estimating.reading_seconds(files) == 0.5
    assert read == [files[1]] * 16


def test_weights_that_stay_in_their_files_take_no_time() -> None:
    stored = {"a": torch.zeros(4, 4), "b": torch.zeros(8, 8, dtype=torch.bfloat16)}
    assert estimating.converting_seconds(stored, Need("bfloat16", 0, 9, 0, 0), "bfloat16") == 0.0
    for kind, packed in (("float32", 0), ("int8", 1 << 20), ("int4", 1 << 20), ("int8", 0)):
        assert estimating.converting_seconds(stored, Need(kind, 1 << 20, 9, 0, 0, packed), "bfloat16") > 0.0


def test_weights_are_packed_for_the_kernel_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[tuple[torch.dtype, str | None]] = []
    clock = iter(range(100))
    monkeypatch.setattr(
        estimating.Int8Linear, "from_weight", lambda weight, bias, kernel: packed.append((weight.dtype, kernel))
    )
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: float(next(clock)))
    stored = {"a": torch.zeros(4, 4, dtype=torch.bfloat16)}
    need = Need("int8", own=24 << 20, mapped=0, scratch=0, work=0, packed=16 << 20)
    seconds = estimating.converting_seconds(stored, need, "bfloat16", "onednn")
    assert packed == [(torch.bfloat16, "onednn")]
    assert seconds == (16 << 20) / estimating.SAMPLE_ELEMENTS + (8 << 20) / 2 / estimating.SAMPLE_ELEMENTS


def test_prepared_weights_are_mapped_and_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "model")
    stored = look_at_weights(checkpoint, load_config(checkpoint))
    assert outlook._prepared_file(str(checkpoint), stored, "int8", None) is None
    monkeypatch.setattr(prepared, "WORTH_S", 0.0)
    with prepared.prepared_supply(ModelOptions(str(checkpoint)), "int8", "onednn") as supply:
        LlavaMiniForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, maker=Packing("int8", torch.float32, "onednn", supply)
        )
    there = outlook._prepared_file(str(checkpoint), stored, "int8", None)
    assert there is not None
    assert there.is_file()
    assert outlook._prepared_file(str(checkpoint), stored, "int4", None) is None
    assert outlook._prepared_file(str(checkpoint), stored, "float32", None) is None
    assert outlook._opening_seconds(there) > 0
    fields = load_config(checkpoint).to_dict()
    without, with_it = (needs(fields, stored, ["int8"], "float32", is_prepared=one)["int8"] for one in (False, True))
    assert (with_it.own, with_it.mapped) == (without.own - without.packed, without.mapped + without.packed)
    assert (with_it.packed, with_it.scratch) == (0, 0)
    assert without.packed > 0 < without.scratch
    measuring = outlook._Measuring(load_config(checkpoint), None, stored, None, 0.0)  # pyright: ignore
    monkeypatch.setattr(outlook, "converting_seconds", lambda stored, need, rest, kernel: float(need.packed))
    monkeypatch.setattr(outlook, "reading_seconds", lambda files: 0.0)
    assert measuring._loading(without, "float32", None) > without.packed - 1
    assert measuring._loading(with_it, "float32", there) < 1


# Told


def test_times_in_words() -> None:
    told = {
        0.004: "0.00 s",
        0.05: "0.05 s",
        1.26: "1.3 s",
        9.96: "10.0 s",
        10.4: "10 s",
        59.6: "1 min",
        200: "3 min 20 s",
    }
    told |= {
        3560: "59 min 20 s",
        3599: "1 h",
        3600: "1 h",
        7530.0: "2 h 6 min",
        86400.0 * 3 + 3600 * 4: "3 d 4 h",
        90000: "1 d 1 h",
    }
    assert {seconds: in_words(seconds) for seconds in told} == told


def test_the_table_of_doctor() -> None:
    there = MemoryThere(24 << 30, "the memory of this machine")
    formats = FormatOutlook("float32", 37 << 30, False, None), FormatOutlook("bfloat16", 19 << 30, True, E)
    lines = outlook_lines(Outlook("cpu", there, "bfloat16", formats))
    assert lines[:6] == [
        "",
        "format    needs     fits  loading  image  minute of video  answer  next question",
        "float32   37.0 GiB  no    -        -      -                -       -",
        "bfloat16  19.0 GiB  yes   5.0 s    4.0 s  2 min 8 s        32 s    4.8 s",
        "",
        "the memory of this machine leaves 24.0 GiB; bfloat16 is taken where none is asked for",
    ]
    assert "answer: of 64 tokens" in lines[-1]
    card = outlook_lines(Outlook("cuda:0", None, None, formats[:1]))
    assert card[-2] == "nobody tells how much memory there is; no format fits"
    assert card[-1] == "how long anything takes is measured on a CPU alone, not on cuda:0"


@pytest.mark.parametrize("given", [("doctor",), ("doctor", "-m", "demo")])
def test_doctor_measures_a_model_that_is_named(given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    facts, asked = [Fact("model", "x")], list[str]()
    there = MemoryThere(24 << 30, "the memory of this machine")
    found = Outlook("cpu", there, "float32", (FormatOutlook("float32", 1 << 30, True, E),))

    def measured(model: str) -> Outlook:
        asked.append(model)
        if len(asked) > 1:
            raise CheckpointError("damaged")
        return found

    monkeypatch.setattr("llava_mini_cli.pipelines.health.examine", lambda model: facts)
    monkeypatch.setattr("llava_mini_cli.pipelines.model_outlook.measured_outlook", measured)
    result = llava_mini(*given)
    named = len(given) > 1
    lines = ["model  x", *(outlook_lines(found) if named else [])]
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, lines, "")
    again = llava_mini(*given)
    wrong = (1, "llava-mini: error: damaged\n") if named else (0, "")
    assert (again.exit_code, again.stderr) == wrong
    assert asked == (["demo", "demo"] if named else [])
    facts.append(Fact("torch", "missing", "get it"))
    assert llava_mini(*given).exit_code == 1
    assert len(asked) == (2 if named else 0)  # nothing is measured where something is missing


def test_a_model_that_fits_in_no_format_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Outlook("cpu", MemoryThere(1 << 30, "x"), None, (FormatOutlook("int8", 9 << 30, False, None),))
    monkeypatch.setattr("llava_mini_cli.pipelines.health.examine", lambda model: [Fact("model", "x")])
    monkeypatch.setattr("llava_mini_cli.pipelines.model_outlook.measured_outlook", lambda model: found)
    result = llava_mini("doctor", "-m", "demo")
    assert result.exit_code == 1
    assert result.stderr == "llava-mini: error: model demo: no format of its weights fits the memory\n"


# A dry run

HEADERS = {
    "p.png": ClipInfo("p", "image", 4, 3, None, None, None),
    "v.mp4": ClipInfo("v", "video", 4, 3, 9.0, None, None),
}
PRINT = Footprint(tokens_per_frame=4, context=50, position_bytes=100, token_bytes=7, weights_bytes=999)


def told(estimates: Estimates | None, fit: bool = False, **options: Any) -> RunTime | None:
    """What a dry run tells of one picture and one video of 9 frames, three questions each."""
    made = RunOptions(ModelOptions("m", **options), SamplingOptions(fit=fit), GenerationOptions(max_new_tokens=20))
    jobs = [Job(path, path, tuple(Question(Prompt(str(n)), path) for n in range(3))) for path in HEADERS]
    return forecast(iter(jobs), made, lambda path, _: HEADERS[path], PRINT, estimates).time


def test_a_dry_run_adds_up_what_was_measured() -> None:
    known = Estimates("bfloat16", {"bfloat16": E, "int8": replace(E, load=9.0)})
    took = E.run(RunWork(media=2, frames=10, frame_questions=20, rows=6, new_tokens=20))
    assert told(known) == RunTime(took.load, took.frames, took.answers, took.total, "bfloat16", 20)
    fitted = E.run(RunWork(media=2, frames=8, frame_questions=16, rows=6, new_tokens=20))
    assert told(known, fit=True) == RunTime(fitted.load, fitted.frames, fitted.answers, fitted.total, "bfloat16", 20)
    of_int8 = told(known, quantize="int8")
    assert of_int8 is not None
    assert (of_int8.format, of_int8.load) == ("int8", 9.0)


@pytest.mark.parametrize("written", [True, False])
def test_a_dry_run_knows_that_a_choice_is_not_written(written: bool) -> None:
    made = RunOptions(ModelOptions("m"), SamplingOptions(), GenerationOptions(max_new_tokens=20))
    prompts = [Prompt("a", None, ("day", "a night")), Prompt("b") if written else Prompt("b", None, ("é" * 5, "x"))]
    job = Job("v.mp4", "v.mp4", tuple(Question(prompt, "v.mp4") for prompt in prompts))
    found = forecast(iter([job]), made, lambda path, _: HEADERS[path], PRINT, Estimates("int8", {"int8": E}))
    tokens = (1 + 1) + (1 + 3)
    if not written:
        tokens += (1 + 4) + (1 + 1)
    took = E.run(RunWork(1, 9, 9, 2, 20, 1 if written else 2, tokens))
    assert found.time == RunTime(took.load, took.frames, took.answers, took.total, "int8", 20 if written else 0)
    assert found.longest is not None
    assert found.longest.memory_bytes == PRINT.memory_bytes(9, 1 if written else 0, 20)
    assert found.too_long == (1 if written else 0)  # 36 positions of 50


def test_a_dry_run_counts_the_choices_of_every_stretch() -> None:
    made = RunOptions(
        ModelOptions("m"), SamplingOptions(), GenerationOptions(max_new_tokens=20), spans=SpanOptions(every=3.0)
    )
    prompts = Prompt("a", None, ("day", "a night")), Prompt("b")
    job = Job("v.mp4", "v.mp4", tuple(Question(prompt, "v.mp4") for prompt in prompts))
    found = forecast(iter([job]), made, lambda path, _: HEADERS[path], PRINT, Estimates("int8", {"int8": E}))
    took = E.run(RunWork(1, 9, 9, 6, 20, chosen_rows=3, choice_tokens=3 * ((1 + 1) + (1 + 3))))
    assert found.rows == 6
    assert found.time == RunTime(took.load, took.frames, took.answers, took.total, "int8", 20)


def test_a_dry_run_counts_every_field_of_a_schema() -> None:
    made = RunOptions(
        ModelOptions("m"), SamplingOptions(), GenerationOptions(max_new_tokens=20), spans=SpanOptions(every=3.0)
    )
    made = replace(made, schema=answer_schema("a day|a night, b str"))
    job = Job("v.mp4", "v.mp4", (Question(Prompt(""), "v.mp4"), Question(Prompt("c"), "v.mp4")))
    found = forecast(iter([job]), made, lambda path, _: HEADERS[path], PRINT, Estimates("int8", {"int8": E}))
    took = E.run(RunWork(1, 9, 27, 12, 20, chosen_rows=6, choice_tokens=6 * ((1 + 1) + (1 + 3))))
    assert found.rows == 6
    assert found.time == RunTime(took.load, took.frames, took.answers, took.total, "int8", 20)
    assert found.longest is not None
    assert found.longest.memory_bytes == PRINT.memory_bytes(9, 2, 20)


def test_a_dry_run_says_nothing_of_what_was_not_measured() -> None:
    known = Estimates("bfloat16", {"bfloat16": E})
    assert told(None) is None
    assert told(Estimates(None, {"bfloat16": E})) is None
    assert told(known, dtype="float32") is None
    assert told(known, quantize="int4") is None
    assert told(known, device="cuda:0") is None


def test_nothing_to_do_takes_no_time() -> None:
    made = RunOptions(ModelOptions("m"), SamplingOptions(), GenerationOptions())
    found = forecast(iter([]), made, lambda path, _: HEADERS[path], None, Estimates("int8", {"int8": E}))
    assert found.time == RunTime(0.0, 0.0, 0.0, 0.0, "int8", 512)


def test_starting_is_timed_in_a_process_that_imports_nothing_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typer.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert model_outlook.starting_seconds() > 0
    assert not (tmp_path / "ran").exists()
