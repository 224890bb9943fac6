"""Attention in parts: each part, and what is merged of two, is what a softmax over all keys at once gives."""

from collections.abc import Callable

import pytest
import torch

from llava_mini_cli.engine import attention
from llava_mini_cli.engine.attention import Part, Seen, additive, attend, attend_masked, attend_own, merged, plain

HEADS = [(1, 1), (8, 1), (8, 2), (8, 8), (6, 3)]  # of queries and of keys


def states(heads: int, kv_heads: int, queries: int, keys: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return (
        torch.randn(batch, heads, queries, 16),
        torch.randn(batch, kv_heads, keys, 16),
        torch.randn(batch, kv_heads, keys, 16),
    )


def over_all(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> Part:
    """In float64, each key repeated for the heads that share it."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (part.double().repeat_interleave(group, 1) for part in (keys, values))
    scores = (queries.double() @ keys.transpose(2, 3)) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible, -torch.inf)
    return Part((scores.softmax(-1) @ values).float(), scores.logsumexp(-1).float())


def same(found: Part, wanted: Part) -> None:
    torch.testing.assert_close(found.out, wanted.out, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.log_sum, wanted.log_sum, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["flash", "plain", "efficient"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels by which it goes; that of CUDA for masks is played by the plain one, told as CUDA tells it."""
    if request.param == "plain":
        monkeypatch.setattr(attention, "kernel_for", lambda *_, **__: plain)
    if request.param == "efficient":

        def cuda(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: object, more: bool) -> object:
            assert more
            assert mask is None or isinstance(mask, torch.Tensor)
            if mask is not None:  # what the kernel demands of a mask
                assert mask.shape == (*queries.shape[:3], keys.shape[2])
                assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
            out, log_sum = plain(queries, keys, values, mask)
            return out, torch.nn.functional.pad(log_sum, (0, -log_sum.shape[-1] % 32)), None, None

        monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", cuda)
        monkeypatch.setattr(attention, "kernel_for", lambda *_, **__: attention.efficient)
    return request.param


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 3), (7, 130)])
def test_all_queries_see_the_same_keys(heads: int, kv_heads: int, queries: int, keys: int) -> None:
    given = states(heads, kv_heads, queries, keys)
    same(attend(*given), over_all(*given, torch.ones(queries, keys, dtype=torch.bool)))


@pytest.mark.parametrize("lengths", [(5, 5), (3, 5), (5, 0), (1, 2)])
def test_keys_behind_the_end_of_a_sequence_are_not_seen(lengths: tuple[int, int]) -> None:
    given = states(4, 2, 3, 5)
    found = attend(*given, Seen.of(lengths, 5, given[0]))
    visible = torch.arange(5) < torch.tensor(lengths)[:, None, None, None]
    wanted = over_all(*given, visible)
    for number, length in enumerate(lengths):
        if length:
            same(Part(*(part[number] for part in found)), Part(*(part[number] for part in wanted)))
        else:
            assert found.log_sum[number].isneginf().all()


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_mask_of_pairs(heads: int, kv_heads: int) -> None:
    given = states(heads, kv_heads, 4, 6)
    visible = torch.rand(2, 1, 4, 6) > 0.5
    visible[..., 2] = True
    same(attend_masked(*given, additive(visible, torch.float32)), over_all(*given, visible))


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("length", [1, 2, 70])
def test_what_is_ones_own_is_causal(heads: int, kv_heads: int, length: int) -> None:
    given = states(heads, kv_heads, length, length)
    same(attend_own(*given), over_all(*given, torch.ones(length, length, dtype=torch.bool).tril()))


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("shared", "own"), [(1, 1), (40, 3), (3000, 2), (2, 90)])
def test_two_parts_are_the_whole(heads: int, kv_heads: int, shared: int, own: int) -> None:
    queries, keys, values = states(heads, kv_heads, own, shared + own)
    visible = torch.ones(own, shared + own, dtype=torch.bool).tril(shared)
    first = attend(queries, keys[:, :, :shared], values[:, :, :shared])
    second = attend_own(queries, keys[:, :, shared:], values[:, :, shared:])
    wanted = over_all(queries, keys, values, visible).out
    for found in (merged(first, second), merged(second, first), attention.attend_causally(queries, keys, values)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_part_of_no_key_counts_nothing() -> None:
    given = states(2, 1, 3, 3)
    own = attend_own(*given)
    nothing = Part(torch.full_like(own.out, 7.0), torch.full_like(own.log_sum, -torch.inf))
    assert torch.equal(merged(nothing, own), own.out)
    torch.testing.assert_close(merged(own, nothing), own.out)


def test_parts_in_bfloat16_are_merged_in_float32() -> None:
    queries, keys, values = states(4, 2, 8, 64)
    low = [part.bfloat16() for part in (queries, keys, values)]
    wanted = over_all(*(part.float() for part in low), torch.ones(8, 64, dtype=torch.bool).tril(56)).out
    found = attention.attend_causally(*low)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.02)


Trial = Callable[..., object]


def failing(error: Exception) -> Trial:
    def trial(*_: object, **__: object) -> object:
        raise error

    return trial


@pytest.mark.parametrize("kernel", ["flash"], indirect=True)
def test_the_first_kernel_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.kernel_for(torch.device("cpu"), torch.float32, 64, is_masked=True) is attention.flash
    assert attention.kernel_for(torch.device("meta"), torch.float32, 64, is_masked=False) is plain
    choose = attention.kernel_for.__wrapped__
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: torch.ones(size))
    cuda = torch.device("cuda", 0)

    def chosen(masked: bool) -> object:
        return choose(cuda, torch.bfloat16, 64, is_masked=masked)

    monkeypatch.setattr(attention, "flash", failing(RuntimeError("FlashAttention only supports Ampere GPUs or newer")))
    monkeypatch.setattr(attention, "efficient", lambda *_: None)
    assert chosen(masked=False) is attention.efficient
    monkeypatch.setattr(attention, "efficient", failing(RuntimeError("no kernel image is available")))
    assert chosen(masked=True) is plain
    monkeypatch.setattr(attention, "flash", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):  # says nothing of the kernel
        chosen(masked=False)
