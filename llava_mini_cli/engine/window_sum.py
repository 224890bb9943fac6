"""What the frames of a window have come to so far: their tokens, and the sum of the text that was fused with them."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.left_out import PieceSums
from llava_mini_cli.engine.pack import PromptGroup, TextPack, without
from llava_mini_cli.engine.request import Window


@dataclass(eq=False)
class WindowSum:
    """The sum of a window's frames: one token each, and the total of the fused text in float32.

    Windows are summed one by one as their frames pass, not as differences of running sums over the whole
    video: the same cost, no cancellation, and a window is answered as soon as it ends.
    """

    index: int
    window: Window
    groups: tuple[PromptGroup, ...] = ()  # the prompts that are asked of it
    total: torch.Tensor | None = None  # float32 [T, hidden]
    frame_count: int = 0
    pass_number: int = 0  # the pass over the frames in which its prompts are asked, and the pack they are in
    pack: TextPack | None = None  # once it is complete, the pack of its pass, which may be split for frames to come
    pieces: PieceSums | None = None  # of which each can be left out
    _buffer: torch.Tensor | None = None  # [capacity, hidden], filled up to `_used`
    _used: int = 0

    @property
    def tokens(self) -> torch.Tensor:
        """The frame tokens so far, `[frame_count * C * C, hidden]`."""
        assert self._buffer is not None
        return self._buffer[: self._used]

    @property
    def prompts(self) -> list[int]:
        """The request's prompts that are asked of it, by their index."""
        return [prompt for group in self.groups for prompt in group.prompts]

    def add(self, tokens: torch.Tensor, fused: torch.Tensor) -> None:
        """Adds frames: tokens `[n, C * C, hidden]`, fused text `[n, T, hidden]`; none are kept if nothing is asked."""
        if self.groups:
            self.put(self.with_more(tokens, fused, np.zeros(len(tokens))))

    def with_more(self, tokens: torch.Tensor, fused: torch.Tensor, times: NDArray[np.float64]) -> "Sums":
        """What there is, and some more frames; nothing counts before it is put there."""
        flat = tokens.flatten(0, 1)
        part = fused.sum(0, dtype=torch.float32)
        total = part if self.total is None else part.add_(self.total)
        pieces = self.pieces and self.pieces.more(fused, times)
        return Sums(self._appended(flat), self._used + len(flat), total, self.frame_count + len(tokens), pieces)

    def put(self, sums: "Sums") -> None:
        """Takes over what `with_more` made. This needs no memory, so that every window of a medium does it, or none."""
        self._buffer, self._used, self.total, self.frame_count, self.pieces = sums

    def drop_prompts(self, dropped: Collection[int]) -> None:
        """Leaves some prompts out."""
        self.groups = without(self.groups, dropped)
        if not self.groups:
            self.release()

    def release(self) -> None:
        """Lets go of the tensors once they are prefilled."""
        self._buffer, self.total, self.pieces = None, None, None

    def halves(self) -> "list[WindowSum]":
        """Two windows of the same frames, each with half of the prompts; none of a single prompt."""
        prompts = self.prompts
        parts = [prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]] if len(prompts) > 1 else []
        return [replace(self, groups=without(self.groups, set(prompts) - set(part))) for part in parts]

    def _appended(self, tokens: torch.Tensor) -> torch.Tensor:
        """The buffer with tokens written behind those that count; a larger one where it is full.

        It doubles: a long video's small tokens must not lie scattered over the heap.
        """
        used, buffer = self._used + len(tokens), self._buffer
        if buffer is None or used > len(buffer):
            buffer = tokens.new_empty(max(64, 2 * used), tokens.shape[1])
            if self._used:
                buffer[: self._used] = self.tokens
        buffer[self._used : used] = tokens
        return buffer


class Sums(NamedTuple):
    """The sums of a window and how far its buffer is filled."""

    buffer: torch.Tensor
    used: int
    total: torch.Tensor
    frame_count: int
    pieces: PieceSums | None
