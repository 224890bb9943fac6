"""Memory: running out of it as one kind of error on every device, and pixels on their way to the device.

Knows nothing of models or requests.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# In a RuntimeError: torch's CPU allocator, oneDNN (both), cuBLAS and cuDNN (their handles), and pinned memory.
_SAID = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def unless_out_of_memory(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | None:
    """The function's result, or None if memory ran out, on a CPU as on CUDA.

    By then everything that the function held is let go: an exception keeps it alive until it has been handled, so
    whatever is tried instead belongs behind this call and not into an `except`.
    """
    try:
        return function(*args, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        if not any(words in str(error) for words in _SAID):
            raise
    torch.cuda.empty_cache()
    return None


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
