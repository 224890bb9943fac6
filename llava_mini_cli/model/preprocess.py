"""Pixels as CLIP wants them, equal to the reference's to the last bit, batched on the model's device.

Resizing is Pillow's: by Pillow itself on the CPU, and elsewhere by the same fixed-point arithmetic in
torch (`resize_bicubic`), which a test holds equal to Pillow's. Knows nothing of files or text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.geometry import nearest_index

PAD_COLOUR = (122, 116, 104)  # CLIP's mean, as the reference rounds it
BICUBIC = 3  # Pillow's number, as preprocessor_config.json holds it
FIXED_POINT_BITS = 22  # of Pillow's 8-bit resampling coefficients


def resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pillow's antialiased bicubic resize, bit for bit.

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
    indices, weights = (torch.from_numpy(a).to(images.device) for a in _taps(images.shape[axis], size))
    shape = [1] * images.dim()
    shape[axis] = size
    total = torch.full((), 1 << (FIXED_POINT_BITS - 1), dtype=torch.int32, device=images.device)
    for index, weight in zip(indices, weights, strict=True):
        total = total + images.index_select(axis, index).int() * weight.reshape(shape)
    return (total >> FIXED_POINT_BITS).clamp(0, 255).to(torch.uint8)


def _taps(source: int, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Source index and fixed-point weight of each tap of each output position, both `[taps, size]`."""
    scale = source / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    taps = first + np.arange(int((last - first).max()))[:, None]
    weight = np.where(taps < last, _cubic((taps - centre + 0.5) * (1.0 / stretch)), 0.0)
    fixed = weight / weight.sum(axis=0) * (1 << FIXED_POINT_BITS)
    rounded = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(taps, source - 1), rounded


def _cubic(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Keys' cubic kernel with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def squash(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames squashed to a square by nearest sampling, aspect ratio ignored, as the reference does for video.

    Args:
        frames: uint8 `[T, H, W, 3]`.

    Returns:
        uint8 `[T, size, size, 3]`; frames of that size are returned as they are.
    """
    if frames.shape[1:3] == (size, size):
        return frames
    rows, columns = (torch.from_numpy(nearest_index(edge, size)) for edge in frames.shape[1:3])
    return frames[:, rows.to(frames.device)][:, :, columns.to(frames.device)]


def split(images: torch.Tensor, n: int) -> list[torch.Tensor]:
    """n x n row-major pieces and then the whole; remainder pixels on the right and bottom are in no piece.

    Args:
        images: `[B, H, W, 3]`.

    Returns:
        n * n + 1 tensors (one when n is 1), of one size each but for the last.
    """
    if n == 1:
        return [images]
    height, width = images.shape[1] // n, images.shape[2] // n
    pieces = [
        images[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(n)
        for column in range(n)
    ]
    return [*pieces, images]


def pad_to_square(images: torch.Tensor) -> torch.Tensor:
    """Letterboxes `[B, H, W, 3]` to `[B, edge, edge, 3]` with CLIP's mean colour."""
    height, width = images.shape[1:3]
    edge = max(height, width)
    if height == width:
        return images
    colour = torch.tensor(PAD_COLOUR, dtype=torch.uint8, device=images.device)
    canvas = colour.expand(images.shape[0], edge, edge, 3).clone()
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas[:, top : top + height, left : left + width] = images
    return canvas


def centre_crop(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle `[B, height, width, 3]`, filled with black where the picture is smaller."""
    short = max(height - images.shape[1], 0), max(width - images.shape[2], 0)
    if any(short):
        top, left = (short[0] + 1) // 2, (short[1] + 1) // 2
        images = functional.pad(images, (0, 0, left, short[1] - left, top, short[0] - top))
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class Preprocessor:
    """CLIP's own settings, and how LLaVA-Mini cuts pictures before them."""

    shortest_edge: int
    crop: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    splits: int = 1  # n of n x n pieces
    pad: bool = False  # letterbox images; never video
    frame_size: int = 336  # pixels; the square that video frames are squashed to

    @classmethod
    def from_fields(cls, fields: dict[str, Any], source: Path, **settings: Any) -> Self:
        """From a `preprocessor_config.json`, of the old style (plain integers) or the new.

        Raises:
            CheckpointError: it asks for another resampling than bicubic, or lacks a field.
        """
        if fields.get("resample", BICUBIC) != BICUBIC:
            raise CheckpointError(f"{source}: resample {fields['resample']}; only bicubic ({BICUBIC}) is known")
        try:
            size, crop = fields["size"], fields.get("crop_size", fields["size"])
            edge = size["shortest_edge"] if isinstance(size, dict) else size
            area = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
            mean, std = tuple(fields["image_mean"]), tuple(fields["image_std"])
        except KeyError as error:
            raise CheckpointError(f"{source}: no field {error}") from error
        return cls(edge, area, mean, std, fields.get("rescale_factor", 1 / 255), **settings)

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """One image, uint8 `[H, W, 3]`, to float32 `[parts, 3, height, width]`."""
        pieces = split(image[None], self.splits)
        if self.pad:
            pieces = [pad_to_square(piece) for piece in pieces]
        return torch.cat([self._clip(piece) for piece in pieces])

    def frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Video frames, uint8 `[T, H, W, 3]`, to float32 `[T, parts, 3, height, width]`."""
        pieces = split(squash(frames, self.frame_size), self.splits)
        return torch.stack([self._clip(piece) for piece in pieces], dim=1)

    def _clip(self, images: torch.Tensor) -> torch.Tensor:
        """CLIP's processor: uint8 `[B, H, W, 3]` to float32 `[B, 3, height, width]`."""
        height, width = images.shape[1:3]
        short, long = min(height, width), max(height, width)
        reach = int(self.shortest_edge * long / short)
        size = (self.shortest_edge, reach) if height <= width else (reach, self.shortest_edge)
        pixels = centre_crop(resize_bicubic(images, *size), *self.crop)
        table = (torch.arange(256, dtype=torch.float64) * self.rescale).float().to(images.device)
        mean, std = (torch.tensor(v, dtype=torch.float32, device=images.device) for v in (self.mean, self.std))
        return ((table[pixels.long()] - mean) / std).permute(0, 3, 1, 2)
