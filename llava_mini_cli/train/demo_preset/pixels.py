"""Rendered demo frames -> what the demo tower sees: 72 px, CLIP-normalised, by the roads that real media take.

An image is resized by CLIP's bicubic step; a video frame is first squashed to a square by nearest sampling.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from llava_mini_cli.demo.render import Look, render
from llava_mini_cli.demo.scenes import Scene, Split, generator
from llava_mini_cli.geometry import nearest_index

EDGE = 72  # pixels of the demo tower's input
FRAME_EDGE = 336  # pixels of the square to which video frames are squashed
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


Rendered = TypeVar("Rendered")


class RenderedData(Dataset[Rendered]):
    """Examples of a split rendered on demand, the first of them the one with the number `first`."""

    def __init__(self, split: Split, length: int, first: int = 0) -> None:
        self.split: Split = split
        self.length = length
        self.first = first

    def __len__(self) -> int:
        return self.length

    def generator(self, index: int) -> np.random.Generator:
        """The random stream of one example, the same every time."""
        return generator(self.split, self.first + index)


def squashed(pixels: NDArray[np.uint8], edge: int = FRAME_EDGE) -> NDArray[np.uint8]:
    """A frame `[h, w, 3]` brought to `[edge, edge, 3]` by nearest sampling, as video frames are."""
    rows, columns = nearest_index(pixels.shape[0], edge), nearest_index(pixels.shape[1], edge)
    return pixels[rows][:, columns]


def resized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A square picture at the tower's size, uint8 `[72, 72, 3]`."""
    if pixels.shape[0] == EDGE:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((EDGE, EDGE), Image.Resampling.BICUBIC))


def normalised(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 `[n, 72, 72, 3]` to float32 `[n, 3, 72, 72]` with CLIP's mean and standard deviation."""
    scaled = (pictures.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def picture(rng: np.random.Generator, scene: Scene, look: Look, edge: int, squash: bool) -> NDArray[np.uint8]:
    """A scene as the tower sees it, uint8 `[72, 72, 3]`."""
    pixels = render(scene, look, edge, rng)
    return resized(squashed(pixels) if squash else pixels)
