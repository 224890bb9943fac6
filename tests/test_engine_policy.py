"""What the engine does next, how prompts share text, and when a row loops: policy without a model."""

import numpy as np
import pytest

from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.sampling import LOOP_TOKENS, is_looping
from llava_mini_cli.engine.scheduler import Action, Limits, Load, choose
from llava_mini_cli.errors import PromptError

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
    ],
)
def test_the_next_action(load: Load, action: Action) -> None:
    assert choose(load, LIMITS) == action


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="generations"):
        Limits(1, 0, 1, 1)


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


def test_loops() -> None:
    generator = np.random.default_rng(0)
    said = generator.integers(0, 1000, 200).tolist()
    assert not is_looping(said)
    assert is_looping(said + [7] * LOOP_TOKENS)
    assert is_looping(said + [1, 2, 3, 4, 5] * LOOP_TOKENS)
    assert not is_looping(said + [7] * (LOOP_TOKENS - 1))
    assert not is_looping(list(range(50)) * 2)  # said twice is not a loop
