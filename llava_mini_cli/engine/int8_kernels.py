"""Products of weights and inputs in 8 bits on a CPU: the kernels that torch has, and which of them are exact here.

Every output channel of the weights has one scale, and so has every row of the input. The product is one of whole
numbers and exact, so a row's result does not depend on the other rows, or on how many they are.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

# oneDNN; oneDNN with one to three rows filled up to four, which is quicker on some processors; weights as they are,
# without an order of their own, for processors on which oneDNN is slow with few rows.
Int8Kernel = Literal["onednn", "onednn_by_4", "unpacked"]
KERNELS: tuple[Int8Kernel, ...] = get_args(Int8Kernel)
Parts = Mapping[str, torch.Tensor]  # of a weight: "packed" and "scales", and of `unpacked` ones "sums"

INPUT_BITS = (8, 7)  # of a rounded input: 7 where the products of 8 do not fit into what the processor adds them up in
WEIGHT_LIMIT = 127  # symmetric: -128 is not used
WEIGHT_ROWS = 256  # output channels of a weight that are rounded at once
FILLED_ROWS = 4  # of `onednn_by_4`
FEW_ROWS = 8  # of `unpacked`: so many are multiplied in bfloat16, which holds steps exactly; more of them in 8 bits
FEW_INPUTS = 64  # of which the inputs of that product are a multiple: it takes many at once, and none beside them
BYTE_ZERO = 128  # torch's product of two matrices of int8 adds this to its first one

_TORCH: Any = torch  # for what it has without saying so

TRIAL_INPUTS, TRIAL_OUTPUTS, TRIAL_ROWS = 512, 64, (1, 4, 64)


def rounded_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in 8 bits, symmetric about zero: int8 `[out, in]`, and float32 `[out]`, the worth of one step.

    A channel that holds a NaN or an infinity has a scale of NaN.
    """
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)
    for start in range(0, weight.shape[0], WEIGHT_ROWS):
        exact = weight.detach()[start : start + WEIGHT_ROWS].float()
        step = exact.abs().amax(dim=1, keepdim=True).div_(WEIGHT_LIMIT).clamp_(min=torch.finfo(torch.float32).tiny)
        step.addcmul_(step, step.new_zeros(()))
        scales[start : start + WEIGHT_ROWS] = step[:, 0]
        rounded[start : start + WEIGHT_ROWS] = torch.div(exact, step).nan_to_num_(0.0).round_()
    return rounded, scales


def order_of(kernel: Int8Kernel) -> str:
    """The order in which a kernel reads weights. Kernels that have the same one can take each other's weights."""
    return "unpacked" if kernel == "unpacked" else "onednn"


def pack(rounded: torch.Tensor, kernel: Int8Kernel) -> dict[str, torch.Tensor]:
    """Weights that were rounded, int8 `[out, in]`, as a kernel reads them: the parts of a weight but its scales."""
    if kernel == "unpacked":
        return {"packed": rounded, "sums": rounded.sum(1, dtype=torch.int32)}
    return {"packed": torch.ops.onednn.qlinear_prepack(rounded, None)}


# A product takes rows in whole steps, float32, which it may write over, the number that stands for zero, and the parts
# of a weight.
_Product = Callable[[torch.Tensor, int, Parts], torch.Tensor]


def _onednn(steps: torch.Tensor, zero: int, parts: Parts) -> torch.Tensor:
    rows = steps.add_(zero).to(torch.uint8)
    none = torch.zeros(1, dtype=torch.int64)  # the weights' own zero
    packed, scales = parts["packed"], parts["scales"]
    operator: Any = torch.ops.onednn.qlinear_pointwise
    return operator(rows, 1.0, zero, packed, scales, none, None, 1.0, 0, torch.float32, "none", [], "")


def _onednn_by_4(steps: torch.Tensor, zero: int, parts: Parts) -> torch.Tensor:
    count = steps.shape[0]
    return _onednn(functional.pad(steps, (0, 0, 0, max(0, FILLED_ROWS - count))), zero, parts)[:count]


def _unpacked(steps: torch.Tensor, zero: int, parts: Parts) -> torch.Tensor:
    """The sums come in bfloat16 for few rows, and so they do for many."""
    weight = parts["packed"]
    if len(steps) <= FEW_ROWS and weight.shape[1] % FEW_INPUTS == 0:
        ones = torch.ones(len(weight), dtype=torch.bfloat16)
        total = _TORCH._weight_int8pack_mm(steps.bfloat16(), weight, ones)
    else:
        # Added to BYTE_ZERO the rows are steps above `zero`; what that adds to their sums is taken away behind.
        total = _TORCH._int_mm(steps.add_(zero - BYTE_ZERO).to(torch.int8), weight.t())
        total = total.add_(parts["sums"], alpha=BYTE_ZERO - zero).bfloat16()
    return total * parts["scales"]


PRODUCTS: dict[Int8Kernel, _Product] = {"onednn": _onednn, "onednn_by_4": _onednn_by_4, "unpacked": _unpacked}


def as_summed(kernel: Int8Kernel, sums: torch.Tensor) -> torch.Tensor:
    """Exact sums, float32, as a kernel gives them."""
    return sums.bfloat16().float() if kernel == "unpacked" else sums


@cache
def trial(kernel: Int8Kernel) -> int | str:
    """The most bits of a rounded input with which a kernel multiplies the largest numbers exactly; else why none."""
    try:
        weight = torch.full((TRIAL_OUTPUTS, TRIAL_INPUTS), WEIGHT_LIMIT, dtype=torch.int8)
        weight[1::2] *= -1
        parts = {**pack(weight, kernel), "scales": torch.ones(TRIAL_OUTPUTS)}
        for bits in INPUT_BITS:
            largest = (1 << bits - 1) - 1
            if all(_is_exact(kernel, parts, weight, rows, largest) for rows in TRIAL_ROWS):
                return bits
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return "its products of the largest numbers are wrong on this processor"


def _is_exact(kernel: Int8Kernel, parts: Parts, weight: torch.Tensor, rows: int, largest: int) -> bool:
    inputs = torch.full((rows, TRIAL_INPUTS), float(largest))
    expected = as_summed(kernel, inputs @ weight.float().T)
    return torch.equal(PRODUCTS[kernel](inputs, largest + 1, parts), expected)


def input_bits(kernel: Int8Kernel) -> int:
    """The bits that an input is rounded to. Raises `ValueError` for a kernel that this machine does not have."""
    bits = trial(kernel)
    if isinstance(bits, str):
        raise ValueError(f"{kernel}: {bits}")
    return bits


def int8_kernels() -> list[Int8Kernel]:
    """The kernels that this machine has and that were seen to be exact."""
    return [kernel for kernel in KERNELS if isinstance(trial(kernel), int)]


def default_kernel() -> Int8Kernel:
    """The kernel that is taken unmeasured: one that is exact with 8 bits if there is one.

    Raises:
        ValueError: there is none at all.
    """
    kernels = int8_kernels()
    if not kernels:
        raise ValueError(int8_available())
    order: tuple[Int8Kernel, ...] = ("onednn_by_4", "unpacked", "onednn")
    return max(sorted(kernels, key=order.index), key=input_bits)


def int8_available() -> str | None:
    """None where 8-bit layers can be had on the CPU, else why not, in one clause."""
    if int8_kernels():
        return None
    return "; ".join(f"{kernel}: {trial(kernel)}" for kernel in KERNELS if kernel != "onednn_by_4")
