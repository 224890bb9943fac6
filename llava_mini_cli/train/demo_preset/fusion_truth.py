"""The knowledge that pre-fusion has to hand to the language model, asked by linear heads that training throws away.

A frame's token is asked which thing stands in each of the nine places: an image's text reads the patches itself, and
so teaches the token little; without this, the token came to hold what there is but not where, and a video's frames
could not be compared. The end of a question is asked for everything about the things that the question names, and one
about the background for that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from llava_mini_cli.demo.image_questions import DemoQuestion
from llava_mini_cli.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

CELLS = 9
NAMED = 2  # things that a question names at most
HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES), "place": CELLS}  # shape 0: nothing
IGNORED = -100  # what is not asked, such as the colour of nothing
NOTHING = (0, IGNORED, IGNORED, IGNORED)


def thing_truth(thing: Thing) -> tuple[int, int, int, int]:
    """A thing as class numbers of `HEADS`."""
    return SHAPES.index(thing.shape) + 1, COLOURS.index(thing.colour), SIZES.index(thing.size), thing.cell


def cell_truth(scene: Scene) -> NDArray[np.int64]:
    """`[9, 3]`: shape, colour and size of what stands in each place, in reading order."""
    truth = np.tile(np.array(NOTHING[:3], dtype=np.int64), (CELLS, 1))
    for thing in scene.things:
        *kind, place = thing_truth(thing)
        truth[place] = kind
    return truth


def named_truth(questions: Sequence[DemoQuestion]) -> NDArray[np.int64]:
    """`[n, 2, 4]`: shape, colour, size and place of the things that each question names, in order."""
    truth = np.full((len(questions), NAMED, len(HEADS)), IGNORED, dtype=np.int64)
    for row, question in enumerate(questions):
        for slot, thing in enumerate(question.about):
            truth[row, slot] = NOTHING if thing is None else thing_truth(thing)
    return truth


def background_truth(questions: Sequence[DemoQuestion]) -> NDArray[np.int64]:
    """`[n]`: the background that each question is about, if it is."""
    known = [BACKGROUNDS.index(q.answer) if q.kind == "background" else IGNORED for q in questions]
    return np.array(known, dtype=np.int64)


class FusionHeads(nn.Module):
    """Linear heads on what pre-fusion gives.

    Args:
        width: of a token.
        tokens: a frame's.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width * tokens, CELLS * sum(list(HEADS.values())[:3]))
        self.named = nn.Linear(width, NAMED * sum(HEADS.values()))
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def frames(self, tokens: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of frames' tokens `[F, V, width]` for `cell_truth`, and the share of things that are right."""
        return _judged(self.cells(_normed(tokens.flatten(1))).unflatten(1, (CELLS, -1)), truth)

    def texts(self, ends: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of questions' ends `[n, width]` for `named_truth`, and the share of things that are right."""
        return _judged(self.named(_normed(ends)).unflatten(1, (NAMED, -1)), truth)

    def backgrounds(self, ends: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss of questions' ends `[n, width]` for `background_truth`, 0 where none is about it."""
        logits = self.background(_normed(ends)).float()
        return functional.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum") / (
            (truth != IGNORED).sum().clamp(min=1)
        )


def _normed(values: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(values.float(), values.shape[1:])


def _judged(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[n, slots, classes]` of all heads against `[n, slots, heads]`; things and nothing count the same."""
    logits = logits.float()
    thing, nothing = truth[:, :, 0] > 0, truth[:, :, 0] == 0
    loss, right = logits.new_zeros(()), torch.ones_like(thing)
    for row, part in enumerate(logits.split(list(HEADS.values())[: truth.shape[2]], dim=2)):
        classes = truth[:, :, row]
        each = functional.cross_entropy(part.transpose(1, 2), classes, reduction="none", ignore_index=IGNORED)
        right &= part.argmax(-1) == classes
        loss = loss + _mean(each, thing) + _mean(each, nothing)
    return loss, _mean(right.float(), thing)


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The mean of the values at `where`, 0 if it is nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)
