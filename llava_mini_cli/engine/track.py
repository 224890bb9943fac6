"""The state of one request on its way through the engine: frames to come, windows being summed, answers begun.

Holds tensors but computes nothing beyond sums; the order of work is the engine's.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.generate import PrefillItem
from llava_mini_cli.engine.kv_cache import RowCache
from llava_mini_cli.engine.pack import PromptGroup, TextPack
from llava_mini_cli.engine.request import AnyChunk, Failure, FeatureChunk, Request, Window
from llava_mini_cli.errors import ItemError
from llava_mini_cli.media.clip import FrameChunk


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
        if not self.groups:
            return
        self._append(tokens.flatten(0, 1))
        part = fused.sum(0, dtype=torch.float32)
        self.total = part if self.total is None else self.total.add_(part)
        self.frame_count += len(tokens)

    def drop_prompts(self, dropped: Collection[int]) -> None:
        """Leaves some prompts out."""
        self.groups = tuple(kept for group in self.groups if (kept := group.without(dropped)).prompts)
        if not self.groups:
            self.release()

    def release(self) -> None:
        """Lets go of the tensors once they are prefilled."""
        self._buffer, self.total = None, None

    def _append(self, tokens: torch.Tensor) -> None:
        """Appends to one buffer that doubles: a long video's small tokens must not lie scattered over the heap."""
        used = self._used + len(tokens)
        if self._buffer is None or used > len(self._buffer):
            larger = tokens.new_empty(max(64, 2 * used), tokens.shape[1])
            if self._buffer is not None:
                larger[: self._used] = self.tokens
            self._buffer = larger
        self._buffer[self._used : used] = tokens
        self._used = used


@dataclass(frozen=True)
class SeenFrames:
    """Frames behind the vision tower, for a further pass with other prompts."""

    features: torch.Tensor  # [n, parts, N, mm_hidden_size]
    times: NDArray[np.float64]  # [n] seconds


SomeFrames = AnyChunk | SeenFrames


@dataclass(eq=False)
class Track:
    """One request whose frames are being encoded."""

    request: Request
    packs: Sequence[TextPack]  # one for each pass; one is enough but for very many prompts
    frames: Iterator[AnyChunk]
    windows: list[WindowSum]  # not yet complete; one for each of the request's and each pass
    ended: bool = False  # the source has no more frames
    _left: SomeFrames | None = None  # decoded, and more than was taken

    def frames_ready(self) -> bool:
        """True if `take` would not have to wait."""
        return self._left is not None or (not self.ended and self.request.frames.ready())

    def take(self, most: int) -> SomeFrames | None:
        """Up to `most` next frames, waiting for them if need be; None at the end. Raises what the source raises."""
        chunk, self._left = self._left, None
        if chunk is None and not self.ended:
            chunk = next(self.frames, None)
            self.ended = chunk is None
        if chunk is None or len(chunk.times) <= most:
            return chunk
        self._left = cut(chunk, slice(most, None))
        return cut(chunk, slice(most))

    def add(self, tokens: torch.Tensor, fused: torch.Tensor, times: NDArray[np.float64], pass_number: int = 0) -> None:
        """Adds frames that a pass encoded to each of its windows that holds them."""
        for window in self.windows:
            if window.pass_number != pass_number:
                continue
            inside = (times >= window.window.start) & (times < window.window.end)
            if inside.all():
                window.add(tokens, fused)
            elif inside.any():
                index = torch.from_numpy(np.flatnonzero(inside)).to(tokens.device)
                window.add(tokens[index], fused[index])

    def failures(self, window: WindowSum, error: ItemError, stage: str | None = None) -> list[Failure]:
        """One for each prompt that is asked of a window; `stage`: the error's own if None."""
        return [self.request.failure(prompt, window.index, error, stage) for prompt in window.prompts]

    def complete(self, now: float) -> list[WindowSum]:
        """Takes out the windows that end at or before `now`, seconds; all of them once the source ended."""
        done = [window for window in self.windows if self.ended or window.window.end <= now]
        self.windows = [window for window in self.windows if window not in done]
        return done


Complete = tuple[Track, WindowSum]  # a window all of whose frames are encoded
Chunk = list[tuple[Track, SomeFrames]]


def prefill_items(track: Track, window: WindowSum) -> list[PrefillItem]:
    """A window's frames and fused text as the LLM reads them, one item for each group of the window's prompts.

    The fused text of a video is the mean over its frames.
    """
    assert window.total is not None
    text = (window.total / window.frame_count).to(window.tokens.dtype)

    def part(number: int) -> torch.Tensor:
        segment = track.packs[window.pass_number].segments[number]
        return text[segment.start : segment.stop]

    return [
        PrefillItem(torch.cat([part(group.shared)[:-1], window.tokens]), tuple(part(tail) for tail in group.tails))
        for group in window.groups
    ]


def cut(chunk: SomeFrames, part: slice) -> SomeFrames:
    """A part of the frames that one medium gave."""
    if isinstance(chunk, SeenFrames):
        return SeenFrames(chunk.features[part], chunk.times[part])
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


def apart(chunk: Chunk) -> list[Chunk]:
    """A chunk in stretches that hold either pixels or features."""
    return [list(stretch) for _, stretch in groupby(chunk, lambda part: isinstance(part[1], FrameChunk))]


@dataclass(eq=False)
class Generation:
    """One question being answered."""

    track: Track
    window: WindowSum
    prompt_index: int
    cache: RowCache
    row: int  # of the cache
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list[int])
    p_yes: float | None = None

    def failure(self, error: ItemError) -> Failure:
        """The failure of this question, in place of its answer."""
        return self.track.request.failure(self.prompt_index, self.window.index, error, "generate")
