"""Linear layers whose weights are held in 8 or 4 bits, through torch's own packed products on a CPU.

8 bits: every output channel of the weights has one scale, and so has every row of the input, which is rounded to 8 bits
when it comes. The product is then one of whole numbers and exact, so a row's result does not depend on the other rows,
on how many they are, or on the library that computes it. 4 bits: weights are rounded in groups along the input, each
with a scale and a zero of its own, and multiplied in bfloat16.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, Self, get_args

import torch
from torch import nn
from torch.nn import functional

# oneDNN; oneDNN with one to three rows filled up to four, which is quicker on some processors; FBGEMM.
Int8Kernel = Literal["onednn", "onednn_by_4", "fbgemm"]
KERNELS: tuple[Int8Kernel, ...] = get_args(Int8Kernel)

INPUT_BITS = (8, 7)  # of a rounded input: 7 where the products of 8 do not fit into what the processor adds them up in
WEIGHT_LIMIT = 127  # symmetric: -128 is not used
# Rows of an input that are multiplied at once: what is made on the way, float32, stays small and mostly in caches.
MOST_ROWS, LEAST_ROWS = 512, 256
BLOCK = 1 << 22  # numbers of it, between the two
WEIGHT_ROWS = 256  # output channels of a weight that are rounded at once; torch packs 4 bits in blocks that divide it
FILLED_ROWS = 4  # of `onednn_by_4`
GROUPS = (128, 64, 32)  # inputs that share a scale in 4 bits: the first that divides them all
INT4_CHANNELS = 16  # torch packs 4-bit weights in blocks of so many output channels

_TORCH: Any = torch  # for what it has without saying so

TRIAL_INPUTS, TRIAL_OUTPUTS, TRIAL_ROWS = 512, 64, (1, 4, 64)


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits and inputs that are rounded to 8 bits row by row.

    A row that holds a NaN or an infinity gives NaN throughout.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: Any,
        scales: torch.Tensor,
        in_features: int,
        bias: torch.Tensor | None = None,
        kernel: Int8Kernel | None = None,
    ) -> None:
        """A layer from its parts.

        Args:
            packed: what `pack` made of the weights.
            scales: float32 `[out]`, the worth of one step of each output channel.
            bias: `[out]`.
            kernel: that of `packed`; None: `default_kernel()`.

        Raises:
            ValueError: a kernel that this machine does not have.
        """
        super().__init__()
        self.kernel: Int8Kernel = kernel or default_kernel()
        self.packed = packed
        self.scales = scales  # no buffer: a model that is moved to another dtype leaves it in float32
        self.in_features = in_features
        self.out_features = scales.shape[0]
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self._bits = _bits(self.kernel)

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Int8Kernel | None = None) -> Self:
        """Rounds and packs the weight of a linear layer, `[out, in]` in any float dtype.

        Raises:
            ValueError: a kernel that this machine does not have.
        """
        kernel = kernel or default_kernel()
        _bits(kernel)
        rounded, scales = rounded_weight(weight)
        return cls(pack(rounded, kernel), scales, weight.shape[1], bias, kernel)

    def parts(self) -> dict[str, Any]:
        """Its tensors but the bias; of FBGEMM's weights nothing that can be kept."""
        return {"packed": self.packed, "scales": self.scales}

    def facts(self) -> dict[str, Any]:
        """Plain JSON that makes the layer again, together with its parts."""
        return {"kind": "int8", "in_features": self.in_features, "kernel": self.kernel}

    def use(self, parts: Mapping[str, Any]) -> None:
        """Puts equal tensors in the place of its own."""
        self.packed, self.scales = parts["packed"], parts["scales"]

    @classmethod
    def restored(cls, facts: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        """The layer that has these facts and parts."""
        return cls(parts["packed"], parts["scales"], facts["in_features"], kernel=facts["kernel"])

    def compute_with(self, kernel: Int8Kernel) -> None:
        """Has products go through another kernel, if that reads weights in the order in which these are packed."""
        if "fbgemm" not in (kernel, self.kernel):
            self._bits = _bits(kernel)
            self.kernel = kernel

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]` in the input's dtype."""
        rows = input.reshape(-1, self.in_features)
        out = rows.new_empty(rows.shape[0], self.out_features)
        at_once = min(MOST_ROWS, max(LEAST_ROWS, BLOCK // max(self.in_features, self.out_features)))
        for start in range(0, rows.shape[0], at_once):
            self._multiply(rows[start : start + at_once], out[start : start + at_once])
        return out.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        exact = rows.float().contiguous()
        limit = (1 << self._bits - 1) - 1
        step = exact.abs().amax(dim=1, keepdim=True).div_(limit).clamp_(min=torch.finfo(torch.float32).tiny)
        step.addcmul_(step, step.new_zeros(()))  # an infinity becomes NaN, and so does all of its row
        product = _PRODUCTS[self.kernel](torch.div(exact, step).round_(), limit + 1, self.packed, self.scales)
        product.mul_(step)
        if self.bias is not None:
            product.add_(self.bias)
        out.copy_(product)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kernel={self.kernel}"


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


def pack(rounded: torch.Tensor, kernel: Int8Kernel) -> Any:
    """Weights that were rounded, int8 `[out, in]`, in the order in which a kernel reads them."""
    if kernel != "fbgemm":
        return torch.ops.onednn.qlinear_prepack(rounded, None)
    channels = rounded.shape[0]
    ones, zeros = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.int64)
    quantised = _TORCH._make_per_channel_quantized_tensor(rounded, ones, zeros, 0)
    return torch.ops.quantized.linear_prepack(quantised, None)


# A product takes rows in whole steps, float32 (FBGEMM's own rounding differs with the place in a row), which it may
# write over, the number that stands for zero, packed weights and their scales.
_Product = Callable[[torch.Tensor, int, Any, torch.Tensor], torch.Tensor]


def _onednn(steps: torch.Tensor, zero: int, packed: Any, scales: torch.Tensor) -> torch.Tensor:
    rows = steps.add_(zero).to(torch.uint8)
    none = torch.zeros(1, dtype=torch.int64)  # the weights' own zero
    operator: Any = torch.ops.onednn.qlinear_pointwise
    return operator(rows, 1.0, zero, packed, scales, none, None, 1.0, 0, torch.float32, "none", [], "")


def _onednn_by_4(steps: torch.Tensor, zero: int, packed: Any, scales: torch.Tensor) -> torch.Tensor:
    count = steps.shape[0]
    filled = functional.pad(steps, (0, 0, 0, max(0, FILLED_ROWS - count)))
    return _onednn(filled, zero, packed, scales)[:count]


def _fbgemm(steps: torch.Tensor, zero: int, packed: Any, scales: torch.Tensor) -> torch.Tensor:
    operator: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return operator(steps, 1.0, zero, packed).mul_(scales)


_PRODUCTS: dict[Int8Kernel, _Product] = {"onednn": _onednn, "onednn_by_4": _onednn_by_4, "fbgemm": _fbgemm}


@cache
def _trial(kernel: Int8Kernel) -> int | str:
    """The most bits of a rounded input with which a kernel multiplies the largest numbers exactly; else why none."""
    try:
        weight = torch.full((TRIAL_OUTPUTS, TRIAL_INPUTS), WEIGHT_LIMIT, dtype=torch.int8)
        weight[1::2] *= -1
        with warnings.catch_warnings():  # torch says once that what FBGEMM takes will go
            warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor", category=UserWarning)
            packed = pack(weight, kernel)
        for bits in INPUT_BITS:
            largest = (1 << bits - 1) - 1
            if all(_is_exact(kernel, packed, weight, rows, largest) for rows in TRIAL_ROWS):
                return bits
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return "its products of the largest numbers are wrong on this processor"


def _is_exact(kernel: Int8Kernel, packed: Any, weight: torch.Tensor, rows: int, largest: int) -> bool:
    inputs = torch.full((rows, TRIAL_INPUTS), float(largest))
    expected = inputs @ weight.float().T
    product = _PRODUCTS[kernel](inputs, largest + 1, packed, torch.ones(TRIAL_OUTPUTS))
    return torch.equal(product, expected)


def _bits(kernel: Int8Kernel) -> int:
    bits = _trial(kernel)
    if isinstance(bits, str):
        raise ValueError(f"{kernel}: {bits}")
    return bits


def int8_kernels() -> list[Int8Kernel]:
    """The kernels that this machine has and that were seen to be exact."""
    return [kernel for kernel in KERNELS if isinstance(_trial(kernel), int)]


def default_kernel() -> Int8Kernel:
    """The kernel that is taken unmeasured: one that is exact with 8 bits if there is one.

    Raises:
        ValueError: there is none at all.
    """
    kernels = int8_kernels()
    if not kernels:
        raise ValueError(int8_available())
    order: tuple[Int8Kernel, ...] = ("onednn_by_4", "fbgemm", "onednn")
    return max(sorted(kernels, key=order.index), key=_bits)


def int8_available() -> str | None:
    """None where 8-bit layers can be had on the CPU, else why not, in one clause."""
    if int8_kernels():
        return None
    return "; ".join(f"{kernel}: {_trial(kernel)}" for kernel in KERNELS if kernel != "onednn_by_4")


class Int4Linear(nn.Module):
    """A linear layer with weights in 4 bits, each group of inputs with a scale and a zero; multiplied in bfloat16."""

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,
        in_features: int,
        out_features: int,
        bias: torch.Tensor | None = None,
    ) -> None:
        """A layer from its parts.

        Args:
            packed: uint8 `[out', in' / 2]`, torch's order, both filled up to what it can pack.
            scales: bfloat16 `[in' / group, out', 2]`, the worth of one step and what the middle (8) stands for.
            bias: `[out]`.
        """
        super().__init__()
        self.packed = packed
        self.scales = scales
        self.in_features = in_features
        self.out_features = out_features
        self.group = packed.shape[1] * 2 // scales.shape[0]
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Self:
        """Rounds and packs the weight of a linear layer, `[out, in]` in any float dtype."""
        channels, inputs = weight.shape
        group = next((size for size in GROUPS if inputs % size == 0), GROUPS[-1])
        missing = -inputs % group, -channels % INT4_CHANNELS
        outputs, filled = channels + missing[1], inputs + missing[0]
        packed = torch.empty(outputs, filled // 2, dtype=torch.uint8)
        scales = torch.zeros(filled // group, outputs, 2, dtype=torch.bfloat16)
        for start in range(0, outputs, WEIGHT_ROWS):
            block = weight.detach()[start : start + WEIGHT_ROWS].float()
            numbers, worth = _rounded_groups(functional.pad(block, (0, missing[0])).unflatten(1, (-1, group)))
            stop = start + len(block)
            scales[:, start:stop] = worth.transpose(0, 1)
            missing_rows = min(WEIGHT_ROWS, outputs - start) - len(block)
            rows = functional.pad(numbers.flatten(1), (0, 0, 0, missing_rows), value=8)
            packed[start : start + WEIGHT_ROWS] = _TORCH._convert_weight_to_int4pack_for_cpu(rows, 1)
        return cls(packed, scales, inputs, channels, bias)

    def parts(self) -> dict[str, Any]:
        """Its tensors but the bias."""
        return {"packed": self.packed, "scales": self.scales}

    def facts(self) -> dict[str, Any]:
        """Plain JSON that makes the layer again, together with its parts."""
        return {"kind": "int4", "in_features": self.in_features, "out_features": self.out_features}

    def use(self, parts: Mapping[str, Any]) -> None:
        """Puts equal tensors in the place of its own."""
        self.packed, self.scales = parts["packed"], parts["scales"]

    @classmethod
    def restored(cls, facts: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        """The layer that has these facts and parts."""
        return cls(parts["packed"], parts["scales"], facts["in_features"], facts["out_features"])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, `[..., in]` to `[..., out]` in the input's dtype."""
        rows = input.reshape(-1, self.in_features).bfloat16()
        rows = functional.pad(rows, (0, self.packed.shape[1] * 2 - self.in_features)).contiguous()
        out = _TORCH._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales)[:, : self.out_features].to(
            input.dtype
        )
        if self.bias is not None:
            out = out + self.bias.to(input.dtype)
        return out.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"


def _rounded_groups(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups of weights, float32 `[out, groups, size]`, as whole numbers from 0 to 15 of that shape.

    The second result, bfloat16 `[out, groups, 2]`, has the worth of one step and what 8 stands for. A group that holds
    a NaN or an infinity stands for NaN throughout.
    """
    low, high = torch.aminmax(exact, dim=2, keepdim=True)
    step = ((high - low) / 15).clamp_(min=torch.finfo(torch.float32).tiny).bfloat16()
    middle = (low + 8 * step.float()).bfloat16()
    numbers = ((exact - middle.float()) / step.float()).nan_to_num_(0.0).round_().add_(8).clamp_(0, 15).int()
    return numbers, torch.cat([step, middle], dim=2)


@cache
def int4_available() -> str | None:
    """None where 4-bit layers can be had on the CPU, else why not, in one clause."""
    try:
        Int4Linear.from_weight(torch.ones(INT4_CHANNELS, GROUPS[-1]), None)(torch.ones(1, GROUPS[-1]))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None
