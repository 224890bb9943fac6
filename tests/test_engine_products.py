"""The library that a model's products go through: measured when it is loaded, and equal in what it computes."""

import pytest
import torch
from torch import nn

from llava_mini_cli.engine import products
from llava_mini_cli.engine.products import OneDnnLinear, choose_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def model() -> nn.Module:
    torch.manual_seed(0)
    half = nn.Linear(4, 4).half()
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8, bias=False), half)


def kinds(module: nn.Module) -> list[type]:
    return [type(layer) for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("times", "chosen"), [((1.0, 0.9), True), ((1.0, 0.97), False), ((1.0, 1.2), False)])
def test_the_quicker_library_is_taken_where_it_gains_enough(
    times: tuple[float, float], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[nn.Linear] = []

    def seconds(layer: nn.Linear) -> tuple[float, float]:
        measured.append(layer)
        return times

    monkeypatch.setattr(products, "_seconds", seconds)
    net = model()
    assert choose_products(net) is chosen
    assert [layer.weight.shape for layer in measured] == [(32, 8)]
    assert kinds(net) == [OneDnnLinear if chosen else nn.Linear] * 2 + [nn.Linear]  # half precision stays


def test_products_are_the_same_and_gradients_still_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_seconds", lambda layer: (1.0, 0.1))
    net, plain = model()[:3], model()[:3]  # type: ignore[index]
    assert choose_products(net)
    inputs = torch.randn(2, 5, 8)[:, 1:]  # not contiguous
    with torch.inference_mode():
        torch.testing.assert_close(net(inputs), plain(inputs))
    net(inputs).sum().backward()
    assert net[0].weight.grad is not None


def test_both_ways_are_measured() -> None:
    layer = nn.Linear(64, 64)
    usual, one_dnn = products._seconds(layer)
    assert 0 < usual < 1
    assert 0 < one_dnn < 1
    assert choose_products(nn.Sequential(nn.GELU())) is False
