"""What is cut in two where memory runs out: caches, packs, windows, chunks. Both halves give what the whole gave."""

from typing import Any

import pytest
import torch
from engine_oracle import QUESTIONS, Oracle, limits, make_oracle, request
from test_engine_cache import DIM, HEADS, KV_HEADS, OWN, PER_MEDIUM, filled
from test_engine_track import PACK, frames_of

from llava_mini_cli.engine import frame_encoder
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.token_decoder import _cut
from llava_mini_cli.engine.pack import PromptGroup, halved, pack_prompts
from llava_mini_cli.engine.request import Window
from llava_mini_cli.engine.window_sum import WindowSum

IMAGE = -200


@pytest.mark.parametrize(
    ("media", "slots", "rows"), [(slice(1, 3), slice(None), [2, 3, 4, 5]), (slice(2, 3), slice(1, 2), [5])]
)
def test_a_part_of_a_cache_attends_as_the_whole(media: slice, slots: slice, rows: list[int]) -> None:
    whole, cut = filled(), filled()
    part = cut.part(media, slots)
    queries = torch.randn(len(rows), HEADS, DIM)
    keys, values = torch.randn(2, len(rows), KV_HEADS, DIM)
    own = torch.arange(len(rows))
    whole.reserve(torch.tensor(rows))
    part.reserve(own)
    wanted = whole.attend(0, queries, keys, values)
    torch.testing.assert_close(part.attend(0, queries, keys, values), wanted)
    assert part.positions(own).tolist() == whole.positions(torch.tensor(rows)).tolist()
    assert torch.equal(cut.own_keys[0], whole.own_keys[0])  # the part shares its tensors


def generations(cache: Any, *rows: int) -> list[Generation]:
    numbers: Any = rows  # in place of questions
    return [Generation(number, cache, row) for number, row in zip(numbers, rows, strict=True)]


def test_a_cache_is_cut_down_to_a_row_each() -> None:
    cache = filled()
    left, alone = [generations(cache, 5, 0, 2, 3)], list[Generation]()
    while left:
        some = left.pop()
        halves = _cut(some)
        alone += some if not halves else []
        left += halves
    assert sorted(one.question for one in alone) == [0, 2, 3, 5]
    for one in alone:
        medium, slot = divmod(one.question, PER_MEDIUM)
        assert (one.row, one.cache.own_lengths.tolist()) == (0, [[int(OWN[medium, slot])]])
        assert torch.equal(one.cache.own_keys[0][0], cache.own_keys[0][one.question])
        assert torch.equal(one.cache.prefix_values[0][0], cache.prefix_values[0][medium])


def test_media_that_are_kept_are_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, whole = filled(layers=2), filled(layers=2)
    cache.keep_media(torch.tensor([2, 1]))
    cache.let_go()
    assert cache.prefix_lengths.tolist() == [4, 3]
    assert cache.own_lengths.tolist() == [[1, 2], [3, 0]]
    for layer in range(2):
        assert torch.equal(cache.prefix_keys[layer], whole.prefix_keys[layer][[2, 1]])
        assert torch.equal(cache.own_values[layer], whole.own_values[layer][[4, 5, 2, 3]])
        assert cache.own_values[layer].untyped_storage().nbytes() == cache.own_values[layer].nbytes
    short = filled(layers=2)
    short.own_values[1] = torch.empty(0)  # nothing can be moved here
    with pytest.raises((IndexError, RuntimeError)):
        short.keep_media(torch.tensor([2, 1]))
    assert short.own_lengths.tolist() == OWN.tolist()
    assert torch.equal(short.prefix_keys[1][1:], whole.prefix_keys[1][1:])
    assert torch.equal(short.own_keys[0][2:], whole.own_keys[0][2:])


def test_a_pack_in_two_holds_the_same_prompts() -> None:
    prompts = [[5, 6, IMAGE, 7, 8], [9, IMAGE, 10], [5, 6, IMAGE, 11], [5, 6, IMAGE, 12]]
    pack = pack_prompts(prompts)
    (one, places), (other, behind) = halved(pack)
    assert (one.ids, other.ids) == ((5, 6, IMAGE, 7, 8, 11), (5, 6, IMAGE, 12, 9, IMAGE, 10))
    assert [pack.ids[place] for place in (*places, *behind)] == [*one.ids, *other.ids]
    assert one.groups == (PromptGroup(0, (1, 2), (0, 2)),)
    assert other.groups == (PromptGroup(0, (1,), (3,)), PromptGroup(2, (3,), (1,)))
    assert one.prompt_lengths | other.prompt_lengths == pack.prompt_lengths
    assert halved(pack_prompts(prompts[:1])) == []


def test_a_window_in_two_has_the_same_frames() -> None:
    window = WindowSum(3, Window(0, 9), PACK.groups)
    window.add(*frames_of(4))
    one, other = window.halves()
    assert (one.prompts, other.prompts, one.index, one.frame_count) == ([0], [1], 3, 4)
    assert one.total is window.total
    assert torch.equal(other.tokens, window.tokens)
    assert one.halves() == []


def test_a_shortage_that_passed_does_not_keep_chunks_small(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Oracle = make_oracle(tmp_path)
    real, sizes = frame_encoder.encode, list[int]()

    def once(model: Any, pixels: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(pixels))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("too much")
        return real(model, pixels, *rest)

    monkeypatch.setattr(frame_encoder, "encode", once)
    monkeypatch.setattr(frame_encoder, "GROW_AFTER", 3)
    list(oracle.engine(limits(4)).run([request("v", oracle.video(19, 0), QUESTIONS[:1])]))
    assert sizes == [4, 2, 2, 2, 4, 4, 4, 1]
