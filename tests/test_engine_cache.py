"""Keys and values of several rows over one prefix: what is attended to is what plain attention over all of it gives."""

import pytest
import torch
from torch.nn import functional

from llava_mini_cli.engine.llm.kv_cache import GROWTH, RowCache

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
