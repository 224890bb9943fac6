"""Keys and values of several rows over one prefix: what is attended to is what plain attention over all of it gives."""

from math import ceil

import pytest
import torch
from torch.nn import functional

from llava_mini_cli.engine.llm.kv_cache import GROWTH, RowCache, alike, join, room_to_join

MEDIA, PER_MEDIUM, KV_HEADS, HEADS, DIM = 3, 2, 2, 4, 8
PREFIX = torch.tensor([5, 3, 4])
OWN = torch.tensor([[2, 1], [3, 0], [1, 2]])


def filled(layers: int = 1) -> RowCache:
    torch.manual_seed(0)

    def part(rows: int, length: int) -> list[torch.Tensor]:
        return [torch.randn(rows, KV_HEADS, length, DIM) for _ in range(layers)]

    rows = MEDIA * PER_MEDIUM
    return RowCache(PREFIX, OWN, part(MEDIA, 5), part(MEDIA, 5), part(rows, 4), part(rows, 4))


def plain(cache: RowCache, row: int, query: torch.Tensor) -> torch.Tensor:
    """One row by itself: the medium's prefix, its own positions, and the new one."""
    medium, slot = divmod(row, PER_MEDIUM)
    prefix, own = int(PREFIX[medium]), int(OWN[medium, slot]) + 1
    keys = torch.cat([cache.prefix_keys[0][medium, :, :prefix], cache.own_keys[0][row, :, :own]], dim=1)
    values = torch.cat([cache.prefix_values[0][medium, :, :prefix], cache.own_values[0][row, :, :own]], dim=1)
    return functional.scaled_dot_product_attention(query[None, :, None], keys[None], values[None], enable_gqa=True)[
        0, :, 0
    ]


@pytest.mark.parametrize("rows", [[0, 1, 2, 4, 5], [5, 0], [2]])
def test_each_row_attends_to_its_prefix_and_itself(rows: list[int]) -> None:
    cache = filled()
    index = torch.tensor(rows)
    queries = torch.randn(len(rows), HEADS, DIM)
    keys, values = torch.randn(2, len(rows), KV_HEADS, DIM)
    for part in (cache.own_keys, cache.own_values):  # space that no row has come to is not read
        part[0] = functional.pad(part[0], (0, 0, 0, 3), value=float("nan"))
    cache.reserve(index)
    out = cache.attend(0, queries, keys, values)
    for number, row in enumerate(rows):
        place = int(OWN.flatten()[row])
        assert torch.equal(cache.own_keys[0][row, :, place], keys[number])
        assert torch.equal(cache.own_values[0][row, :, place], values[number])
        torch.testing.assert_close(out[number], plain(cache, row, queries[number]))


def test_positions_and_lengths_of_rows() -> None:
    cache = filled()
    rows = torch.tensor([1, 2, 5])
    assert cache.positions(rows).tolist() == [6, 6, 6]
    assert cache.advanced(rows).tolist() == [[2, 2], [4, 0], [1, 3]]
    assert cache.own_lengths.tolist() == OWN.tolist()  # the caller puts the new ones there
    assert cache.rows_per_medium == PER_MEDIUM
    assert cache.nbytes == 4 * 2 * (3 * 2 * 5 * 8 + 6 * 2 * 4 * 8)


def test_space_is_reserved_when_the_longest_row_has_none() -> None:
    cache = filled(layers=2)
    cache.reserve(torch.arange(6))
    assert [tensor.shape[2] for tensor in cache.own_keys] == [4, 4]
    cache.own_lengths = cache.own_lengths + 1
    before = cache.own_values[1].clone()
    cache.reserve(torch.arange(6))
    assert [tensor.shape[2] for tensor in (*cache.own_keys, *cache.own_values)] == [4 + GROWTH] * 4
    assert torch.equal(cache.own_values[1][:, :, :4], before)


def test_media_that_are_done_with_are_dropped() -> None:
    cache, whole = filled(layers=2), filled(layers=2)
    cache.keep_media(torch.tensor([0, 2]))
    assert (cache.prefix_lengths.tolist(), cache.own_lengths.tolist()) == ([5, 4], [[2, 1], [1, 2]])
    for layer in range(2):
        assert torch.equal(cache.prefix_keys[layer], whole.prefix_keys[layer][[0, 2]])
        assert torch.equal(cache.prefix_values[layer], whole.prefix_values[layer][[0, 2]])
        assert torch.equal(cache.own_keys[layer], whole.own_keys[layer][[0, 1, 4, 5]])
        assert torch.equal(cache.own_values[layer], whole.own_values[layer][[0, 1, 4, 5]])
    kept = [tensor.clone() for part in (cache.prefix_keys, cache.own_values) for tensor in part]
    cache.let_go()
    held = [tensor for part in (cache.prefix_keys, cache.own_values) for tensor in part]
    assert all(map(torch.equal, held, kept))
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (*held, *cache.own_keys))


# Parts, and caches that are joined


def step_of(cache: RowCache, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What every row of a cache attends to in a step, of rows that are given for all."""
    cache.reserve(torch.arange(cache.own_lengths.numel()))
    return cache.attend(0, queries, keys, values)


def made_step(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, rows, KV_HEADS, DIM)
    return torch.randn(rows, HEADS, DIM), keys, values


@pytest.mark.parametrize(
    ("media", "slots", "rows"),
    [
        (slice(0, 1), slice(None), [0, 1]),
        (slice(1, 3), slice(None), [2, 3, 4, 5]),
        (slice(2, 3), slice(1, 2), [5]),
        (slice(1, 2), slice(0, 1), [2]),
    ],
)
def test_a_part_of_a_cache_attends_as_the_whole_does(media: slice, slots: slice, rows: list[int]) -> None:
    whole, made = filled(layers=2), made_step(MEDIA * PER_MEDIUM)
    part = whole.part(media, slots)
    assert (part.is_apart, part.own_lengths.numel(), len(part.own_values)) == (True, len(rows), 2)
    expected = step_of(whole, *made)[rows]
    torch.testing.assert_close(step_of(part, *(tensor[rows] for tensor in made)), expected)


def test_joined_caches_attend_as_each_did() -> None:
    """Of unequal widths: the second has room behind what it holds, the third no room."""
    whole, made = filled(layers=2), made_step(MEDIA * PER_MEDIUM)
    caches = [whole.part(slice(number, number + 1)) for number in range(MEDIA)]
    caches[1].own_keys, caches[1].own_values = (
        [functional.pad(tensor, (0, 0, 0, 3), value=float("nan")) for tensor in part]
        for part in (caches[1].own_keys, caches[1].own_values)
    )
    caches[2].prefix_keys, caches[2].prefix_values = (
        [tensor[:, :, :4] for tensor in part] for part in (caches[2].prefix_keys, caches[2].prefix_values)
    )
    expected, before = step_of(whole, *made), [one.nbytes for one in caches]
    room, size = room_to_join(caches), sum(before)
    joined = join(caches)
    position = 2 * 2 * KV_HEADS * DIM * 4  # bytes of keys and values in both layers
    padding = (joined.nbytes - size) // position
    assert joined.widest == (5, 7)
    assert padding == 6 + 6 + 1  # two rows of the first and of the third by 3, the third's prefix by 1
    assert room == padding + ceil(joined.nbytes / position / 2)  # one of two layers is there twice
    torch.testing.assert_close(step_of(joined, *made), expected)
    for number, cache in enumerate(caches):  # each is a part of it now
        rows = slice(2 * number, 2 * number + 2)
        assert cache.own_keys[1].data_ptr() == joined.own_keys[1][rows].data_ptr()
        assert torch.equal(cache.prefix_values[0], joined.prefix_values[0][number : number + 1])


def sized(media: int, per_medium: int, prefix: int, own: int, *, is_apart: bool = False) -> RowCache:
    def part(rows: int, length: int) -> list[torch.Tensor]:
        return [torch.zeros(rows, 1, length, 1)]

    lengths = torch.zeros(media, dtype=torch.int64), torch.zeros(media, per_medium, dtype=torch.int64)
    rows = media * per_medium
    return RowCache(*lengths, part(media, prefix), part(media, prefix), part(rows, own), part(rows, own), is_apart)


def test_caches_are_joined_where_that_adds_little() -> None:
    long, near, far = sized(2, 1, 0, 100), sized(2, 1, 0, 68), sized(2, 1, 0, 60)
    assert alike([]) == alike([long]) == []
    assert alike([long, near]) == [long, near]  # 64 of 336 positions
    assert alike([long, far]) == [long, far]  # 80 of 320: as many as may be
    assert alike([long, sized(2, 1, 0, 59)]) == []
    assert alike([long, sized(2, 1, 0, 100, is_apart=True)]) == []
    assert alike([long, sized(2, 2, 0, 100)]) == []  # of other rows
    others = sized(1, 4, 300, 20), sized(1, 4, 290, 20)
    assert alike([long, others[0], near, others[1]]) == [long, near]
    assert alike([others[0], long, others[1], near]) == list(others)
    assert alike([sized(1, 1, 10, 100), others[0], others[1]]) == list(others)  # the first has nobody
    assert alike([long, sized(2, 1, 0, 10), near]) == [long, near]
