"""What the engine does next, which prompts it takes, how they share text, and the next token: policy, no model."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames
from hypothesis import given
from hypothesis import strategies as st

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine import admit as admit_module
from llava_mini_cli.engine.admit import ContextLimit, admit
from llava_mini_cli.engine.llm.sampling import (
    LOOP_REPEATS,
    LOOP_TOKENS,
    YesNo,
    is_looping,
    next_token,
    penalised,
    random_generator,
)
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.request import Request, Window
from llava_mini_cli.engine.scheduler import Action, Limits, Load, choose
from llava_mini_cli.errors import PromptError, UsageError

LIMITS = Limits(chunk_frames=4, generations=8, media=6, cache_bytes=100)
IMAGE = -200


@pytest.mark.parametrize(
    ("load", "action"),
    [
        (Load(False, False, 0, 0, 0, 0), "idle"),
        (Load(True, True, 0, 0, 0, 0), "encode"),
        (Load(False, True, 0, 0, 0, 0), "wait"),
        (Load(False, True, 0, 0, 3, 0), "decode"),  # a slow decoder keeps nobody waiting
        (Load(True, True, 1, 1, 3, 0), "encode"),  # frames first: rows then share the weights' reading
        (Load(False, True, 1, 1, 3, 0), "prefill"),
        (Load(True, True, 4, 1, 3, 0), "prefill"),
        (Load(False, False, 1, 6, 3, 0), "decode"),  # no room for six more rows
        (Load(False, False, 1, 1, 3, 100), "decode"),  # no room in the cache
        (Load(False, False, 1, 99, 0, 100), "prefill"),  # alone, it always has room
        (Load(True, True, 6, 9, 3, 0), "decode"),  # enough media wait already
        (Load(True, True, 5, 9, 3, 0), "encode"),
        (Load(True, True, 3, 1, 0, 0), "encode"),  # a chunk's worth of windows is not there yet
        (Load(False, False, 1, 5, 3, 0), "prefill"),  # eight in all
        (Load(False, False, 1, 1, 3, 99), "prefill"),
        (Load(True, True, 6, 1, 3, 0), "prefill"),
    ],
)
def test_the_next_action(load: Load, action: Action) -> None:
    assert choose(load, LIMITS) == action


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="generations"):
        Limits(1, 0, 1, 1)


@pytest.mark.parametrize("name", ["chunk_frames", "generations", "media", "cache_bytes"])
def test_every_limit_is_at_least_one(name: str) -> None:
    ones = {"chunk_frames": 1, "generations": 1, "media": 1, "cache_bytes": 1}
    Limits(**ones)
    with pytest.raises(ValueError, match=name):
        Limits(**{**ones, name: 0})


def test_a_prompt_too_long_says_how_many_frames_fit() -> None:
    limit = ContextLimit(positions=100, per_frame=4)
    assert limit.too_long(text=50, new=10, frames=10) is None
    error = limit.too_long(50, 10, 11)
    assert error is not None
    assert error.kind == "too_long"
    assert str(error).endswith("context of 100; at most 10 frames fit: use --fit, --max-frames 10 or a lower --fps"), (
        str(error)
    )
    assert "(50 tokens), 10 new tokens and 4 for each frame" in str(error)
    assert str(limit.too_long(50, 47, 1)).endswith("context of 100; none fit")
    assert "at most 1 frames fit" in str(limit.too_long(50, 46, 2))


class WordPrompts:
    """A prompt builder of one token a word, the frames first."""

    def question_ids(self, question: str) -> list[int]:
        if not question:
            raise PromptError("empty_prompt", "the prompt is empty")
        return [IMAGE, *range(1, 1 + len(question.split()))]


def test_prompts_that_cannot_be_asked_fail_for_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admit_module, "MAX_TEXT", 9)
    source = ArrayFrames(np.zeros((1, 2, 2, 3), np.uint8))
    asked = ("a b c", "", "a b c d", "one too many for these, and alone too, however", "a b c")
    options = GenerationOptions(max_new_tokens=2)
    request = Request("k", "video", source, asked, options, (Window(0, 1), Window()))
    prompts: Any = WordPrompts()
    ids, failures = admit(request, prompts, ContextLimit(positions=9, per_frame=2))
    assert ids == [[IMAGE, 1, 2, 3], None, [IMAGE, 1, 2, 3, 4], None, [IMAGE, 1, 2, 3]]
    assert [(one.prompt_index, one.window_index, one.error_type) for one in failures] == [
        (1, 0, "empty_prompt"),
        (1, 1, "empty_prompt"),
        (3, 0, "too_long"),
        (3, 1, "too_long"),
    ]
    assert "context of 9" in failures[2].message


def test_one_prompt_that_is_more_than_a_pass_holds_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admit_module, "MAX_TEXT", 4)
    source = ArrayFrames(np.zeros((1, 2, 2, 3), np.uint8))
    request = Request("k", "video", source, ("a b c", "a b c d"), GenerationOptions(max_new_tokens=2))
    prompts: Any = WordPrompts()
    ids, failures = admit(request, prompts, ContextLimit(positions=99, per_frame=2))
    assert ids == [[IMAGE, 1, 2, 3], None]
    assert [one.message for one in failures] == [
        "the prompt (5 tokens) exceeds 4 tokens, the most that is asked at once"
    ]


@pytest.mark.parametrize(
    ("frames", "windows", "refused"),
    [(3, (Window(),), 0), (4, (Window(),), 1), (None, (Window(),), 0), (4, (Window(0, 1), Window(1, 2)), 0)],
)
def test_frames_that_are_known_not_to_fit_fail_before_they_come(
    frames: int | None, windows: tuple[Window, ...], refused: int
) -> None:
    source = ArrayFrames(np.zeros((1, 2, 2, 3), np.uint8))
    request = Request("k", "video", source, ("a",), GenerationOptions(max_new_tokens=2), windows, None, frames)
    prompts: Any = WordPrompts()
    _, failures = admit(request, prompts, ContextLimit(positions=9, per_frame=2))
    assert [one.error_type for one in failures] == ["too_long"] * refused
    assert all("at most 3 frames fit: use --fit, --max-frames 3 or a lower --fps" in one.message for one in failures)


@given(lengths=st.lists(st.none() | st.integers(1, 9), max_size=20))
def test_prompts_are_dealt_out_to_passes_that_hold_them(lengths: list[int | None]) -> None:
    prompts = [None if length is None else [index] * length for index, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admit_module, "MAX_TEXT", 9)
        dealt = admit_module.passes(prompts)
    assert dealt
    assert all(sum(len(ids) for ids in one if ids) <= 9 for one in dealt)
    for index, ids in enumerate(prompts):
        assert [one[index] for one in dealt if one[index] is not None] == ([] if ids is None else [ids])
    assert len(dealt) == 1 or all(any(one) for one in dealt)
    for one, after in pairwise(dealt):  # none begins while the next prompt would fit
        first = next(ids for ids in after if ids)
        assert sum(len(ids) for ids in one if ids) + len(first) > 9


def test_prompts_share_what_stands_before_the_frames() -> None:
    pack = pack_prompts([[5, 6, IMAGE, 7, 8], None, [5, 6, IMAGE, 9], [4, IMAGE, 9]])
    assert pack.ids == (5, 6, IMAGE, 7, 8, 9, 4, IMAGE, 9)
    assert [group.prompts for group in pack.groups] == [(0, 2), (3,)]
    # the placeholder is padding: masked, position kept back
    assert pack.positions.tolist() == [0, 1, -1, 2, 3, 2, 0, -1, 1]
    assert pack.visible.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 1],
    ]


def test_token_zero_is_padding_as_in_the_reference() -> None:
    pack = pack_prompts([[5, 0, IMAGE, 0, 7]])
    assert pack.positions.tolist() == [0, -1, -1, -1, 1]
    assert not pack.visible[:, 1].any()
    assert not pack.visible[:, 3].any()


@pytest.mark.parametrize("ids", [[1, 2], [1, IMAGE], [1, IMAGE, 2, IMAGE, 3]])
def test_prompts_that_cannot_be_packed(ids: list[int]) -> None:
    with pytest.raises(PromptError):
        pack_prompts([ids])


def test_a_group_without_a_prompt_and_the_lengths_of_prompts() -> None:
    pack = pack_prompts([[5, 6, IMAGE, 7, 8], None, [5, 6, IMAGE, 9], [4, IMAGE, 9]])
    assert pack.prompt_lengths == {0: 4, 2: 3, 3: 2}
    left = pack.groups[0].without({0})
    assert (left.shared, left.tails, left.prompts) == (0, (2,), (2,))
    assert pack_prompts([None]).groups == ()
    assert len(pack) == 9


def test_said_tokens_are_made_smaller_whatever_their_sign() -> None:
    logits = torch.tensor([4.0, -4.0, 1.0, 0.0])
    assert penalised(logits, [1, 0, 0], 2.0).tolist() == [2.0, -8.0, 1.0, 0.0]
    assert penalised(logits, [], 2.0) is logits
    assert penalised(logits, [1], 1) is logits
    assert logits.tolist() == [4.0, -4.0, 1.0, 0.0]


def draws(count: int = 400, **options: float) -> list[int]:
    settings = GenerationOptions(**options)  # pyright: ignore[reportArgumentType]
    generator = random_generator(settings)
    assert generator is not None
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    return [next_token(logits, settings, generator) for _ in range(count)]


def test_draws_follow_temperature_top_p_and_seed() -> None:
    assert random_generator(GenerationOptions(temperature=0)) is None
    plain = np.bincount(draws(4000, temperature=1.0), minlength=4) / 4000
    assert plain == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    squared = np.bincount(draws(4000, temperature=0.5), minlength=4) / 4000
    assert squared == pytest.approx(np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345, abs=0.03)
    # a token is in as long as those before it have less than top_p
    assert [set(draws(temperature=1.0, top_p=p)) for p in (0.45, 0.6, 0.76, 1.0)] == [
        {0},
        {0, 1},
        {0, 1, 2},
        {0, 1, 2, 3},
    ]
    assert draws(temperature=1.0, seed=1) == draws(temperature=1.0, seed=1)
    assert draws(temperature=1.0, seed=1) != draws(temperature=1.0, seed=2)


class FirstLetters:
    """A tokenizer whose first token is known for each spelling."""

    def __init__(self, **first: int) -> None:
        self.first = first

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        assert not add_special_tokens
        space = "_" if text.startswith(" ") else ""
        return SimpleNamespace(input_ids=[self.first.get(space + text.strip(), 7), 99])


def test_yes_and_no_are_told_by_the_first_tokens_of_every_spelling() -> None:
    found = YesNo.of(FirstLetters(yes=1, Yes=2, _YES=3, no=4, _No=5))
    assert (found.yes, found.no) == ((1, 2, 3), (4, 5))  # 7 begins both
    logits = torch.tensor([9.0, 0.2, 0.1, 0.1, 0.3, 0.3, 9.0, 9.0]).log()
    assert found.p_yes(logits) == pytest.approx(0.4)
    for tokenizer in (FirstLetters(), FirstLetters(yes=1), FirstLetters(no=1)):
        with pytest.raises(UsageError, match="--yes-no"):
            YesNo.of(tokenizer)


def test_loops() -> None:
    generator = np.random.default_rng(0)
    said = generator.integers(0, 1000, 200).tolist()
    assert not is_looping(said)
    assert is_looping(said + [7] * LOOP_TOKENS)
    assert is_looping(said + [1, 2, 3, 4, 5] * LOOP_TOKENS)
    assert not is_looping(said + [7] * (LOOP_TOKENS - 1))
    assert not is_looping(list(range(50)) * 2)  # said twice is not a loop
    longest = list(range(LOOP_TOKENS // LOOP_REPEATS))
    assert is_looping(longest * LOOP_REPEATS)
    assert not is_looping([*longest, -1] * LOOP_REPEATS)
    assert not is_looping([7] * (LOOP_TOKENS - 1))
    assert is_looping([7] * LOOP_TOKENS)
