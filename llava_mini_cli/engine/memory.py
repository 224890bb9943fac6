"""Memory: running out of it as one kind of error on every device, and pixels on their way to the device.

A device that is lost is told from one that is full. Knows nothing of models or requests.
"""

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.errors import DeviceLost, first_line, kind_of

# Bytes: tensors up to the first are made in memory that was kept, of which at most the second lies at the end of the
# heap. The widest tensor of a layer takes 145 MB: of the published model, for eight frames in bfloat16.
LARGEST_KEPT, MOST_KEPT = 256 << 20, 512 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # what glibc calls them by

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# In a RuntimeError, in any case: CUDA, HIP, MPS and Triton; torch's CPU allocator and the system's; oneDNN (both);
# cuBLAS and cuDNN, which make their handles when they are first used, and say "not initialized" where they cannot.
_RAN_OUT = re.compile(
    "out of memory|allocate memory|not enough memory|insufficient memory|bad_?alloc|alloc_failed"
    "|could not create a (?:primitive|memory)|cu(?:blas|dnn)_status_not_initialized",
    re.IGNORECASE,
)
# Errors after which nothing works on a CUDA or HIP device until the process is started anew.
_LOST = re.compile(
    "device-side assert|illegal (?:memory access|address|instruction)|misaligned address|unspecified launch failure"
    r"|launch (?:timed out|failed)|\becc\b|hardware (?:stack )?error|fallen off the bus|gpu is lost"
    "|driver shutting down|no cuda-capable device|devices? is/are busy or unavailable|invalid (?:device )?context"
    "|context is destroyed|(?:cuda|hip) error: unknown error|cublas_status_execution_failed|nvlink",
    re.IGNORECASE,
)


def unless_out_of_memory(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | None:
    """The function's result, or None if memory ran out, on a CPU as on CUDA.

    By then everything that the function held is let go: an exception keeps it alive until it has been handled, so
    whatever is tried instead belongs behind this call and not into an `except`.

    Raises:
        DeviceLost: the device does not work any more. Whatever else the function raises is raised.
    """
    try:
        return function(*args, **kwargs)
    except (MemoryError, RuntimeError, OSError) as error:
        _unless_lost(error)
        if not ran_out(error):
            raise
    free()
    return None


def ran_out(error: Exception) -> bool:
    """True if an error says that there is no memory, however it says so."""
    if isinstance(error, OSError):
        return kind_of(error) == "out_of_memory"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None


def free() -> None:
    """Gives back what nothing uses any more: what cycles of objects hold, and what torch keeps for later on CUDA.

    Raises:
        DeviceLost: the shortage was the first sign of it. CUDA tells of many errors at the next call only.
    """
    gc.collect()
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        _unless_lost(error)
        if not ran_out(error):
            raise


def _unless_lost(error: Exception) -> None:
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        raise DeviceLost(
            f"the device does not work any more ({first_line(error)}); what was answered is written, and the same "
            "command does the rest"
        ) from error


class Upload:
    """Pixels to a device; on CUDA from pinned memory in a stream of its own, so that copying and computing overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """uint8, any shape, on the device; ready for work on the current stream."""
        host = torch.from_numpy(pixels)
        if self._stream is None:
            return host.to(self._device)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copied = host.pin_memory().to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        copied.record_stream(current)  # its memory is not given away while the current stream reads it
        return copied


def keep_freed_memory() -> None:
    """Has the C library keep memory that was freed for the next wide tensors of a layer, where it is glibc.

    On its own it gives every piece of more than 32 MiB back to the system at once, and has the system clear new pages
    for the next one: a sixth of the processor's time in encoding eight frames.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, MOST_KEPT)
