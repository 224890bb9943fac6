"""The state of one request on its way through the engine: frames to come, windows being summed, rows.

Holds tensors but computes nothing beyond sums; the order of work is the engine's.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.generate import PrefillItem
from llava_mini_cli.engine.kv_cache import RowCache
from llava_mini_cli.engine.pack import PromptGroup, TextPack
from llava_mini_cli.engine.request import AnyChunk, FeatureChunk, Request, Window
from llava_mini_cli.media.clip import FrameChunk


@dataclass(eq=False)
class WindowSum:
    """What is kept of a window's frames: one token each, and one float32 sum of the fused text.

    Windows are summed one by one as their frames pass, not as differences of running sums over the whole
    video: the same cost, no cancellation, and a window is answered as soon as it ends.
    """

    index: int
    window: Window
    groups: tuple[PromptGroup, ...] = ()  # the prompts that are asked of it
    total: torch.Tensor | None = None  # float32 [T, hidden]
    frame_count: int = 0
    _room: torch.Tensor | None = None  # [capacity, hidden], filled up to `_used`
    _used: int = 0

    @property
    def tokens(self) -> torch.Tensor:
        """The frame tokens so far, `[frame_count * C * C, hidden]`."""
        assert self._room is not None
        return self._room[: self._used]

    def add(self, tokens: torch.Tensor, fused: torch.Tensor) -> None:
        """Some more frames: tokens `[n, C * C, hidden]`, fused text `[n, T, hidden]`; kept where something is asked."""
        if not self.groups:
            return
        self._append(tokens.flatten(0, 1))
        part = fused.sum(0, dtype=torch.float32)
        self.total = part if self.total is None else self.total.add_(part)
        self.frame_count += len(tokens)

    @property
    def prompts(self) -> list[int]:
        """Which of the request's prompts are asked of it."""
        return [prompt for group in self.groups for prompt in group.prompts]

    def drop_prompts(self, dropped: Collection[int]) -> None:
        """Leaves some prompts out."""
        self.groups = tuple(kept for group in self.groups if (kept := group.without(dropped)).prompts)
        if not self.groups:
            self.release()

    def release(self) -> None:
        """Lets go of the tensors once they are prefilled."""
        self._room, self.total = None, None

    def _append(self, tokens: torch.Tensor) -> None:
        """Into one buffer that doubles: a long video's small tokens must not lie scattered over the heap."""
        used = self._used + len(tokens)
        if self._room is None or used > len(self._room):
            room = tokens.new_empty(max(64, 2 * used), tokens.shape[1])
            if self._room is not None:
                room[: self._used] = self.tokens
            self._room = room
        self._room[self._used : used] = tokens
        self._used = used


@dataclass(eq=False)
class Track:
    """One request whose frames are being encoded."""

    request: Request
    pack: TextPack
    frames: Iterator[AnyChunk]
    windows: list[WindowSum]  # not yet complete, in order of their start
    buffer: AnyChunk | None = None  # decoded, not yet encoded
    ended: bool = False  # the source has no more frames
    frame_count: int = 0  # encoded so far

    def frames_ready(self) -> bool:
        """Whether `take` would not have to wait."""
        return self.buffer is not None or (not self.ended and self.request.frames.ready())

    def take(self, most: int) -> AnyChunk | None:
        """Up to `most` next frames, waiting for them if need be; None at the end. Raises what the source raises."""
        if self.buffer is None and not self.ended:
            self.buffer = next(self.frames, None)
            self.ended = self.buffer is None
        if self.buffer is None:
            return None
        chunk = self.buffer
        self.buffer = cut(chunk, slice(most, None)) if len(chunk.times) > most else None
        return cut(chunk, slice(most))

    def add(self, tokens: torch.Tensor, fused: torch.Tensor, times: NDArray[np.float64]) -> None:
        """Adds encoded frames to every window that holds them."""
        self.frame_count += len(times)
        for window in self.windows:
            inside = (times >= window.window.start) & (times < window.window.end)
            if inside.all():
                window.add(tokens, fused)
            elif inside.any():
                index = torch.from_numpy(np.flatnonzero(inside)).to(tokens.device)
                window.add(tokens[index], fused[index])

    def complete(self, now: float) -> list[WindowSum]:
        """Takes out the windows that end at or before `now`, seconds; all of them once the source ended."""
        done = [window for window in self.windows if self.ended or window.window.end <= now]
        self.windows = [window for window in self.windows if window not in done]
        return done


def prefill_items(track: Track, window: WindowSum) -> list[PrefillItem]:
    """A window's frames and fused text as the LLM reads them, one item for each group of the window's prompts.

    The fused text of a video is the mean over its frames.
    """
    assert window.total is not None
    text = (window.total / window.frame_count).to(window.tokens.dtype)

    def part(number: int) -> torch.Tensor:
        segment = track.pack.segments[number]
        return text[segment.start : segment.stop]

    return [
        PrefillItem(torch.cat([part(group.shared)[:-1], window.tokens]), tuple(part(tail) for tail in group.tails))
        for group in window.groups
    ]


Chunk = list[tuple[Track, AnyChunk]]


def cut(chunk: AnyChunk, part: slice) -> AnyChunk:
    """Some of a chunk's frames."""
    if isinstance(chunk, FeatureChunk):
        return FeatureChunk(chunk.features[part], chunk.times[part])
    return FrameChunk(chunk.pixels[part], chunk.times[part])


def halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """A chunk of at least two frames cut in the middle."""
    left = sum(len(frames.times) for _, frames in chunk) // 2
    first: Chunk = []
    second: Chunk = []
    for track, frames in chunk:
        if left > 0:
            first.append((track, cut(frames, slice(left))))
        if len(frames.times) > left:
            second.append((track, cut(frames, slice(left, None))))
        left = max(0, left - len(frames.times))
    return first, second


@dataclass(eq=False)
class Generation:
    """One question being answered."""

    track: Track
    window: WindowSum
    prompt_index: int
    cache: RowCache
    number: int  # row of the cache
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list[int])
    p_yes: float | None = None
