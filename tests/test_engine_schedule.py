"""The order of the engine's work: what waits, what is taken together, what is let go, and what it is loaded with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine import engine as engine_module
from llava_mini_cli.engine import frame_encoder
from llava_mini_cli.engine import load as load_module
from llava_mini_cli.engine import quantize as quantize_module
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.llm import own_model, token_decoder
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.kv_cache import RowCache
from llava_mini_cli.engine.load import load_engine, make_engine
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.engine.scheduler import Limits, Load, choose
from llava_mini_cli.engine.similarity import ROWS, scan_batches, scan_file
from llava_mini_cli.errors import UsageError


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each prefill has, as they come."""
    sizes: list[int] = []
    real = own_model.prefill

    def prefill(model: Any, items: Any) -> Any:
        sizes.append(len(items))
        return real(model, items)

    monkeypatch.setattr(own_model, "prefill", prefill)
    return sizes


@pytest.mark.parametrize(
    ("generations", "short", "sizes"),
    [(64, 512, [4]), (4, 512, [2, 2]), (3, 512, [1, 1, 1, 1]), (64, 4, [3, 1]), (64, 3, [2, 1, 1])],
)
def test_short_prefixes_are_prefilled_together(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, batches: list[int], generations: int, short: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(engine_module, "SHORT_PREFIX", short)
    wanted = [request(str(frames), oracle.video(frames, 0), QUESTIONS[:2]) for frames in (2, 3, 4, 5)]
    outcomes = list(oracle.engine(limits(14, generations)).run(wanted))
    assert len([one for one in outcomes if isinstance(one, Answer)]) == 8
    assert batches == sizes


def test_an_engine_has_room_until_its_media_are_as_many_as_the_limit(oracle: Oracle) -> None:
    engine = oracle.engine(limits(chunk=1, media=2))
    sources = [ArrayFrames(oracle.video(1, 0), not_ready=3) for _ in range(2)]
    for number, source in enumerate(sources):
        assert engine.has_room()
        engine.add(Request(str(number), "image", source, QUESTIONS[:1], GREEDY))
    assert not engine.has_room()
    assert engine.is_waiting
    assert not engine.is_idle
    engine.add(Request("bad", "image", ArrayFrames(oracle.video(1, 0)), ("",), GREEDY))
    assert not engine.is_waiting  # there is something to hand out
    assert [one.key for one in engine.step()] == ["bad"]
    engine.close()
    assert all(source.closed for source in sources)
    assert engine.is_idle


def test_an_engine_that_waits_takes_frames_that_are_not_ready(oracle: Oracle) -> None:
    engine = oracle.engine(limits(chunk=2))
    engine.add(Request("v", "video", ArrayFrames(oracle.video(3, 0), not_ready=10**6), QUESTIONS[:1], GREEDY))
    engine.add(Request("w", "video", ArrayFrames(oracle.video(3, 0), not_ready=10**6), QUESTIONS[:1], GREEDY))
    assert engine.step() == []
    assert engine.frames_encoded == 2
    assert engine.step() == []
    assert engine.frames_encoded == 3  # the first medium's last frame; nobody waits for the second meanwhile


def test_a_chunk_that_does_not_fit_is_halved_from_then_on(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = frame_encoder.encode, list[int]()

    def small(model: Any, pixels: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("too much")
        return real(model, pixels, *rest)

    monkeypatch.setattr(frame_encoder, "encode", small)
    list(oracle.engine(limits(8)).run([request("v", oracle.video(15, 0), QUESTIONS[:1])]))
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 1]
    monkeypatch.setattr(frame_encoder, "encode", lambda *_: small(None, torch.zeros(4)))
    (failure,) = oracle.engine(limits(4)).run([request("v", oracle.video(1, 0), QUESTIONS[:1])])
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", "out_of_memory")
    assert "one frame does not fit" in failure.message


def test_windows_that_do_not_fit_together_are_prefilled_in_halves(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = own_model.prefill, list[int]()

    def small(model: Any, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 1:
            raise torch.OutOfMemoryError("too much")
        return real(model, items)

    monkeypatch.setattr(own_model, "prefill", small)
    wanted = [request(str(seed), oracle.video(1, seed), QUESTIONS[:1]) for seed in range(3)]
    outcomes = list(oracle.engine(limits(8)).run(wanted))
    assert all(isinstance(one, Answer) for one in outcomes)
    assert sizes == [3, 1, 2, 1, 1]

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(own_model, "prefill", never)
    (failure,) = oracle.engine(limits(8)).run(wanted[:1])
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.message) == ("generate", "the frames and prompts do not fit the memory")


def test_media_without_questions_left_are_freed_once_they_are_half(oracle: Oracle) -> None:
    decoder = oracle.engine(limits())._llm.decoder
    cache = RowCache(torch.zeros(4, dtype=torch.int64), torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]))

    def live(*rows: int) -> list[Generation]:
        nothing: Any = None
        return [Generation(nothing, cache, row) for row in rows]

    assert not decoder._shrink([])
    assert not decoder._shrink(live(1, 2, 6))
    assert cache.own_lengths.shape == (4, 2)
    kept = live(7, 1)
    assert decoder._shrink(kept)
    assert cache.own_lengths.tolist() == [[1, 2], [7, 8]]
    assert [one.row for one in kept] == [3, 1]


def test_limits_are_chosen_for_the_device(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**options: Any) -> tuple[int, int, int, int]:
        found = make_engine(oracle.model, oracle.processor, ModelOptions("x", **options), "r").limits
        return found.chunk_frames, found.generations, found.media, found.cache_bytes

    assert chosen() == (8, 64, 64, 4 << 30)
    assert chosen(batch_size=100) == (100, 64, 100, 4 << 30)
    engine = make_engine(oracle.model, oracle.processor, ModelOptions("name", prompt_layout="reference"), "r")
    assert (engine.model_revision, engine.prompts.layout) == ("r", "reference")


def test_a_device_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device nowhere: no device has this name"):
        load_engine(ModelOptions("x", device="nowhere"))


def test_the_revision_is_the_name_of_a_hub_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, revision in (("snapshots", "abc"), ("models", None)):
        monkeypatch.setattr(load_module, "find_model", lambda *_, folder=folder: tmp_path / folder / "abc")
        assert load_module._revision(ModelOptions("x")) == revision


def test_what_torchao_cannot_do_is_a_usage_error(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantize_module.CONFIGURATIONS, "int8", "sum_of_nothing")
    monkeypatch.setattr(
        "torchao.quantization.sum_of_nothing",
        lambda: (_ for _ in ()).throw(ValueError("no kernel\nmore")),
        raising=False,
    )
    with pytest.raises(UsageError, match=r"--quantize int8: not to be had for torch.float32 on cpu \(no kernel\)"):
        quantize_module._reduce(oracle.model, "int8")  # pyright: ignore[reportPrivateUsage]  as on a GPU


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_similarities_are_exact_however_many_threads_share_them(tmp_path: Path, threads: int) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((2 * ROWS + 77, 24)).astype(np.float16)
    query = generator.standard_normal(24).astype(np.float32)
    path = tmp_path / "vectors"
    path.write_bytes(vectors.tobytes())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = scan_file(path, len(vectors), query)
        assert torch.get_num_threads() == threads
        with pytest.raises(EOFError):
            scan_file(path, len(vectors) + 1, query)
        batches = scan_batches([vectors[:3], vectors[3:]], query)
    finally:
        torch.set_num_threads(before)
    wanted = vectors.astype(np.float64) @ query
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batches, wanted, rtol=1e-4, atol=1e-4)
    assert scan_file(path, 0, query).shape == (0,)
    assert scan_batches([], query).shape == (0,)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many caches each decoding step attends to, as they come."""
    counts: list[int] = []
    real = token_decoder.decode

    def decode(model: Any, parts: Any, *rest: Any) -> Any:
        counts.append(len(parts))
        return real(model, parts, *rest)

    monkeypatch.setattr(token_decoder, "decode", decode)
    return counts


def six_images(oracle: Oracle, engine: Engine, questions: int) -> None:
    """Asked of an engine that prefills a few at a time, and answered as each alone."""
    wanted = [request(str(seed), oracle.video(1, seed), QUESTIONS[:questions]) for seed in range(6)]
    for one in engine.run(wanted):
        assert isinstance(one, Answer)
        assert list(one.token_ids) == oracle.ids(1, int(one.key), QUESTIONS[one.prompt_index])


@pytest.mark.parametrize("questions", [1, 2])
def test_what_was_prefilled_apart_is_decoded_together(
    oracle: Oracle, batches: list[int], steps: list[int], questions: int
) -> None:
    six_images(oracle, oracle.engine(limits(2)), questions)
    assert len(batches) > 1
    assert set(steps) == {1}


def test_caches_that_there_is_no_memory_to_join_stay_apart(
    oracle: Oracle, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = oracle.engine(limits(2)), list[int]()

    def grow(positions: int) -> None:
        asked.append(positions)
        if len(asked) < 3:  # it is tried twice
            raise MemoryError("too much")

    monkeypatch.setattr(engine._room, "grow", grow)
    six_images(oracle, engine, 1)
    assert max(steps) > 1
    assert asked[0] == asked[1] > 0


@pytest.mark.parametrize(
    ("load", "action"),
    [
        ({"prefills": 7}, "encode"),
        ({"prefills": 8}, "prefill"),  # as many as may wait
        ({"prefills": 7, "frames_ready": False}, "prefill"),
        ({"prefills": 7, "generations": 2}, "prefill"),  # the rest of those that are handed over together
        ({"prefills": 7, "generations": 99}, "decode"),  # no room for more
        ({"generations": 1}, "decode"),
        ({"generations": 1, "frames_ready": False}, "decode"),
        ({}, "encode"),
        ({"frames_ready": False}, "wait"),
        ({"frames_ready": False, "frames_waiting": False}, "idle"),
    ],
)
def test_encoding_and_answering_on_the_same_cores_take_turns(load: dict[str, Any], action: str) -> None:
    """Without turns the frames that are ready go first, as soon as there are few enough windows."""
    state = {"frames_ready": True, "frames_waiting": True, "prefills": 0, "questions": 1, "generations": 0} | load
    turns = Limits(chunk_frames=2, generations=99, media=8, cache_bytes=1, takes_turns=True)
    assert choose(Load(**state, cache_bytes=0), turns) == action
    if load == {"generations": 1}:
        assert choose(Load(**state, cache_bytes=0), replace(turns, takes_turns=False)) == "encode"


@pytest.mark.parametrize("takes_turns", [True, False])
def test_answers_are_the_same_whether_turns_are_taken(oracle: Oracle, takes_turns: bool) -> None:
    lengths = (2, 9, 4, 1, 5, 3)
    wanted = [request(str(frames), oracle.video(frames, 0), QUESTIONS[:2]) for frames in lengths]
    found = by_prompt(list(oracle.engine(replace(limits(3, media=2), takes_turns=takes_turns)).run(wanted)))
    answers = {key: list(one.token_ids) for key, one in found.items() if isinstance(one, Answer)}
    assert answers == {
        (str(frames), 0, number): oracle.ids(frames, 0, question)
        for frames in lengths
        for number, question in enumerate(QUESTIONS[:2])
    }
