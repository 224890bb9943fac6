"""Small pictures of the events of one medium: which there are is known only when all of its answers are.

So the picture of a frame or window is held from the moment that its answer says that an event goes on: of an event that
is over one, of one that goes on two. Knows nothing of rows.
"""

from math import isnan, nan

import numpy as np

from llava_mini_cli.config import EventOptions
from llava_mini_cli.engine.request import WHOLE, Answer, Failure, FrameWatcher
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.pipelines.events import Event
from llava_mini_cli.pipelines.frame_times import TimedWindows
from llava_mini_cli.pipelines.thumbnails import Kept, Middle, ThumbnailMaker, WindowThumbnails, jpeg_of


class EventThumbnails(FrameWatcher):
    """The pictures of what each question about a medium came to."""

    def __init__(
        self,
        maker: ThumbnailMaker,
        info: ClipInfo,
        windows: TimedWindows,
        prompts: int,
        looked_at: tuple[float, float],
        options: EventOptions,
    ) -> None:
        """`prompts`: questions about the medium; `looked_at`: seconds between which its frames lie."""
        self._windows = WindowThumbnails(maker, info, windows, prompts, looked_at)
        self._whole = WindowThumbnails(maker, info, (WHOLE,), 1, looked_at)
        self._runs = [_Runs(options) for _ in range(prompts)]

    def saw(self, frames: FrameChunk) -> None:
        """Keeps those of the next frames that may be shown."""
        self._windows.saw(frames)
        self._whole.saw(frames)

    def take(self, result: Answer | Failure) -> None:
        """Takes note of an answer about one window, which tells whether its picture is held on to."""
        p_yes = result.p_yes if isinstance(result, Answer) else None
        kept = self._windows.of(result.window_index)
        self._windows.answered(result.window_index)
        self._runs[result.prompt_index].take(result.window_index, nan if p_yes is None else p_yes, kept)

    def of(self, prompt: int, event: Event | None) -> bytes | None:
        """The picture nearest to the middle of an event of a question, or of the medium where there is no event."""
        kept = self._whole.of(0) if event is None else self._runs[prompt].within(event)
        return jpeg_of(kept)


class _Runs:
    """The windows in which a question holds, one behind the other, with a picture of each such run."""

    def __init__(self, options: EventOptions) -> None:
        self._options = options
        self._next = 0  # window
        self._waiting: dict[int, tuple[float, Kept | None]] = {}  # answers that came before those of earlier windows
        self._is_on = False
        self._start = self._last = 0.0  # seconds, of the run that goes on
        self._run = Middle()
        self._over: list[Kept] = []

    def take(self, window: int, p_yes: float, kept: Kept | None) -> None:
        self._waiting[window] = p_yes, kept
        while self._next in self._waiting:
            self._add(*self._waiting.pop(self._next))
            self._next += 1

    def _add(self, p_yes: float, kept: Kept | None) -> None:
        if isnan(p_yes) or kept is None:  # it holds no frame
            return
        was_on, options = self._is_on, self._options
        self._is_on = p_yes >= (options.off if was_on else options.on)
        if was_on and not self._is_on:
            self._close()
        if not self._is_on:
            return
        if not was_on:
            self._run, self._start = Middle(), kept.time
        self._last = kept.time
        self._run.look(np.array([kept.time]), self._start, None, lambda _: kept)

    def _close(self) -> None:
        held = self._run.nearest((self._start + self._last) / 2)
        if held is not None:
            self._over.append(held)
        self._run = Middle()

    def within(self, event: Event) -> Kept | None:
        self._close()
        middle = (event.start + event.end) / 2
        within = (one for one in self._over if event.start <= one.time < event.end)
        return min(within, key=lambda one: abs(one.time - middle), default=None)
