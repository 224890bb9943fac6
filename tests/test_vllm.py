"""vLLM itself, on the CPU in float32: what it says is what our own language model says. Run by `make vllm`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import by_prompt
from safetensors.torch import load_file, save_file
from ten_schemas import TEN_SCHEMAS
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, Grammar, ModelOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.request import Answer, Failure, Outcome, Request, Window
from llava_mini_cli.engine.vllm import load
from llava_mini_cli.engine.vllm.link import Process
from llava_mini_cli.needs import is_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed: make vllm"),
]
WORDS = ("What is shown?", "How many circles are there?", "What color is it?", "Is it red?", "Where does it go?")


class Both:
    """Our own engine and one on vLLM, of one model."""

    def __init__(self, model: str) -> None:
        options = ModelOptions(model, dtype="float32", device="cpu")
        self.own = load_engine(options)
        self.other = load_engine(replace(options, llm="vllm"))

    @property
    def process(self) -> Process:
        return self.other._llm._link  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        self.process.close()

    def ask(self, requests: Sequence[Request]) -> list[tuple[Outcome, Outcome]]:
        own, other = (by_prompt(list(engine.run(requests))) for engine in (self.own, self.other))
        assert own.keys() == other.keys()
        return [(own[key], other[key]) for key in own]


@pytest.fixture(scope="module")
def demo() -> Iterator[Both]:
    with closing(Both("demo")) as both:
        yield both


def medium(
    engine: Engine, key: str, frames: int, prompts: Sequence[str], options: GenerationOptions, **more: Any
) -> Request:
    pixels = noise_video(frames, len(key) + frames)
    kind = "image" if frames == 1 else "video"
    return Request(key, kind, ArrayFrames(pixels), tuple(prompts), options, **more)


def same(pairs: Sequence[tuple[Outcome, Outcome]], within: float = 1e-4) -> None:
    for own, other in pairs:
        assert isinstance(own, Answer)
        assert isinstance(other, Answer)
        assert (own.token_ids, own.text, own.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert (own.frame_count, own.prompt_tokens) == (other.frame_count, other.prompt_tokens)
        assert other.p_yes == (None if own.p_yes is None else pytest.approx(own.p_yes, abs=within))
        if own.choice_probs is not None and own.choice_scores is not None:
            assert other.choice_probs == pytest.approx(own.choice_probs, abs=within)
            assert other.choice_scores is not None
            greedy = {text: one.is_greedy for text, one in own.choice_scores.items()}
            assert {text: one.is_greedy for text, one in other.choice_scores.items()} == greedy


def varied(engine: Engine, options: GenerationOptions, **more: Any) -> list[Request]:
    """Media of unequal length, one of them in windows."""
    found = [medium(engine, f"m{frames}", frames, WORDS, options, **more) for frames in (1, 2, 34, 9, 1)]
    found = [replace(one, key=f"{one.key} {number}") for number, one in enumerate(found)]
    windows = (Window(0, 4), Window(4, 9, frozenset([1])), Window(0, 99))
    return [
        *found,
        medium(engine, "windows", 10, WORDS[:3], options, windows=windows, **{k: v[:3] for k, v in more.items()}),
    ]


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=24),
        GenerationOptions(max_new_tokens=6, yes_no=True),
        GenerationOptions(max_new_tokens=20, repetition_penalty=1.3),
        GenerationOptions(max_new_tokens=1),
    ],
)
def test_tokens_are_those_of_our_own(demo: Both, options: GenerationOptions) -> None:
    same(demo.ask(varied(demo.own, options)))


@pytest.mark.parametrize("more", [{}, {"choice_prior": True}, {"choice_score": "mean", "yes_no": True}])
def test_choices_are_scored_as_by_our_own(demo: Both, more: dict[str, Any]) -> None:
    many = tuple(f"{number} circles" for number in range(150))
    choices = (("red", "blue", "a red circle", "red circle and a square"), many, None, ("yes", "no"), ("up", "down"))
    same(demo.ask(varied(demo.own, GenerationOptions(max_new_tokens=4, **more), choices=choices)))


def test_three_hundred_questions(demo: Both) -> None:
    questions = [f"How many circles are there in part {number}?" for number in range(300)]
    same(demo.ask([medium(demo.own, "v", 12, questions, GenerationOptions(max_new_tokens=5))]))
    counted = demo.other._llm.counted  # pyright: ignore[reportAttributeAccessIssue]
    assert counted.known > counted.asked / 3


def test_a_crowd(demo: Both) -> None:
    options = GenerationOptions(max_new_tokens=12)
    requests = [medium(demo.own, str(number), 1, WORDS[:1], options) for number in range(200)]
    same(demo.ask(requests))


def test_schemas(demo: Both) -> None:
    held = tuple(Grammar("json_schema", json.dumps(one)) for one in list(TEN_SCHEMAS.values())[:4])
    options = GenerationOptions(max_new_tokens=60, yes_no=True)
    requests = [medium(demo.own, "i", 1, WORDS[:4], options, grammars=held)]
    same(demo.ask(requests))


def test_sampled_answers_are_the_same_each_time(demo: Both) -> None:
    options = [GenerationOptions(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    texts = [
        [one.token_ids for one in demo.other.run([medium(demo.own, "i", 1, WORDS, asked)]) if isinstance(one, Answer)]
        for asked in options
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_random_models_of_grouped_heads(tmp_path: Path, kv_heads: int) -> None:
    """The weights lie in two shards; of one model the head is the table of embeddings, so that its answers loop."""
    changes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": kv_heads}
    loops = kv_heads == 2
    in_two_shards(write_tiny_checkpoint(tmp_path, **changes, tie_word_embeddings=loops))
    with closing(Both(str(tmp_path))) as both:
        options = GenerationOptions(max_new_tokens=120 if loops else 40)
        requests = [medium(both.own, str(frames), frames, WORDS, options) for frames in (1, 9, 40)]
        pairs = both.ask(requests)
        same(pairs)
        assert loops == any(isinstance(own, Answer) and own.finish_reason == "repetition" for own, _ in pairs)
        choices = (("a cat", "a dog", "a"), ("yes", "no"), None, None, None)
        same(both.ask([replace(one, choices=choices) for one in requests[:2]]))


def in_two_shards(checkpoint: Path) -> None:
    """Puts the weights of a checkpoint into two files and an index of them."""
    whole = checkpoint / "model.safetensors"
    tensors, files = load_file(whole), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    places = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        shard = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(shard, checkpoint / file, metadata={"format": "pt"})
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    whole.unlink()


# What goes wrong


def test_what_has_no_room_is_a_row_and_what_has_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of 448 positions: a few answers begin together, and vLLM takes some back as all of them grow."""
    write_tiny_checkpoint(tmp_path, hidden_size=256, num_attention_heads=8, num_key_value_heads=4)
    real, most = load.Start, 448 * 3 * 2 * 4 * 32 * 4  # layers, keys and values, heads, numbers, bytes
    monkeypatch.setattr(load, "Start", lambda **given: real(**{**given, "cache_bytes": most}))
    with closing(Both(str(tmp_path))) as both:
        asked = GenerationOptions(max_new_tokens=90)
        short = [medium(both.own, str(number), 1 + number, WORDS, asked) for number in range(3)]
        same(both.ask(short))
        long, full = (medium(both.own, str(frames), frames, WORDS[:2], asked) for frames in (200, 150))
        found = by_prompt(list(both.other.run([long, full, short[0]])))
        own = by_prompt(list(both.own.run(short[:1])))
        same([(one, found.pop(key)) for key, one in own.items()])
    said = [failure for _, failure in sorted(found.items()) if isinstance(failure, Failure)]
    assert {(one.stage, one.error_type) for one in said} == {("generate", "out_of_memory")}
    full_words = "the prompt and its answer take more than vLLM's 416 positions"
    assert [one.message for one in said] == [
        full_words,
        full_words,
        "the prompt takes 435 positions, and vLLM has room for 416",
        "the prompt takes 448 positions, and vLLM has room for 416",
    ]


def test_a_request_that_is_aborted_is_a_row(demo: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was to compute the prefix; the others go on."""
    monkeypatch.setattr(load, "Process", partial(Process, module="vllm_that_aborts"))
    asked = medium(demo.own, "i", 1, WORDS, GenerationOptions(max_new_tokens=24))
    own = by_prompt(list(demo.own.run([asked])))
    engine = load_engine(ModelOptions("demo", dtype="float32", device="cpu", llm="vllm"))
    with closing(engine._llm._link):  # pyright: ignore[reportAttributeAccessIssue]
        found = by_prompt(list(engine.run([asked])))
    failure = found.pop(("i", 0, 0))
    assert isinstance(failure, Failure)
    assert (failure.error_type, failure.message) == ("internal", "vLLM gave the answer up")
    same([(own[key], other) for key, other in found.items()])
    assert len(found) == len(WORDS) - 1
