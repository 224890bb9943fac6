"""Pillow's antialiased bicubic resize of frames, bit for bit.

On the CPU Pillow does it, elsewhere its arithmetic in torch; tests hold both equal. Knows nothing of CLIP.
"""

import numpy as np
import torch
from PIL import Image

from llava_mini_cli.bicubic import FIXED_POINT_BITS, taps


def resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes whole pictures.

    Args:
        images: uint8 `[B, H, W, 3]`.

    Returns:
        uint8 `[B, height, width, 3]` on the same device.
    """
    if images.shape[1:3] == (height, width):
        return images
    if images.device.type == "cpu":
        return torch.stack([_resize_pillow(image, height, width) for image in images])
    return resize_bicubic_torch(images, height, width)


def _resize_pillow(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # Columns and rows in two calls: which comes first shows in the last bit, and Pillow 13 chooses by size.
    columns = Image.fromarray(image.numpy()).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    resized = columns.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def resize_bicubic_torch(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`resize_bicubic` in integer torch arithmetic, for any device: columns first, then rows."""
    if images.shape[2] != width:
        images = _resample(images, 2, width)
    return _resample(images, 1, height) if images.shape[1] != height else images


def _resample(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """One pass along an axis, tap by tap, in int32 as Pillow does it."""
    found = taps(images.shape[axis], size, np.arange(size))
    indices, weights = (torch.from_numpy(a).to(images.device) for a in found)
    shape = [1] * images.dim()
    shape[axis] = size
    total = torch.full((), 1 << (FIXED_POINT_BITS - 1), dtype=torch.int32, device=images.device)
    for index, weight in zip(indices, weights, strict=True):
        total = total + images.index_select(axis, index).int() * weight.reshape(shape)
    return (total >> FIXED_POINT_BITS).clamp(0, 255).to(torch.uint8)
