"""What a frame's one token has to hold: which thing stands in each of the nine places, asked by linear heads.

An image's text reads the patches itself, in pre-fusion, and so teaches the token little; without this, the token
came to hold what there is but not where, and a video's frames could not be compared.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from llava_mini_cli.demo.render import random_look
from llava_mini_cli.demo.scenes import CANVAS, COLOURS, SHAPES, SIZES, Scene, Split, generator, random_scene
from llava_mini_cli.demo.videos import random_video
from llava_mini_cli.train.pixels import normalised, picture

CELLS = 9
HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES)}  # classes; shape 0: an empty place
IGNORED = -100  # colour and size of an empty place
MOVING = 0.5  # share of pictures that are frames of a moving thing, which stands where no image shows one
SQUASHED = 0.2  # share of pictures that take the road of video frames to the tower


def cell_truth(scene: Scene) -> NDArray[np.int64]:
    """`[9, 3]`: shape, colour and size of each place, in reading order, as class numbers of `HEADS`."""
    truth = np.full((CELLS, len(HEADS)), IGNORED, dtype=np.int64)
    truth[:, 0] = 0
    for thing in scene.things:
        numbers = SHAPES.index(thing.shape) + 1, COLOURS.index(thing.colour), SIZES.index(thing.size)
        truth[thing.row * 3 + thing.column] = numbers
    return truth


class TokenHeads(nn.Module):
    """Linear heads on a frame's tokens; thrown away after training.

    Args:
        width: of a token.
        tokens: a frame's.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.out = nn.Linear(width * tokens, CELLS * sum(HEADS.values()))

    def forward(self, tokens: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of frames' tokens `[F, V, width]` for `[F, 9, 3]` truth, and the share of things that are right."""
        flat = functional.rms_norm(tokens.flatten(1).float(), (tokens.shape[1] * tokens.shape[2],))
        logits = self.out(flat).view(len(flat), CELLS, -1).float()
        thing = truth[:, :, 0] > 0
        loss, right = logits.new_zeros(()), torch.ones_like(thing)
        for row, part in enumerate(logits.split(list(HEADS.values()), dim=2)):
            classes = truth[:, :, row]
            each = functional.cross_entropy(part.transpose(1, 2), classes, reduction="none", ignore_index=IGNORED)
            right &= part.argmax(-1) == classes
            loss = loss + _mean(each, thing)
            if row == 0:
                loss = loss + _mean(each, ~thing)
        return loss, _mean(right.float(), thing)


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The mean of the values at `where`, 0 if it is nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)


class Example(NamedTuple):
    """One picture, uint8 `[72, 72, 3]`, and what stands in its places, int64 `[9, 3]`."""

    pixels: NDArray[np.uint8]
    cells: NDArray[np.int64]


class TokenData(Dataset[Example]):
    """Single frames of images and of moving things with their truth; the same index always gives the same one."""

    def __init__(self, split: Split, length: int) -> None:
        self.split: Split = split
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.split, index)
        if rng.random() < MOVING:
            video = random_video(rng, self.split, "move")
            scene = video.scene(float(rng.uniform(0, video.seconds)))
        else:
            scene = random_scene(rng, self.split)
        edge, look = int(rng.choice(CANVAS[self.split])), random_look(rng, scene.background)
        return Example(picture(rng, scene, look, edge, squash=rng.random() < SQUASHED), cell_truth(scene))


def token_batch(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Examples of `TokenData` as tensors."""
    return {
        "pixel_values": normalised(np.stack([example.pixels for example in examples])),
        "cells": torch.from_numpy(np.stack([example.cells for example in examples])),
    }
