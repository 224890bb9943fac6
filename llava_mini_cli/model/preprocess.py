"""Pixels as CLIP wants them, equal to the reference's to the last bit, batched on the model's device.

Knows nothing of files or text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import functional

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.model.fields import PICTURE_SIZE, PREPROCESSOR, checked_fields
from llava_mini_cli.model.resize import resize_bicubic
from llava_mini_cli.pieces import ArrayRaster, PieceLayout, pieces, spans

BICUBIC = 3  # Pillow's number, as preprocessor_config.json holds it


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

    Where an edge has fewer than n pixels, each piece has one, and neighbours may have the same.

    Args:
        images: `[B, H, W, 3]`.

    Returns:
        n * n + 1 tensors (one when n is 1), of one size each but for the last.
    """
    if n == 1:
        return [images]
    rows, columns = ([slice(one.start, one.stop) for one in spans(edge, n)] for edge in images.shape[1:3])
    return [*(images[:, row, column] for row in rows for column in columns), images]


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
        fields = checked_fields(fields, PREPROCESSOR, source)
        for key in ("size", "crop_size"):
            if isinstance(fields.get(key), dict):
                fields[key] = checked_fields(fields[key], PICTURE_SIZE, f"{source}: {key}")
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

    @property
    def layout(self) -> PieceLayout:
        """How pictures are cut and resized before they are normalised."""
        return PieceLayout(self.shortest_edge, self.crop, self.splits, self.pad)

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """One image, uint8 `[H, W, 3]`, to float32 `[parts, 3, height, width]`."""
        made = pieces(ArrayRaster(image.cpu().numpy()), self.layout)
        return self.normalised(torch.from_numpy(made).to(image.device))

    def frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Video frames, uint8 `[T, H, W, 3]`, to float32 `[T, parts, 3, height, width]`."""
        cut = split(squash(frames, self.frame_size), self.splits)
        return torch.stack([self._clip(piece) for piece in cut], dim=1)

    def _clip(self, images: torch.Tensor) -> torch.Tensor:
        """CLIP's processor: uint8 `[B, H, W, 3]` to float32 `[B, 3, height, width]`."""
        height, width = images.shape[1:3]
        short, long = min(height, width), max(height, width)
        reach = int(self.shortest_edge * long / short)
        size = (self.shortest_edge, reach) if height <= width else (reach, self.shortest_edge)
        return self.normalised(centre_crop(resize_bicubic(images, *size), *self.crop))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels of CLIP's size, uint8 `[B, height, width, 3]`, to float32 `[B, 3, height, width]`."""
        table = (torch.arange(256, dtype=torch.float64) * self.rescale).float().to(pixels.device)
        mean, std = (torch.tensor(v, dtype=torch.float32, device=pixels.device) for v in (self.mean, self.std))
        return ((table[pixels.long()] - mean) / std).permute(0, 3, 1, 2)
