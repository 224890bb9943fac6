"""Answers that are held to a grammar are those of a plain loop that tries every token, whatever is around them."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import QUESTIONS, Oracle, by_prompt, limits, make_oracle
from golden_cases import write_case
from grammar_oracle import check_held, schema, token_bytes
from ten_schemas import TEN_SCHEMAS
from tiny_checkpoints import byte_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llava_mini_cli import needs
from llava_mini_cli.config import Choices, GenerationOptions, Grammar, PromptLayout
from llava_mini_cli.engine import grammar_trial, grammars
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.request import Answer, Failure, Request, Window
from llava_mini_cli.errors import PromptError, UsageError

HELD = {name: schema(value) for name, value in TEN_SCHEMAS.items()}
NUMBER = Grammar("regex", "[0-9]{1,3}|none")
WORDS = Grammar("regex", "[^\\n]{1,6}")
ALL = {**HELD, "digits": NUMBER, "words": WORDS}
SHORT = GenerationOptions(max_new_tokens=24)
LONG = GenerationOptions(max_new_tokens=256)
DRAWN = GenerationOptions(max_new_tokens=20, temperature=1.5, top_p=0.9, seed=4)
PENALISED = GenerationOptions(max_new_tokens=20, repetition_penalty=1.3)
COLOURS: Choices = ("red", "red car", "blue")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    cases = ("mini-llama3", "mini-vicuna")
    return {case: Oracle(write_case(case, tmp_path_factory.mktemp(case))) for case in cases}


def asked(
    key: str, pixels: np.ndarray, held: Sequence[Grammar | None], options: GenerationOptions, **settings: Any
) -> Request:
    kind, prompts = "image" if len(pixels) == 1 else "video", QUESTIONS[: len(held)]
    return Request(key, kind, ArrayFrames(pixels), prompts, options, grammars=tuple(held), **settings)


@pytest.mark.parametrize("case", ["mini-llama3", "mini-vicuna"])
@pytest.mark.parametrize(
    ("layout", "options"), [("trained", SHORT), ("reference", SHORT), ("trained", DRAWN), ("trained", PENALISED)]
)
def test_both_families_say_what_the_loop_says(
    families: dict[str, Oracle], case: str, layout: PromptLayout, options: GenerationOptions
) -> None:
    oracle = families[case]
    side = oracle.model.config.video_frame_size
    pixels = noise_video(2, 1, side, side)
    held = (HELD["flat"], WORDS, NUMBER, HELD["text"])
    found = by_prompt(list(oracle.engine(limits(), layout).run([asked("v", pixels, held, options)])))
    for index, grammar in enumerate(held):
        check_held(oracle, pixels, QUESTIONS[index], grammar, options, found["v", 0, index], layout)


def test_a_crowd_says_what_each_says_alone(oracle: Oracle) -> None:
    """Held and free answers, drawn and greedy ones, choices and windows in the same steps."""
    rows: tuple[tuple[Grammar | None, GenerationOptions], ...] = (
        (HELD["flat"], SHORT),
        (HELD["list"], DRAWN),
        (HELD["flat"], PENALISED),
        (None, SHORT),
        (HELD["flat"], DRAWN),
    )
    media = {str(number): noise_video(1 + number % 2 * 3, number) for number in range(len(rows))}
    crowd: list[Request] = []
    for (key, pixels), (grammar, options) in zip(media.items(), rows, strict=True):
        windows = (Window(0, 2), Window()) if key == "1" else (Window(),)
        crowd.append(
            asked(key, pixels, (grammar, None, NUMBER), options, choices=(None, COLOURS, None), windows=windows)
        )
    found = by_prompt(list(oracle.engine(limits(3, generations=6)).run(crowd)))
    for (key, pixels), (grammar, options) in zip(media.items(), rows, strict=True):
        for window, part in enumerate((pixels[:2], pixels) if key == "1" else (pixels,)):
            check_held(oracle, part, QUESTIONS[2], NUMBER, options, found[key, window, 2])
            chosen, free = found[key, window, 1], found[key, window, 0]
            assert isinstance(chosen, Answer)
            assert chosen.text in COLOURS
            assert isinstance(free, Answer)
            if grammar is not None:
                check_held(oracle, part, QUESTIONS[0], grammar, options, free)
            else:
                (alone,) = oracle.engine(limits()).run(
                    [Request("a", "video", ArrayFrames(pixels), QUESTIONS[:1], options)]
                )
                assert isinstance(alone, Answer)
                assert (free.token_ids, free.text, free.finish_reason) == (
                    alone.token_ids,
                    alone.text,
                    alone.finish_reason,
                )


@pytest.mark.parametrize("case", ["tiny", "mini-llama3", "mini-vicuna"])
def test_random_weights_give_what_the_schemas_ask_for(oracle: Oracle, families: dict[str, Oracle], case: str) -> None:
    oracle = families.get(case, oracle)
    side = oracle.model.config.video_frame_size
    requests = [
        asked(f"{name} {seed}", noise_video(1, seed, side, side), (HELD[name],), LONG)
        for name in TEN_SCHEMAS
        for seed in range(2)
    ]
    answers = list(oracle.engine(limits()).run(requests))
    assert len(answers) == len(requests)
    for answer in answers:
        assert isinstance(answer, Answer)
        assert answer.finish_reason == "stop"
        value = json.loads(answer.text)
        jsonschema.validate(value, TEN_SCHEMAS[answer.key.split()[0]])
        plain = json.dumps(value, separators=(",", ":"))
        numbers_aside = isinstance(value, float) or len(answer.text.split()) == len(json.dumps(value).split())
        assert numbers_aside or plain.count(" ") == answer.text.count(" ")


def test_an_answer_that_is_cut_ends_before_half_of_a_character(oracle: Oracle) -> None:
    held = schema({"const": "漢字 漢字"})
    pixels = oracle.video(1, 1)
    for new in range(1, 7):
        options = GenerationOptions(max_new_tokens=new)
        (answer,) = oracle.engine(limits()).run([asked("v", pixels, (held,), options)])
        assert isinstance(answer, Answer)
        text = '"漢字'.encode()[:new].decode(errors="ignore")
        assert (answer.text, answer.finish_reason, answer.completion_tokens) == (text, "length", new)


def test_an_answer_that_is_whole_at_its_last_token_is_whole(oracle: Oracle) -> None:
    held = Grammar("regex", "abc")
    for new, text, reason in ((2, "ab", "length"), (3, "abc", "stop")):
        request = asked("v", oracle.video(1, 1), (held,), GenerationOptions(max_new_tokens=new))
        (answer,) = oracle.engine(limits()).run([request])
        assert isinstance(answer, Answer)
        assert (answer.text, answer.finish_reason) == (text, reason)


def test_a_list_of_the_same_word_is_no_loop(oracle: Oracle) -> None:
    held = schema({"type": "array", "items": {"const": 0}, "minItems": 100, "maxItems": 100})
    (answer,) = oracle.engine(limits()).run([asked("v", oracle.video(1, 1), (held,), LONG)])
    assert isinstance(answer, Answer)
    assert (json.loads(answer.text), answer.finish_reason) == ([0] * 100, "stop")


def test_yes_against_no_is_told_of_the_scores_before_the_grammar(oracle: Oracle) -> None:
    options = GenerationOptions(max_new_tokens=3, yes_no=True)
    free, held = (
        next(iter(oracle.engine(limits()).run([asked("v", oracle.video(1, 0), (grammar,), options)])))
        for grammar in (None, NUMBER)
    )
    assert isinstance(free, Answer)
    assert isinstance(held, Answer)
    assert free.p_yes == held.p_yes


# Tokens


def prompts_of(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, family="llama3", header_ids=list)


def letters_tokenizer(*letters: str) -> PreTrainedTokenizerFast:
    """Tokens of whole characters, and nothing for others; the last token ends an answer."""
    pieces = {letter: number for number, letter in enumerate((*letters, "<end>"))}
    own = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    own.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    return tokenizer


def allowed(known: Grammars, grammar: Grammar, tokens: Sequence[int] = ()) -> list[int]:
    known.check(grammar)
    mask = np.full((known.vocabulary + 31) // 32, 0xFFFFFFFF, np.uint32)
    assert known.matcher(grammar).fill(tokens, mask) is None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


ANYTHING = Grammar("regex", "(?s).*")


@pytest.mark.parametrize("case", ["tiny", "mini-llama3", "mini-vicuna"])
def test_no_special_token_is_allowed_but_the_ends_of_a_whole_answer(
    oracle: Oracle, families: dict[str, Oracle], case: str
) -> None:
    oracle = families.get(case, oracle)
    prompts = oracle.processor.prompts("trained")
    ends = oracle.model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    known = Grammars(prompts, ends, oracle.model.config.vocab_size)
    pieces = token_bytes(prompts.tokenizer)
    ordinary = {token for token, piece in enumerate(pieces) if piece}
    space = [token for token, piece in enumerate(pieces) if piece == b" "][:1] if prompts.family == "vicuna" else []
    known.check(ANYTHING)
    found = set(allowed(known, ANYTHING, space))
    assert found - ordinary == ends
    begun = {token for token in ordinary if _begins_a_character(pieces[token] or b"")}
    assert found & ordinary == begun


def _begins_a_character(piece: bytes) -> bool:
    """True if some valid UTF-8 begins with these bytes."""
    for tail in ("", "80", "bf", "8080", "9080", "a080", "bfbf", "808080", "8f8080", "908080", "bfbfbf"):
        try:
            (piece + bytes.fromhex(tail)).decode()
        except UnicodeDecodeError:
            continue
        return True
    return False


def test_every_end_of_several_ends_an_answer_that_is_whole() -> None:
    tokenizer = byte_tokenizer()
    known = Grammars(prompts_of(tokenizer), (257, 261), 262)
    ids = tokenizer("12", add_special_tokens=False).input_ids
    assert set(allowed(known, NUMBER)) & {257, 261} == set()
    assert set(allowed(known, NUMBER, ids)) & {257, 261} == {257, 261}
    known = Grammars(prompts_of(tokenizer), (257,), 262)
    assert set(allowed(known, NUMBER, ids)) & {257, 261} == {257}


@pytest.mark.parametrize("vocabulary", [262, 288, 289, 1000, 60])
def test_tokens_that_the_model_or_the_tokenizer_does_not_have_are_not_allowed(vocabulary: int) -> None:
    tokenizer = byte_tokenizer()
    known = Grammars(prompts_of(tokenizer), (257,), vocabulary)
    digits = sorted(tokenizer("0123456789n", add_special_tokens=False).input_ids)
    assert allowed(known, NUMBER) == [token for token in digits if token < vocabulary]


def test_what_the_model_has_no_token_for_fails_that_prompt_alone() -> None:
    known = Grammars(prompts_of(letters_tokenizer("a", "b")), (2,), 3)
    with pytest.raises(PromptError, match=r"no token for what must come next|cannot be held"):
        known.check(Grammar("regex", "x+"))
    known.check(Grammar("regex", "ax+|b"))
    matcher = known.matcher(Grammar("regex", "ax+|b"))
    mask = np.zeros(1, np.uint32)
    assert matcher.fill([], mask) is None
    error = matcher.fill([0], mask)
    assert error is not None
    assert error.kind == "bad_schema"
    assert matcher.fill([1], mask) is None  # and back
    assert mask.tolist() == [0b100]


def test_a_matcher_follows_an_answer_that_goes_back() -> None:
    tokenizer = byte_tokenizer()
    known = Grammars(prompts_of(tokenizer), (257,), 262)
    known.check(NUMBER)
    matcher, mask = known.matcher(NUMBER), np.zeros(9, np.uint32)
    one, two = tokenizer("12", add_special_tokens=False).input_ids
    for tokens in ([], [one], [one, two], [one], [two], [two, two], []):
        assert matcher.fill(tokens, mask) is None
        assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() == allowed(
            known, NUMBER, tokens
        )
    assert [matcher.is_whole([one, two], one), matcher.is_whole([one], two), matcher.is_whole([one, two], two)] == [
        True,
        False,
        True,
    ]


def test_what_other_answers_spent_is_not_held_against_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """llguidance bounds the states that all answers of a grammar make together."""
    monkeypatch.setattr(grammar_trial, "MOST_STATES", 400)
    tokenizer = byte_tokenizer()
    known = Grammars(prompts_of(tokenizer), (257,), 262)
    grammar = Grammar("regex", "(a|b)*a(a|b){12}c")
    known.check(grammar)
    letters = tokenizer("ab", add_special_tokens=False).input_ids
    mask = np.zeros(9, np.uint32)
    generator = np.random.default_rng(0)
    renewed = 0
    state = grammars.Grammars.state

    def counted(self: Grammars, which: Grammar, *, alone: bool = False) -> Any:
        nonlocal renewed
        renewed += alone
        return state(self, which, alone=alone)

    monkeypatch.setattr(grammars.Grammars, "state", counted)
    for _ in range(40):
        matcher, tokens = known.matcher(grammar), list[int]()
        for _ in range(30):
            assert matcher.fill(tokens, mask) is None
            tokens.append(letters[int(generator.integers(2))])
    assert renewed


def test_a_grammar_that_asks_too_much_fails_its_answer_alone(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_trial, "MOST_STATES", 24)
    pixels = oracle.video(1, 1)
    wide = Grammar("regex", "[a-z]*a[a-z]{40}(x|y)")
    found = by_prompt(list(oracle.engine(limits()).run([asked("v", pixels, (wide, NUMBER, None), SHORT)])))
    failure = found["v", 0, 0]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", "bad_schema")
    assert "too many states" in failure.message
    assert "\n" not in failure.message
    check_held(oracle, pixels, QUESTIONS[1], NUMBER, SHORT, found["v", 0, 1])
    assert isinstance(found["v", 0, 2], Answer)


def test_scores_that_are_no_numbers_fail_a_held_answer_as_any_other(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = oracle.engine(limits())
    head = oracle.model.lm_head
    monkeypatch.setattr(head, "forward", lambda hidden: torch.full((*hidden.shape[:-1], head.out_features), torch.nan))
    (failure,) = engine.run([asked("v", oracle.video(1, 1), (NUMBER,), SHORT)])
    assert isinstance(failure, Failure)
    assert failure.error_type == "internal"


# What is refused


def test_a_grammar_that_is_refused_fails_its_prompt_alone(oracle: Oracle) -> None:
    refused = schema({"type": "array", "uniqueItems": True})
    found = by_prompt(list(oracle.engine(limits()).run([asked("v", oracle.video(1, 1), (refused, NUMBER), SHORT)])))
    failure = found["v", 0, 0]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("prompt", "bad_schema")
    assert failure.message == 'answers cannot be held to the schema: Unimplemented keys: ["uniqueItems"]'
    assert isinstance(found["v", 0, 1], Answer)


def test_a_model_without_an_end_is_told(tmp_path: Path) -> None:
    oracle = make_oracle(tmp_path)
    oracle.model.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match=r"--schema: this model's generation_config.json names no token that ends"):
        oracle.engine(limits()).add(asked("v", oracle.video(1, 1), (NUMBER,), SHORT))


def test_a_tokenizer_that_llguidance_does_not_know_is_told() -> None:
    known = Grammars(prompts_of(SimpleNamespace()), (2,), 3)
    with pytest.raises(UsageError, match="--schema: this model's tokenizer does not tell the bytes of its tokens"):
        known.check(NUMBER)
    tokenizer = letters_tokenizer("a")
    tokenizer.backend_tokenizer.decoder = None
    known = Grammars(prompts_of(tokenizer), (1,), 2)
    with pytest.raises(UsageError, match=r"--schema: this model's tokenizer cannot be used: can't determine decoder"):
        known.check(NUMBER)
    known = Grammars(prompts_of(letters_tokenizer("a")), (99,), 2)
    with pytest.raises(UsageError, match=r"--schema: this model's tokenizer cannot be used: .*99"):
        known.check(NUMBER)


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, oracle: Oracle) -> None:
    monkeypatch.setattr(needs, "is_installed", lambda name: name != "llguidance")
    words = r"--schema needs llguidance: pip install 'llava-mini-cli\[schema\]'"
    with pytest.raises(UsageError, match=words):
        oracle.engine(limits()).add(asked("v", oracle.video(1, 1), (NUMBER,), SHORT))


def test_only_the_grammars_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MOST_KEPT", 2)
    known = Grammars(prompts_of(byte_tokenizer()), (257,), 262)
    made: list[Grammar] = []
    make = Grammars._made  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(Grammars, "_made", lambda self, one: (made.append(one), make(self, one))[1])
    one, two, three = (Grammar("regex", text) for text in ("a", "b", "c"))
    for grammar in (one, two, one, three, two):
        known.check(grammar)
    assert made == [one, two, three, two]
