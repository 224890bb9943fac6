"""The ways in which a model's products are computed: chosen by measured rates, and equal in what they compute."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from llava_mini_cli.engine import products
from llava_mini_cli.engine.products import GemvLinear, OneDnnLinear, choose_products, measure
from llava_mini_cli.engine.rates import Rates

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

SLOW, QUICK = (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)


def rates(one_dnn: bool = False, gemv: bool = False) -> Rates:
    usual, other = (SLOW, QUICK) if one_dnn else (QUICK, SLOW)
    ways = {"float32 mkl": usual, "float32 onednn": other, "bfloat16 onednn": QUICK}
    return Rates((32, 8), ways | {"bfloat16 gemv": (0.5 if gemv else 1.0,)})


def model() -> nn.Module:
    torch.manual_seed(0)
    half, biased = nn.Linear(8, 4, bias=False).bfloat16(), nn.Linear(4, 4).bfloat16()
    return nn.Sequential(
        nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8, bias=False), half, biased, nn.Linear(4, 4).half()
    )


def kinds(module: nn.Module) -> list[type]:
    return [type(layer) for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("one_dnn", [False, True])
@pytest.mark.parametrize("gemv", [False, True])
@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_the_quicker_way_is_taken_for_each_format(
    one_dnn: bool, gemv: bool, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_has_one_dnn_bfloat16", lambda: has_bfloat16)
    net = model()
    choose_products(net, rates(one_dnn, gemv))
    single, half = OneDnnLinear if one_dnn else nn.Linear, GemvLinear if gemv else nn.Linear
    assert kinds(net) == [single, single, half, OneDnnLinear if has_bfloat16 else half, nn.Linear]  # float16 stays


def test_without_rates_and_on_other_devices_nothing_changes() -> None:
    net, elsewhere = model(), model().to("meta")
    choose_products(net, None)
    choose_products(elsewhere, rates(one_dnn=True, gemv=True))
    assert kinds(net) == kinds(elsewhere) == [nn.Linear] * 5


def test_products_are_the_same_and_gradients_still_flow() -> None:
    net, plain = model()[:3], model()[:3]  # type: ignore[index]
    choose_products(net, rates(one_dnn=True))
    inputs = torch.randn(2, 5, 8)[:, 1:]  # not contiguous
    with torch.inference_mode():
        torch.testing.assert_close(net(inputs), plain(inputs))
    net(inputs).sum().backward()
    assert net[0].weight.grad is not None


@pytest.mark.skipif(not products._has_one_dnn_bfloat16(), reason="oneDNN without bfloat16 on this processor")
def test_a_bias_in_bfloat16_is_added_alike() -> None:
    plain = nn.Linear(96, 40).bfloat16()
    layer = nn.Linear(96, 40).bfloat16()
    layer.load_state_dict(plain.state_dict())
    choose_products(nn.Sequential(layer), rates())
    assert type(layer) is OneDnnLinear
    with torch.inference_mode():
        for shape in ((1, 96), (7, 96), (2, 5, 96), (3, 1, 96), (0, 96)):
            inputs = torch.randn(shape).bfloat16()
            torch.testing.assert_close(layer(inputs), plain(inputs), atol=0.01, rtol=0.01)


def test_one_row_goes_without_onednn_and_several_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(64, 128, bias=False).bfloat16()
    plain = nn.Linear.forward
    choose_products(nn.Sequential(layer), rates(gemv=True))
    seen: list[tuple[int, bool]] = []

    def forward(self: nn.Linear, given: torch.Tensor) -> torch.Tensor:
        seen.append((given.numel() // 64, torch.backends.mkldnn.enabled))
        return plain(self, given)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    inputs = torch.randn(3, 1, 64).bfloat16()
    with torch.inference_mode():
        for given in (inputs[:1], inputs[0], inputs[0, 0], inputs):
            torch.testing.assert_close(layer(given), plain(layer, given), atol=0.02, rtol=0.02)
            assert torch.backends.mkldnn.enabled
    assert seen == [(1, False), (1, False), (1, False), (3, True)]
    layer(inputs[:1]).sum().backward()
    assert seen[4:] == [(1, True)]


def test_the_switch_is_on_again_after_a_failure_and_after_many_threads() -> None:
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    choose_products(nn.Sequential(layer), rates(gemv=True))

    def work() -> None:
        with torch.inference_mode():
            for _ in range(50):
                layer(torch.ones(1, 64, dtype=torch.bfloat16))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.inference_mode(), pytest.raises(RuntimeError):
        layer(torch.ones(1, 64))  # another format than the weight's
    assert torch.backends.mkldnn.enabled


def test_every_way_is_measured_and_what_grows_with_a_cut_weight_counts_in_proportion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "MOST_ELEMENTS", 64 * 32)
    sizes: list[torch.Size] = []
    made = products._ways

    def ways(weight: torch.Tensor) -> dict[str, products.Product]:
        sizes.append(weight.shape)
        return made(weight)

    monkeypatch.setattr(products, "_ways", ways)
    monkeypatch.setattr(products, "_cache_bytes", lambda: 4096)
    monkeypatch.setattr(products, "FEW_OUTPUTS", 8)
    monkeypatch.setattr(products, "_times", lambda ways, _: dict.fromkeys(ways, [0.25 + sizes[-1][0] / 128] * 3))
    found, settled = measure((128, 64))
    assert settled
    assert sizes == [(32, 64), (8, 64)]
    assert {way: len(times) for way, times in found.items() if way.startswith(("float32", "bfloat16"))} == {
        "float32 mkl": 3, "float32 onednn": 3, "bfloat16 onednn": 3, "bfloat16 gemv": 1,
    }  # fmt: skip
    assert {seconds for times in found.values() for seconds in times} == {1.25}  # a second of it for the weight


class Clock:
    """A clock that a product moves on by the seconds that it is said to take."""

    def __init__(self, **seconds: list[float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def product(self, way: str) -> None:
        self.order.append(way)
        self.now += self.seconds[way].pop(0)


def test_ways_are_measured_in_turn_until_they_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    b, c = [40, 8, 30, 9, 10, 9], [16, 32, 16, 64, 18, 9]
    clock = Clock(a=[8 / 1024, 9 / 1024, 9 / 1024, 9], b=[n / 1024 for n in b], c=[n / 1024 for n in c])
    monkeypatch.setattr(products, "time", clock)
    ways = {way: partial(clock.product, way) for way in "abc"}
    found = products._times(ways, torch.ones(1))
    assert {way: times[0] for way, times in found.items()} == {"a": 8 / 1024, "b": 8 / 1024, "c": 16 / 1024}
    assert all(map(products._settled, found.values()))
    assert "".join(clock.order) == "abcabcabcbcbcb"


def test_what_never_settles_ends_with_the_budget_but_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(a=[0.125, 0.25, 0.0625, 9.0], b=[0.0625, 0.125, 9.0])
    monkeypatch.setattr(products, "time", clock)
    ways = {way: partial(clock.product, way) for way in "ab"}
    assert products._times(ways, torch.ones(1)) == {"a": [0.125, 0.25], "b": [0.0625, 0.125]}
    assert "".join(clock.order) == "abab"
    slow = Clock(a=[2.0], b=[3.0])
    monkeypatch.setattr(products, "time", slow)
    ways = {way: partial(slow.product, way) for way in "ab"}
    assert products._times(ways, torch.ones(1)) == {"a": [2.0], "b": [3.0]}
    monkeypatch.setattr(products, "_times", lambda ways, _: {way: [1.0] * (2 + (way != "float32 mkl")) for way in ways})
    assert measure((16, 64))[1] is False
