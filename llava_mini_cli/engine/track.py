"""The state of one request on its way through the engine: frames to come, windows being summed, questions.

Holds tensors but computes nothing beyond sums; the order of work is the engine's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.left_out import PieceSums
from llava_mini_cli.engine.memory import ran_out
from llava_mini_cli.engine.pack import NO_PROMPTS, TextPack, halved, without
from llava_mini_cli.engine.request import AnyChunk, Cut, Failure, FeatureChunk, GrowingWindows, Request
from llava_mini_cli.engine.window_sum import Sums, WindowSum
from llava_mini_cli.errors import ItemError, MediaError, kind_of
from llava_mini_cli.media.clip import FrameChunk


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
    windows: list[WindowSum] = field(default_factory=list[WindowSum])  # begun, not yet complete; one for each pass
    begun: int = 0  # windows of the request that begin at or before the frames so far: its first ones
    failed: list[Failure] = field(default_factory=list[Failure])  # in windows that were told late; to be handed out
    ended: bool = False  # the source has no more frames
    error: ItemError | None = None  # the source broke; what was seen before counts
    # Of each prompt that is asked: how many tokens its answer may have, and what they are, for messages.
    new_tokens: Mapping[int, tuple[int, str]] = field(default_factory=dict[int, tuple[int, str]])
    # Prompts that are asked no more: the first window that was not told when they failed, and why.
    refused: dict[int, tuple[int, ItemError, str | None]] = field(
        default_factory=dict[int, tuple[int, ItemError, str | None]]
    )
    _left: SomeFrames | None = None  # decoded, and more than was taken
    features: torch.Tensor | None = None  # [1, parts, N, mm_hidden_size] of a picture whose blocks are left out

    @property
    def coming(self) -> int:
        """Windows that begin behind the frames so far, as far as they are told."""
        return len(self.request.windows) - self.begun

    @property
    def is_growing(self) -> bool:
        """True if there may be more windows than are told."""
        return isinstance(self.request.windows, GrowingWindows) and self.request.windows.is_growing

    @property
    def wants_embeddings(self) -> bool:
        """True if CLIP's embeddings of its frames are of use."""
        return self.request.sink is not None or any(one.wants_embeddings for one in self._growing)

    @property
    def _growing(self) -> list[GrowingWindows | Cut]:
        """What frames tell of: its windows, and the pieces of each."""
        windows, cut = self.request.windows, self.request.cut
        return [*([windows] if isinstance(windows, GrowingWindows) else []), *([] if cut is None else [cut])]

    def frames_ready(self) -> bool:
        """True if `take` would not have to wait."""
        return self._left is not None or (not self.ended and self.request.frames.ready())

    def take(self, most: int) -> SomeFrames | None:
        """Up to `most` next frames, waiting for them if need be; None at the end. Raises what the source raises.

        Raises:
            MediaError: also where memory ran out in the source, which then is at an end: asked again, an iterator
                that raised would say that there are no more frames.
        """
        if self._left is None and not self.ended:
            self._left = self._next()
        chunk = self._left
        if chunk is None or len(chunk.times) <= most:
            self._left, self.ended = None, self.ended or chunk is None
            return chunk
        taken, self._left = cut(chunk, slice(most)), cut(chunk, slice(most, None))
        return taken

    def _next(self) -> AnyChunk | None:
        try:
            return next(self.frames, None)
        except OSError as error:
            raise MediaError(kind_of(error), (error.strerror or str(error)).lower()) from error
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        raise MediaError("out_of_memory", "memory ran out while its frames were read")

    def add(self, tokens: torch.Tensor, fused: torch.Tensor, times: NDArray[np.float64], pass_number: int = 0) -> None:
        """Adds frames that a pass encoded to each of its windows that holds them; to none if memory runs out."""
        self.begin(float(times[-1]))
        added: list[tuple[WindowSum, Sums]] = []
        for window in self.windows:
            if window.pass_number != pass_number or not window.groups:
                continue
            inside = (times >= window.window.start) & (times < window.window.end)
            if inside.all():
                added.append((window, window.with_more(tokens, fused, times)))
            elif inside.any():
                index = torch.from_numpy(np.flatnonzero(inside)).to(tokens.device)
                added.append((window, window.with_more(tokens[index], fused[index], times[inside])))
        for window, sums in added:
            window.put(sums)

    def see(self, frames: SomeFrames, embeddings: torch.Tensor | None) -> None:
        """Tells windows and pieces that grow by embeddings of the next frames. Raises `MediaError`."""
        for one in self._growing:
            if one.wants_embeddings:
                stored = frames.embeddings if isinstance(frames, FeatureChunk) else None
                one.saw(frames.times, stored if embeddings is None else embeddings.cpu().numpy())

    def begin(self, now: float) -> None:
        """Makes the sums of the windows that begin at or before `now`, seconds; sees where those that grow end."""
        asked, cut = self.request.windows, self.request.cut
        for one in self.windows:
            if isinstance(asked, GrowingWindows):
                one.window = asked[one.index]
            if one.pieces is not None and cut is not None:
                one.pieces = one.pieces.cut_at(cut.bounds(one.window.start, one.window.end))
        while self.begun < len(asked):
            index = self.begun
            window = asked[index]
            if window.start > now:
                return
            for number, pack in enumerate(self.packs):
                groups = without(pack.groups, window.without) if window.without else pack.groups
                pieces = PieceSums.of(cut.bounds(window.start, window.end)) if cut is not None else None
                self.windows.append(WindowSum(index, window, groups, pass_number=number, pieces=pieces))
            self.begun += 1
            self.failed += [
                self.request.failure(prompt, index, error, stage)
                for prompt, (first, error, stage) in self.refused.items()
                if index >= first and prompt not in window.without
            ]

    def refuse(self, prompts: Collection[int], error: ItemError, stage: str | None = None) -> None:
        """Some prompts, which failed in all windows that are told, fail in those to come, too."""
        for prompt in prompts:
            self.refused.setdefault(prompt, (len(self.request.windows), error, stage))

    def failed_late(self) -> list[Failure]:
        """The failures of refused prompts that were not handed out, in all windows that are told."""
        asked = self.request.windows
        return self.failed + [
            self.request.failure(prompt, index, error, stage)
            for prompt, (first, error, stage) in self.refused.items()
            for index in range(max(first, self.begun), len(asked))
            if prompt not in asked[index].without
        ]

    def drop_pass(self, number: int) -> None:
        """Asks nothing in a pass any more, which goes over the frames all the same if others do."""
        self.packs = [*self.packs[:number], NO_PROMPTS, *self.packs[number + 1 :]]
        for window in self.windows:
            if window.pass_number == number:
                window.groups = ()
                window.release()

    def split_pass(self, number: int) -> bool:
        """Has half of the prompts of a pass asked in the pass behind it. False if there are no two.

        What was summed for them so far is dealt out; the two passes write the same frame tokens to one buffer.
        """
        parts = halved(self.packs[number])
        windows: list[WindowSum] = []
        for window in self.windows:
            if window.pass_number != number:
                windows.append(replace(window, pass_number=window.pass_number + (window.pass_number > number)))
                continue
            for later, (pack, rows) in enumerate(parts):
                total = None if window.total is None else window.total[torch.tensor(rows, device=window.total.device)]
                pieces = window.pieces and window.pieces.rows(rows)
                asked = without(pack.groups, set(pack.prompt_lengths) - set(window.prompts))
                windows.append(replace(window, groups=asked, total=total, pieces=pieces, pass_number=number + later))
        if parts:
            self.packs = [*self.packs[:number], *(pack for pack, _ in parts), *self.packs[number + 1 :]]
            self.windows = windows
        return bool(parts)

    def failures(self, window: WindowSum, error: ItemError, stage: str | None = None) -> list[Failure]:
        """One for each prompt that is asked of a window; `stage`: the error's own if None."""
        return [self.request.failure(prompt, window.index, error, stage) for prompt in window.prompts]

    def pass_failures(self, number: int, error: ItemError, stage: str | None = None) -> list[Failure]:
        """One for each prompt that a pass asks of a window, also of those that are still to come."""
        begun = [window for window in self.windows if window.pass_number == number]
        failures = [failure for window in begun for failure in self.failures(window, error, stage)]
        for group in self.packs[number].groups:
            for prompt in group.prompts:
                failures += self.request.failures(prompt, error, stage, self.begun)
        return failures

    def due(self, now: float) -> list[WindowSum]:
        """The windows that end at or before `now`, seconds; all of them once the source ended."""
        return [window for window in self.windows if self.ended or window.window.end <= now]

    def complete(self, now: float) -> list[WindowSum]:
        """Takes out the windows that are due."""
        done = self.due(now)
        left = [window for window in self.windows if not self.ended and window.window.end > now]
        for window in done:
            window.pack = self.packs[window.pass_number]
        self.windows = left
        return done

    def pack_of(self, window: WindowSum) -> TextPack:
        """The pack that a window's prompts are in."""
        return window.pack or self.packs[window.pass_number]


Complete = tuple[Track, WindowSum]  # a window all of whose frames are encoded
Chunk = list[tuple[Track, SomeFrames]]


def prefill_items(track: Track, window: WindowSum) -> list[PrefillItem]:
    """A window's frames and fused text as the LLM reads them, one item for each group of the window's prompts.

    The fused text of a video is the mean over its frames.
    """
    assert window.total is not None
    return items_of(track, window, (window.total / window.frame_count).to(window.tokens.dtype), window.tokens)


def items_of(track: Track, window: WindowSum, text: torch.Tensor, tokens: torch.Tensor) -> list[PrefillItem]:
    """The same of given frame tokens `[n, hidden]` and the fused text `[T, hidden]` of the window's pack."""

    def part(number: int) -> torch.Tensor:
        segment = track.pack_of(window).segments[number]
        return text[segment.start : segment.stop]

    return [
        PrefillItem(torch.cat([part(group.shared)[:-1], tokens]), tuple(part(tail) for tail in group.tails))
        for group in window.groups
    ]


def cut(chunk: SomeFrames, part: slice) -> SomeFrames:
    """A part of the frames that one medium gave."""
    if isinstance(chunk, SeenFrames):
        return SeenFrames(chunk.features[part], chunk.times[part])
    if isinstance(chunk, FeatureChunk):
        embeddings = None if chunk.embeddings is None else chunk.embeddings[part]
        return FeatureChunk(chunk.features[part], chunk.times[part], embeddings)
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
