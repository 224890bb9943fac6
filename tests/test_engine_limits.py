"""What does not fit fails alone: prompts and frames beyond the context, and memory that runs out anywhere."""

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_doubles import ArrayFrames
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine import encode as encode_module
from llava_mini_cli.engine import frame_encoder
from llava_mini_cli.engine.llm import token_decoder
from llava_mini_cli.engine.llm.kv_cache import GROWTH, RowCache
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.pack import PromptGroup
from llava_mini_cli.engine.request import Answer, Failure, Outcome, Request, Window
from llava_mini_cli.engine.track import Track
from llava_mini_cli.engine.window_sum import WindowSum
from llava_mini_cli.errors import UsageError


def out_of_memory(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError("too much")


def kinds(outcomes: Sequence[Outcome]) -> list[str]:
    """Of failures; an answer has none and is an error here."""
    assert all(isinstance(one, Failure) for one in outcomes)
    return [one.error_type for one in outcomes if isinstance(one, Failure)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


def test_memory_running_out_halves_the_chunk(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = frame_encoder.encode

    def small(model: torch.nn.Module, pixels: torch.Tensor, *rest: object) -> object:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("too much")
        return real(model, pixels, *rest)  # pyright: ignore

    monkeypatch.setattr(frame_encoder, "encode", small)
    wanted = [request(str(number), oracle.video(frames, 1), QUESTIONS[:1]) for number, frames in enumerate((17, 1, 5))]
    outcomes = by_prompt(list(oracle.engine(limits(16)).run(wanted)))
    for number, frames in enumerate((17, 1, 5)):
        answer = outcomes[str(number), 0, 0]
        assert isinstance(answer, Answer)
        assert list(answer.token_ids) == oracle.ids(frames, 1, QUESTIONS[0])


def test_memory_running_out_while_decoding_goes_on_in_halves(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = token_decoder.decode

    def small(model: object, batches: Sequence[object], *rest: object) -> object:
        if len(batches) > 1:
            raise torch.OutOfMemoryError("too much")
        return real(model, batches, *rest)  # pyright: ignore

    monkeypatch.setattr(token_decoder, "decode", small)
    wanted = [request(str(number), oracle.video(600, 0)[: number + 1], QUESTIONS[:2]) for number in range(3)]
    outcomes = by_prompt(list(oracle.engine(limits(1, generations=2)).run(wanted)))
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
    monkeypatch.setattr(token_decoder, "decode", out_of_memory)
    failures = list(oracle.engine(limits()).run(wanted[:1]))
    assert [failure.error_type for failure in failures] == ["out_of_memory"] * 2  # pyright: ignore


def test_too_many_frames_say_how_many_fit(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", 260)
    (failure,) = oracle.engine(limits()).run([request("v", oracle.video(40, 0), ("Red?",))])
    assert isinstance(failure, Failure)
    assert failure.error_type == "too_long"
    most = int(failure.message.rpartition("--max-frames ")[2].split()[0])
    (answer,) = oracle.engine(limits()).run([request("v", oracle.video(most, 0), ("Red?",))])
    assert isinstance(answer, Answer)
    (failure,) = oracle.engine(limits()).run([request("v", oracle.video(most + 1, 0), ("Red?",))])
    assert isinstance(failure, Failure)


def test_a_bad_prompt_fails_alone(oracle: Oracle) -> None:
    outcomes = by_prompt(list(oracle.engine(limits()).run([request("v", oracle.video(1, 0), (" ", QUESTIONS[0]))])))
    assert isinstance(outcomes["v", 0, 0], Failure)
    assert isinstance(outcomes["v", 0, 1], Answer)
    source = ArrayFrames(oracle.video(1, 0))
    (only,) = oracle.engine(limits()).run([Request("v", "image", source, ("",), GREEDY)])
    assert isinstance(only, Failure)
    assert source.closed


def test_a_prompt_beyond_the_context_fails_alone_and_before_any_frame(oracle: Oracle) -> None:
    context = oracle.model.config.max_position_embeddings
    asked = [request("v", oracle.video(2, 0), ("word " * context, QUESTIONS[0]))]
    outcomes = by_prompt(list(oracle.engine(limits()).run(asked)))
    failure, answer = outcomes["v", 0, 0], outcomes["v", 0, 1]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("prompt", "too_long")
    assert "none fit" in failure.message
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == oracle.ids(2, 0, QUESTIONS[0])
    source = ArrayFrames(oracle.video(2, 0))
    engine = oracle.engine(limits())
    engine.add(Request("w", "video", source, ("word " * context,), GREEDY))
    assert source.closed
    assert kinds(engine.step()) == ["too_long"]
    assert engine.is_idle


@pytest.mark.parametrize("memory", ["enough", "short"])
def test_prompts_that_are_too_much_together_are_asked_in_several_passes(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    lengths = [len(oracle.processor.prompts().question_ids(question)) for question in QUESTIONS]
    monkeypatch.setattr("llava_mini_cli.engine.admit.MAX_TEXT", max(lengths) + min(lengths))
    engine = oracle.engine(limits())
    if memory == "short":  # for more than one frame at once, in every pass
        real = encode_module.encode_features

        def small(model: Any, features: torch.Tensor, *rest: Any) -> Any:
            return out_of_memory() if len(features) > 1 else real(model, features, *rest)

        for module in (encode_module, frame_encoder):
            monkeypatch.setattr(module, "encode_features", small)
    windows = (Window(0, 1.5), Window())
    asked = [request("v", oracle.video(3, 0), QUESTIONS, windows=windows), request("w", oracle.video(1, 1), QUESTIONS)]
    outcomes = by_prompt(list(engine.run(asked)))
    assert len(outcomes) == 3 * len(QUESTIONS)
    for (key, window, index), answer in outcomes.items():
        assert isinstance(answer, Answer), answer
        seen = oracle.video(1, 1) if key == "w" else oracle.video(3, 0)[: 2 + window]
        assert list(answer.token_ids) == oracle.answer(seen, QUESTIONS[index])
        assert answer.prompt_tokens == lengths[index] - 1
    assert engine.frames_encoded == 4


def test_a_video_that_is_known_not_to_fit_is_never_decoded(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", 400)
    source = ArrayFrames(oracle.video(200, 0), size=10)
    engine = oracle.engine(limits(10))
    engine.add(Request("v", "video", source, QUESTIONS[:2], GREEDY, frame_count=10_000))
    assert source.closed
    assert kinds(engine.step()) == ["too_long"] * 2
    assert (engine.is_idle, engine.frames_encoded) == (True, 0)
    most = engine.most_frames(QUESTIONS[:2], GREEDY)
    lengths = [len(oracle.processor.prompts().question_ids(question)) - 1 for question in QUESTIONS[:2]]
    assert most == 400 - max(lengths) - GREEDY.max_new_tokens
    assert engine.most_frames(["word " * 400], GREEDY) is None
    assert engine.most_frames(["word " * 400, QUESTIONS[0]], GREEDY) == 400 - lengths[0] - GREEDY.max_new_tokens


def test_frames_beyond_the_context_of_the_longest_prompt_fail_that_prompt_alone(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ("Is it red?", QUESTIONS[2])
    long, short = (len(oracle.processor.prompts().question_ids(question)) for question in questions)
    assert short < long < short + 14
    frames = 17
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", short + GREEDY.max_new_tokens + frames)
    spans = (Window(0, 3), Window(0, float("inf")), Window(14, float("inf")))
    asked = [request("v", oracle.video(frames, 1), questions, windows=spans)]
    outcomes = by_prompt(list(oracle.engine(limits(4)).run(asked)))
    assert len(outcomes) == 6
    assert [key[1:] for key, one in outcomes.items() if isinstance(one, Failure)] == [(1, 0)]
    whole = outcomes["v", 1, 1]
    assert isinstance(whole, Answer)
    assert list(whole.token_ids) == oracle.ids(frames, 1, QUESTIONS[2])


def test_nobody_decodes_on_once_no_prompt_fits(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", 270)
    source = ArrayFrames(oracle.video(200, 0), size=10)
    engine = oracle.engine(limits(10))
    outcomes = list(engine.run([Request("v", "video", source, QUESTIONS[:2], GREEDY)]))
    assert kinds(outcomes) == ["too_long"] * 2
    assert source.closed
    assert engine.frames_encoded < 200


def test_memory_running_out_when_frames_are_kept_fails_that_medium_alone(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Track.add

    def add(track: Track, *rest: Any) -> None:
        return out_of_memory() if track.request.key == "large" else real(track, *rest)

    monkeypatch.setattr(Track, "add", add)
    asked = [request(key, oracle.video(5, 1), QUESTIONS[:1]) for key in ("large", "small")]
    outcomes = by_prompt(list(oracle.engine(limits(16)).run(asked)))
    assert kinds([outcomes["large", 0, 0]]) == ["out_of_memory"]
    assert isinstance(outcomes["small", 0, 0], Answer)


@pytest.mark.parametrize("name", ["Upload.__call__", "TokenDecoder._next_tokens", "TokenDecoder._logits"])
def test_memory_running_out_anywhere_is_a_failure_and_the_engine_goes_on(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, method = name.split(".")
    kind = {"Upload": frame_encoder.Upload, "TokenDecoder": token_decoder.TokenDecoder}[owner]
    engine = oracle.engine(limits())
    with monkeypatch.context() as patched:
        patched.setattr(kind, method, out_of_memory)
        outcomes = list(engine.run([request("v", oracle.video(3, 0), QUESTIONS[:2])]))
    assert kinds(outcomes) == ["out_of_memory"] * 2
    assert engine.is_idle
    (answer,) = engine.run([request("w", oracle.video(5, 1), QUESTIONS[:1])])
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == oracle.ids(5, 1, QUESTIONS[0])


def test_a_step_that_ran_out_of_memory_at_its_end_is_made_again_with_the_same_tokens(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = oracle.model.lm_head
    real = head.forward

    def small(hidden: torch.Tensor) -> torch.Tensor:
        return out_of_memory() if len(hidden) > 2 else real(hidden)

    monkeypatch.setattr(head, "forward", small)
    wanted = [request(str(seed), oracle.video(2, seed), QUESTIONS[:2]) for seed in range(3)]
    outcomes = by_prompt(list(oracle.engine(limits(1, generations=6)).run(wanted)))
    monkeypatch.undo()
    for (key, _, prompt), answer in outcomes.items():
        assert isinstance(answer, Answer)
        assert list(answer.token_ids) == oracle.ids(2, int(key), QUESTIONS[prompt])


def test_nothing_is_kept_of_frames_for_which_nothing_is_asked() -> None:
    window = WindowSum(0, Window(), (PromptGroup(0, (1,), (0,)),))
    window.add(torch.ones(2, 1, 4), torch.ones(2, 3, 4))
    assert window.frame_count == 2
    window.drop_prompts({0})
    window.add(torch.ones(2, 1, 4), torch.ones(2, 3, 4))
    assert (window.total, window._buffer, window.frame_count) == (None, None, 2)


def test_what_ran_out_of_memory_is_let_go_before_anything_is_tried_again() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def greedy() -> torch.Tensor:
        activations = torch.ones(3)
        held.append(weakref.ref(activations))
        return out_of_memory(activations)

    assert unless_out_of_memory(greedy) is None
    assert held[0]() is None


@pytest.mark.parametrize(
    "text",
    [
        "could not create a primitive",
        "can't allocate memory: you tried",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_memory_running_out_is_one_thing_however_it_is_said(text: str) -> None:
    def fails(error: Exception) -> torch.Tensor:
        raise error

    assert unless_out_of_memory(torch.empty, 1 << 50, dtype=torch.uint8) is None
    assert unless_out_of_memory(fails, RuntimeError(text)) is None
    assert unless_out_of_memory(fails, MemoryError()) is None
    with pytest.raises(RuntimeError, match="shapes"):
        unless_out_of_memory(torch.matmul, torch.ones(2, 3), torch.ones(2, 3))


def test_room_half_reserved_when_memory_ran_out_is_reserved_in_full_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = (1, 2, 3, 4)
    lengths = torch.tensor([3]), torch.tensor([[3]])
    parts = [[torch.ones(shape) for _ in range(2)] for _ in range(4)]
    cache = RowCache(*lengths, *parts)
    real, calls = torch.nn.functional.pad, iter(range(99))

    def pad(tensor: torch.Tensor, by: tuple[int, ...]) -> torch.Tensor:
        return out_of_memory() if next(calls) == 1 else real(tensor, by)

    monkeypatch.setattr(torch.nn.functional, "pad", pad)
    with pytest.raises(torch.OutOfMemoryError):
        cache.reserve(torch.tensor([0]))
    cache.reserve(torch.tensor([0]))
    assert [tensor.shape[2] for tensor in (*cache.own_keys, *cache.own_values)] == [3 + GROWTH] * 4


def test_yes_against_no_is_refused_where_the_answer_begins_with_a_header(oracle: Oracle) -> None:
    engine = oracle.engine(limits(), "reference")
    options = GenerationOptions(max_new_tokens=2, yes_no=True)
    with pytest.raises(UsageError, match="--prompt-layout reference"):
        engine.add(Request("v", "video", ArrayFrames(oracle.video(2, 0)), QUESTIONS[:1], options))
    assert engine.is_idle
