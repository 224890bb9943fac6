"""Packed weights as bytes, and as tensors over a mapped file that were neither packed nor copied again.

A weight that oneDNN packed is a tensor without strides (of the layout `torch._mkldnn`): some memory, and a description
of how the numbers lie in it. torch hands out both, and the C interface of libtorch, which programs compiled ahead of
time use, makes a tensor of both. Such a tensor does not own its memory; here the memory hangs on the tensor. Knows
nothing of files' formats.
"""

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

ALIGNMENT = 64  # bytes: of every tensor in a file, as torch aligns its own
_TRIAL = (96, 160)  # outputs and inputs of the weight that is tried: no multiples of what kernels take at a time


def is_packed(tensor: torch.Tensor) -> bool:
    """True for a weight that oneDNN packed."""
    return tensor.is_mkldnn


def pack(weight: torch.Tensor) -> torch.Tensor:
    """An int8 weight `[out, in]`, packed by oneDNN: a tensor `[in, out]` without strides."""
    operator: Any = torch.ops.onednn.qlinear_prepack
    return operator(weight, None)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The int8 weight `[out, in]` that was packed."""
    return packed.to_dense().t().contiguous()


def layout_of(packed: torch.Tensor) -> bytes:
    """oneDNN's description of how a packed weight lies in memory."""
    operator: Any = torch.ops.mkldnn._get_mkldnn_serialized_md  # pyright: ignore[reportPrivateUsage]
    return bytes(operator(packed).tolist())


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a packed or a contiguous dense tensor on the CPU, not copied. The tensor must outlive them."""
    if is_packed(tensor):
        operators: Any = torch.ops.mkldnn
        address, length = operators.data_ptr(tensor), operators._nbytes(tensor)
    else:
        address, length = tensor.data_ptr(), tensor.nbytes
    return memoryview((ctypes.c_uint8 * length).from_address(address) if length else b"").cast("B")


def mapped(descriptor: int, offset: int, length: int) -> torch.Tensor:
    """Bytes of an open file as a uint8 tensor `[length]` over its pages, which can only be read.

    The file may be closed, renamed or removed afterwards, but never become shorter: the pages are its own. They stay
    mapped as long as the tensor's memory is in use.

    Args:
        offset: a multiple of the system's page size.
        length: above 0. The caller has made sure that the file holds so many bytes.

    Raises:
        OSError: the system does not map it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = library.mmap(None, length, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, offset)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot be mapped (error {number})")
    array = (ctypes.c_uint8 * length).from_address(address)
    # At the end of the process the system does it; until then some thread may still compute.
    weakref.finalize(array, library.munmap, address, length).atexit = False
    return torch.frombuffer(array, dtype=torch.uint8)


def packed_over(memory: torch.Tensor, shape: Sequence[int], layout: bytes) -> torch.Tensor:
    """A packed int8 weight whose bytes are there already.

    The memory lives as long as this tensor object: it must not be detached or copied into another one that outlives it.

    Args:
        memory: uint8 `[bytes]`, aligned to `ALIGNMENT`.
        shape: `[in, out]`, as of the packed tensor that the bytes came from.
        layout: `layout_of` that tensor.

    Raises:
        ValueError: the layout does not describe so many bytes.
        RuntimeError: oneDNN does not understand it.
    """
    count = len(shape)
    sizes = (ctypes.c_int64 * count)(*shape)
    strides = (ctypes.c_int64 * count)(*([1] * count))  # a packed tensor has none; they are not looked at
    description = (ctypes.c_uint8 * len(layout))(*layout)
    library, handle = _library(), ctypes.c_void_p()
    wrong = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(count), sizes, strides, ctypes.c_int64(0),
        ctypes.c_int32(library.aoti_torch_dtype_int8()), ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(-1), ctypes.byref(handle), ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        description, ctypes.c_int64(len(layout)),
    )  # fmt: skip
    if wrong:
        raise RuntimeError("oneDNN does not understand the layout of a packed weight")
    tensor = _taken_over(handle)
    operators: Any = torch.ops.mkldnn
    if operators._nbytes(tensor) != memory.numel():
        raise ValueError(f"a packed weight of {operators._nbytes(tensor)} bytes in {memory.numel()} bytes of memory")
    vars(tensor)["mapped_memory"] = memory
    return tensor


def _taken_over(handle: ctypes.c_void_p) -> torch.Tensor:
    """The tensor that a handle of the C interface stands for; the handle is used up."""
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    interface: Any = torch._C._aoti  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    # The call for a single handle returns a tensor with one reference too many, which then never goes.
    return interface.alloc_tensors_by_stealing_from_void_ptrs([new_capsule(handle.value, None, None)])[0]


@cache
def _library() -> ctypes.CDLL:
    """The library of torch whose C interface makes tensors; it is loaded already."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))


@cache
def can_map() -> str | None:
    """None where packed weights can be made from bytes; otherwise why not, in a clause.

    Looks for all that is needed, and tries it with a small weight: the product must be the same, bit for bit.
    """
    try:
        return _trial()
    except (OSError, AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        return f"torch {torch.__version__} cannot: {(str(error) or type(error).__name__).splitlines()[0]}"


def _trial() -> str | None:
    outputs, inputs = _TRIAL
    weight = (torch.arange(outputs * inputs).reshape(outputs, inputs) * 37 % 255 - 127).to(torch.int8)
    rows = (torch.arange(5 * inputs).reshape(5, inputs) * 11 % 128).to(torch.uint8)
    packed = pack(weight)
    if not is_packed(packed):
        return f"torch {torch.__version__} packs weights in another way"
    memory = torch.frombuffer(bytearray(memory_of(packed)), dtype=torch.uint8).clone()  # a clone is aligned
    again = packed_over(memory, packed.shape, layout_of(packed))
    same = is_packed(again) and again.shape == packed.shape and torch.equal(unpack(packed), weight)
    if not (same and torch.equal(_product(rows, packed), _product(rows, again))):
        return f"torch {torch.__version__} makes another weight of the same bytes"
    return None


def _product(rows: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    operator: Any = torch.ops.onednn.qlinear_pointwise
    outputs = packed.shape[1]
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    return operator(rows, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
