"""Memory: running out of it as one kind of error on every device, and pixels on their way to the device.

Knows nothing of models or requests.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_CPU_ALLOCATOR = "can't allocate memory"  # how torch's CPU allocator says it, in a plain RuntimeError


def tells_out_of_memory(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes a function raise `torch.OutOfMemoryError` for memory that ran out on a CPU as it does on CUDA."""

    @wraps(function)
    def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except MemoryError as error:
            raise torch.OutOfMemoryError("no memory left") from error
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _CPU_ALLOCATOR not in str(error):
                raise
            raise torch.OutOfMemoryError(str(error)) from error

    return told


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
