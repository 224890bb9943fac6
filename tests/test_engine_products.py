"""The ways in which a model's products are computed: chosen by measured rates, and equal in what they compute."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_mini_cli.engine import products
from llava_mini_cli.engine.products import GemvLinear, OneDnnLinear, choose_products, measure, measured_rates
from llava_mini_cli.engine.rates import ROWS, Rates
from llava_mini_cli.model.configuration import LlavaMiniConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

SLOW, QUICK = (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)


def rates(one_dnn: bool = False, gemv: bool = False) -> Rates:
    usual, other = (SLOW, QUICK) if one_dnn else (QUICK, SLOW)
    ways = {"float32 mkl": usual, "float32 onednn": other, "bfloat16 onednn": QUICK}
    return Rates((32, 8), ways | {"bfloat16 gemv": (0.5 if gemv else 1.0,)})


def model() -> nn.Module:
    torch.manual_seed(0)
    half, other = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).half()
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8, bias=False), half, other)


def kinds(module: nn.Module) -> list[type]:
    return [type(layer) for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("one_dnn", [False, True])
@pytest.mark.parametrize("gemv", [False, True])
def test_the_quicker_way_is_taken_for_each_format(one_dnn: bool, gemv: bool) -> None:
    net = model()
    choose_products(net, rates(one_dnn, gemv))
    single, half = OneDnnLinear if one_dnn else nn.Linear, GemvLinear if gemv else nn.Linear
    assert kinds(net) == [single, single, half, nn.Linear]  # float16 stays


def test_without_rates_and_on_other_devices_nothing_changes() -> None:
    net, elsewhere = model(), model().to("meta")
    choose_products(net, None)
    choose_products(elsewhere, rates(one_dnn=True, gemv=True))
    assert kinds(net) == kinds(elsewhere) == [nn.Linear] * 4


def test_products_are_the_same_and_gradients_still_flow() -> None:
    net, plain = model()[:3], model()[:3]  # type: ignore[index]
    choose_products(net, rates(one_dnn=True))
    inputs = torch.randn(2, 5, 8)[:, 1:]  # not contiguous
    with torch.inference_mode():
        torch.testing.assert_close(net(inputs), plain(inputs))
    net(inputs).sum().backward()
    assert net[0].weight.grad is not None


def test_one_row_goes_without_onednn_and_several_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(64, 128).bfloat16()
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
    layer = nn.Linear(64, 64).bfloat16()
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


def test_every_way_is_measured_and_a_cut_weight_counts_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MOST_ELEMENTS", 64 * 32)
    sizes: list[torch.Size] = []
    made = products._ways

    def ways(weight: torch.Tensor) -> dict[str, products.Product]:
        sizes.append(weight.shape)
        return made(weight)

    monkeypatch.setattr(products, "_ways", ways)
    monkeypatch.setattr(products, "ROUNDS", (1, 1, 1))
    monkeypatch.setattr(products, "_cache_bytes", lambda: 4096)
    ticks = iter(range(1000))
    monkeypatch.setattr(products.time, "perf_counter", lambda: float(next(ticks)))
    found = measure((128, 64))
    assert sizes == [(32, 64)]
    assert {way: len(times) for way, times in found.items() if way.startswith(("float32", "bfloat16"))} == {
        "float32 mkl": 3, "float32 onednn": 3, "bfloat16 onednn": 3, "bfloat16 gemv": 1,
    }  # fmt: skip
    assert {seconds for times in found.values() for seconds in times} == {4.0}  # one tick for a fourth of the weight


def test_a_small_model_and_another_device_are_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[tuple[int, int]] = []

    def measured(shape: tuple[int, int]) -> dict[str, tuple[float, ...]]:
        asked.append(shape)
        return {"float32 mkl": QUICK, "bfloat16 onednn": QUICK}

    monkeypatch.setattr(products, "measure", measured)
    large = LlavaMiniConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=2, vocab_size=99999)
    cpu = torch.device("cpu")
    assert measured_rates(LlavaMiniConfig(hidden_size=1024, intermediate_size=4095), cpu) is None
    assert measured_rates(large, torch.device("cuda")) is None
    assert asked == []
    found = measured_rates(large, cpu)
    assert found == measured_rates(large, cpu)
    assert found is not None
    assert (found.shape, asked) == ((8192, 2048), [(8192, 2048)])
    measured_rates(large, cpu, anew=True)
    assert len(asked) == 2
    assert len(ROWS) == 3
