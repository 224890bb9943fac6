"""Linear layers in 8 and 4 bits: whole numbers exactly, row by row, whatever lies beside a row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_mini_cli.engine import int8_kernels as module
from llava_mini_cli.engine import packed_linear
from llava_mini_cli.engine.int8_kernels import (
    Int8Kernel,
    Parts,
    as_summed,
    default_kernel,
    input_bits,
    int8_available,
    int8_kernels,
    rounded_weight,
    trial,
)
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear, int4_available

pytestmark = pytest.mark.skipif(int8_available() is not None, reason=str(int8_available()))
needs_int4 = pytest.mark.skipif(int4_available() is not None, reason=str(int4_available()))
KERNELS = int8_kernels()
SHAPES = [(5, 3), (64, 128), (130, 33), (31, 1000)]  # outputs, inputs


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected(layer: Int8Linear, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's result by whole numbers of 64 bits."""
    limit = {8: 127, 7: 63}[layer._bits]
    step = inputs.float().abs().amax(1, keepdim=True) / limit
    rounded, scales = rounded_weight(weight)
    total = (inputs.float() / step).round().long() @ rounded.long().T
    return as_summed(layer.kernel, total.float()) * scales * step


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_a_product_of_whole_numbers(kernel: Int8Kernel, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = numbers(*shape), numbers(shape[0], seed=2)
    for count in (1, 2, 3, 4, 5, 17):
        inputs = numbers(count, shape[1], seed=1).to(dtype)
        layer = Int8Linear.from_weight(weight, None, kernel)
        wanted = expected(layer, inputs, weight)
        assert torch.equal(layer(inputs), wanted.to(dtype))
        assert torch.equal(Int8Linear.from_weight(weight, bias, kernel)(inputs), (wanted + bias).to(dtype))


def test_a_weight_is_rounded_to_255_steps_of_its_channel() -> None:
    weight = torch.tensor([[-2.54, 1.27, 0.013], [0.0, 0.0, 0.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
    rounded, scales = rounded_weight(weight)
    assert rounded.tolist() == [[-127, 64, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(scales[0], torch.tensor(0.02))
    assert scales[1] > 0
    assert scales[2:].isnan().all()
    many = numbers(module.WEIGHT_ROWS + 3, 4)
    assert torch.equal(torch.cat([rounded_weight(row[None])[0] for row in many]), rounded_weight(many)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_int8_is_near_the_product_of_floats(kernel: Int8Kernel) -> None:
    weight, inputs = numbers(64, 512), numbers(40, 512, seed=1)
    exact = inputs @ weight.T
    error = Int8Linear.from_weight(weight, None, kernel)(inputs) - exact
    assert error.norm() < (0.012 if input_bits(kernel) == 8 else 0.02) * exact.norm()


@pytest.mark.parametrize("kind", [*KERNELS, pytest.param("int4", marks=needs_int4)])
def test_a_rows_result_does_not_depend_on_its_neighbours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "MOST_ROWS", 100)
    weight = numbers(48, 320)
    layer = Int4Linear.from_weight(weight, None) if kind == "int4" else Int8Linear.from_weight(weight, None, kind)  # type: ignore[arg-type]
    inputs = numbers(260, 320, seed=1)
    together = layer(inputs)
    for count in (*range(1, 70), 99, 100, 101, 128, 199, 201, 259):
        assert torch.equal(layer(inputs[:count]), together[:count]), count
        assert torch.equal(layer(inputs[-count:]), together[-count:]), count
    loud = inputs.clone()
    loud[::2] *= 1e6
    loud[4] = float("nan")
    loud[6, 3] = float("inf")
    assert torch.equal(layer(loud)[1::2], together[1::2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_that_is_no_number_gives_none(kernel: Int8Kernel) -> None:
    layer = Int8Linear.from_weight(numbers(16, 32), numbers(16, seed=3), kernel)
    inputs = numbers(6, 32, seed=1)
    inputs[1, 5], inputs[3, 0], inputs[4, 31] = float("nan"), float("inf"), float("-inf")
    out = layer(inputs)
    assert out[[1, 3, 4]].isnan().all()
    assert out[[0, 2, 5]].isfinite().all()
    inputs[2] = 0
    assert layer.bias is not None
    assert torch.equal(layer(inputs)[2], layer.bias)
    tiny = torch.full((1, 32), 1e-42)
    assert layer(tiny).isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_weight_that_is_no_number_gives_none_in_its_channel(kernel: Int8Kernel) -> None:
    weight = numbers(16, 32)
    weight[3, 4], weight[7, 1] = float("nan"), float("inf")
    out = Int8Linear.from_weight(weight, None, kernel)(numbers(5, 32, seed=1))
    assert out[:, [3, 7]].isnan().all()
    assert out.isnan().sum() == 10


@pytest.mark.parametrize("kind", [*KERNELS, pytest.param("int4", marks=needs_int4)])
def test_any_shape_of_batch(kind: str) -> None:
    weight, bias = numbers(48, 32), numbers(48, seed=3)
    layer = Int4Linear.from_weight(weight, bias) if kind == "int4" else Int8Linear.from_weight(weight, bias, kind)  # type: ignore[arg-type]
    inputs = numbers(6, 32, seed=1)
    flat = layer(inputs)
    assert torch.equal(layer(inputs.view(2, 3, 32)), flat.view(2, 3, 48))
    assert torch.equal(layer(inputs[0]), flat[0])
    assert torch.equal(layer(inputs.T.contiguous().T), flat)
    assert torch.equal(layer(inputs[::2]), flat[::2])
    assert layer(inputs[:0]).shape == (0, 48)
    assert layer(inputs[:0].view(0, 7, 32)).shape == (0, 7, 48)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16
    before = inputs.clone()
    layer(inputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(
    ("least", "most", "shape", "taken"),
    [(2, 9, (8, 4), [5, 5, 1]), (2, 9, (4, 8), [5, 5, 1]), (2, 3, (8, 4), [3, 3, 3, 2]), (7, 9, (8, 4), [7, 4])],
)
def test_the_wider_a_layer_the_fewer_rows_at_once(
    least: int, most: int, shape: tuple[int, int], taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LEAST_ROWS", least), ("MOST_ROWS", most), ("BLOCK", 40)):
        monkeypatch.setattr(packed_linear, name, value)
    layer, inputs = Int8Linear.from_weight(numbers(*shape), None), numbers(11, shape[1])
    multiply, seen = layer._multiply, list[int]()
    monkeypatch.setattr(layer, "_multiply", lambda rows, out: (seen.append(len(rows)), multiply(rows, out)))
    out = layer(inputs)
    assert seen == taken
    assert torch.equal(out, torch.cat([layer(row[None]) for row in inputs]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_largest_numbers_do_not_saturate(kernel: Int8Kernel) -> None:
    weight = torch.ones(32, 4096)
    weight[::2] = -1
    for count in (1, 3, 4, 40):
        out = Int8Linear.from_weight(weight, None, kernel)(torch.ones(count, 4096))
        torch.testing.assert_close(out, torch.tensor([-4096.0, 4096.0]).repeat(count, 16), rtol=2**-8, atol=0.0)


def test_the_same_holds_on_a_processor_that_adds_in_16_bits() -> None:
    """oneDNN held to AVX2: there the products of 8 bits saturate, and inputs are rounded to 7."""
    this = Path(__file__)
    tests = ["whole_numbers", "saturate", "near_the_product", "neighbours and not int4"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(this), "-k", " or ".join(tests)],
        cwd=this.parents[1],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    seven = "from llava_mini_cli.engine.int8_kernels import trial; print(trial('onednn'), trial('unpacked'))"
    shown = subprocess.run(
        [sys.executable, "-c", seven],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() in (["7", "7"], ["8", "8"])  # 8 where the processor's AVX2 has VNNI


@pytest.mark.parametrize(("rows", "filled"), [(1, 4), (3, 4), (4, 4), (5, 5)])
def test_few_rows_are_filled_up_to_four(rows: int, filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(steps: torch.Tensor, zero: int, parts: Parts) -> torch.Tensor:
        seen.append(len(steps))
        return steps

    monkeypatch.setattr(module, "_onednn", counted)
    assert len(module.PRODUCTS["onednn_by_4"](torch.ones(rows, 8), 128, {})) == rows
    assert seen == [filled]


def test_fewer_bits_are_taken_where_more_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    def adds_in_16_bits(steps: torch.Tensor, zero: int, parts: Parts) -> torch.Tensor:
        weight = parts["packed"]
        pairs = ((steps + zero)[:, None] * weight).unflatten(2, (-1, 2)).sum(3).clamp(-32768, 32767).sum(2)
        return (pairs - zero * weight.sum(1)) * parts["scales"]

    monkeypatch.setitem(module.PRODUCTS, "onednn", adds_in_16_bits)
    monkeypatch.setattr(module, "pack", lambda rounded, kernel: {"packed": rounded.float()})
    assert trial.__wrapped__("onednn") == 7
    monkeypatch.setitem(module.PRODUCTS, "onednn", lambda steps, zero, parts: steps @ parts["packed"].T + 1)
    assert "wrong on this processor" in str(trial.__wrapped__("onednn"))


def test_what_is_not_there_is_said_in_one_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(rounded: torch.Tensor, kernel: str) -> None:
        raise RuntimeError(f"{kernel} is not built in\nmore about it")

    monkeypatch.setattr(module, "pack", nowhere)
    monkeypatch.setattr(module, "trial", trial.__wrapped__)
    assert int8_available() == "onednn: onednn is not built in; unpacked: unpacked is not built in"
    assert int8_kernels() == []
    with pytest.raises(ValueError, match="not built in"):
        default_kernel()
    with pytest.raises(ValueError, match=r"^unpacked: unpacked is not built in$"):
        Int8Linear.from_weight(torch.ones(2, 2), None, "unpacked")


@pytest.mark.parametrize(
    ("trials", "taken"),
    [
        ({"onednn": 8, "onednn_by_4": 8, "unpacked": 8}, "onednn_by_4"),
        ({"onednn": 7, "onednn_by_4": 7, "unpacked": 8}, "unpacked"),
        ({"onednn": 7, "onednn_by_4": 7, "unpacked": 7}, "onednn_by_4"),
        ({"onednn": "not there", "onednn_by_4": "not there", "unpacked": 7}, "unpacked"),
    ],
)
def test_the_default_kernel_is_an_exact_one(
    trials: dict[str, int | str], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "trial", trials.get)
    assert default_kernel() == taken
    assert int8_available() is None


@needs_int4
@pytest.mark.parametrize(("shape", "group"), [((16, 128), 128), ((48, 192), 64), ((130, 96), 32), ((33, 41), 32)])
def test_int4_multiplies_by_weights_of_16_steps(shape: tuple[int, int], group: int) -> None:
    weight, bias, inputs = numbers(*shape), numbers(shape[0], seed=2), numbers(9, shape[1], seed=1)
    layer = Int4Linear.from_weight(weight, bias)
    assert layer.group == group
    held = Int4Linear.from_weight(weight, None)(torch.eye(shape[1])).T  # the weights that it stands for
    steps = torch.nn.functional.pad(weight, (0, -shape[1] % group)).unflatten(1, (-1, group))
    step = (steps.amax(2) - steps.amin(2)) / 15
    error = (torch.nn.functional.pad(held - weight, (0, -shape[1] % group)).unflatten(1, (-1, group))).abs()
    assert (error <= 0.53 * step[..., None] + 0.02).all()
    torch.testing.assert_close(layer(inputs), inputs.bfloat16().float() @ held.T + bias, rtol=0.02, atol=0.1)


@needs_int4
@pytest.mark.parametrize("channels", [256, 300, 530])
def test_int4_in_blocks_is_packed_as_in_one(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numbers(channels, 100)
    blocks = Int4Linear.from_weight(weight, None)
    monkeypatch.setattr(packed_linear, "WEIGHT_ROWS", 1024)
    whole = Int4Linear.from_weight(weight, None)
    assert torch.equal(blocks.packed, whole.packed)
    assert torch.equal(blocks.scales, whole.scales)


@needs_int4
def test_int4_keeps_what_is_no_number_in_its_row_and_channel() -> None:
    weight = numbers(32, 64)
    weight[3, 4] = float("nan")
    layer = Int4Linear.from_weight(weight, None)
    inputs = numbers(6, 64, seed=1)
    inputs[2, 5] = float("nan")
    inputs[4] = 0
    out = layer(inputs)
    assert out[2].isnan().all()
    assert out[:, 3].isnan().all()
    assert out.isnan().sum() == 32 + 5
    assert (out[4, :3] == 0).all()
