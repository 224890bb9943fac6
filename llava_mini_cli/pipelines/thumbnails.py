"""Small pictures of what is asked about, kept of frames while they pass on their way to the model.

Of each window that is open one JPEG is held, or two where nobody knows yet when it ends, and no frame. JPEGs are made
in threads beside the model. Knows nothing of rows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from math import inf
from threading import BoundedSemaphore
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.engine.request import Cut, FrameWatcher, GrowingWindows, Window
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.media.picture import Still
from llava_mini_cli.media.thumbnail import small_jpeg
from llava_mini_cli.pieces import PieceLayout

THREADS = 2
WAITING = 32  # frames, of 340 KB each, that may wait for a thread; behind them the run makes its JPEGs itself


class Kept(NamedTuple):
    """The picture of one frame."""

    time: float  # seconds
    made: Future[bytes]

    def jpeg(self) -> bytes | None:
        """The JPEG, once it is made; None if there was no memory for it."""
        try:
            return self.made.result()
        except MemoryError:
            return None


def jpeg_of(kept: Kept | None) -> bytes | None:
    """The JPEG of a picture, if there is one."""
    return None if kept is None else kept.jpeg()


Keep = Callable[[int], Kept]  # keeps a frame of a chunk, by its place there


class ThumbnailMaker:
    """Makes JPEGs of frames; its threads end with its `with` block."""

    def __init__(self) -> None:
        self.still: Still = None  # how the model takes pictures, once it is loaded
        self._threads = ThreadPoolExecutor(THREADS, "thumbnail")
        self._room = BoundedSemaphore(WAITING)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def make(self, pixels: NDArray[np.uint8], info: ClipInfo) -> Future[bytes]:
        """A JPEG of one frame of a clip, as its chunks hold it."""
        frame, width, height = shown(pixels, info, self.still)
        return self._in_thread(frame, width, height) or _made_here(frame, width, height)

    def _in_thread(self, frame: NDArray[np.uint8], width: int, height: int) -> Future[bytes] | None:
        """The JPEG to come; None where the threads are behind, or there is none."""
        if not self._room.acquire(blocking=False):
            return None
        try:
            made = self._threads.submit(small_jpeg, frame.copy(), width, height)  # the chunk must not live on
        except (MemoryError, RuntimeError):  # the latter where the system gives no thread
            self._room.release()
            return None
        made.add_done_callback(lambda _: self._room.release())
        return made


def _made_here(frame: NDArray[np.uint8], width: int, height: int) -> Future[bytes]:
    made: Future[bytes] = Future()
    try:
        made.set_result(small_jpeg(frame, width, height))
    except MemoryError as error:
        made.set_exception(error)
    return made


def shown(pixels: NDArray[np.uint8], info: ClipInfo, still: Still) -> tuple[NDArray[np.uint8], int, int]:
    """What is shown of a frame, `[h, w, 3]`, and the width and height whose shape it has on display.

    A frame of a video is shown whole. A picture in pieces is shown as the model sees it as a whole: the square in its
    middle, or all of it where the model gets it letterboxed.
    """
    if info.kind == "video":
        return pixels, info.width, info.height
    if pixels.ndim == 4:
        pixels = pixels[-1]
        if isinstance(still, PieceLayout) and still.pad:
            pixels = _without_edges(pixels, info.width, info.height)
    return pixels, pixels.shape[1], pixels.shape[0]


def _without_edges(square: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A letterboxed picture without what was put around it."""
    longest = max(width, height)
    down, across = (
        max(1, round(edge * length / longest)) for edge, length in zip(square.shape[:2], (height, width), strict=True)
    )
    top, left = (square.shape[0] - down) // 2, (square.shape[1] - across) // 2
    return square[top : top + down, left : left + across]


class Middle:
    """The picture in the middle of one stretch, found while its frames pass.

    Where the end is known, the frame nearest to the middle is kept; on the way there one that is half as far away takes
    the place of the one before. Where it is not, a frame is kept whenever the stretch has become twice as long, and the
    last two are held: one of them lies in the middle third, wherever the end turns out to be.
    """

    def __init__(self) -> None:
        self._kept: list[Kept] = []  # one, or the last two

    def look(self, times: NDArray[np.float64], start: float, middle: float | None, keep: Keep) -> None:
        """Takes note of the next frames within the stretch; `start` and `middle` of it in seconds, if known."""
        if middle is None:
            for place, time in enumerate(times.tolist()):
                last = self._kept[-1].time if self._kept else -inf
                if time > last and time - start >= 2 * (last - start):
                    self._kept = [*self._kept[-1:], keep(place)]
            return
        place = int(np.abs(times - middle).argmin())
        away = abs(times[place] - middle)
        held = self.nearest(middle)
        before = inf if held is None else abs(held.time - middle)
        if away < before / 2 or (times[place] >= middle and away < before):
            held = keep(place)
        self._kept = [] if held is None else [held]

    def nearest(self, middle: float) -> Kept | None:
        """Of what is held, the picture nearest to a time in seconds."""
        return min(self._kept, key=lambda one: abs(one.time - middle), default=None)


class WindowThumbnails(FrameWatcher):
    """The pictures of one medium's windows. What is held of a window goes with the last outcome about it."""

    def __init__(
        self,
        maker: ThumbnailMaker,
        info: ClipInfo,
        windows: Sequence[Window],
        prompts: int,
        looked_at: tuple[float, float],
        cut: Cut | None = None,
    ) -> None:
        """`prompts`: questions about each window; `looked_at`: seconds between which the medium's frames lie; `cut`:
        cuts windows into pieces, each of which has a picture, too.
        """
        self._maker = maker
        self._cut = cut
        self._pieces: dict[int, dict[float, Middle]] = {}  # by their starts, of windows that are open or over
        self._info = info
        self._windows = windows
        self._prompts = prompts
        self._begin, self._end = looked_at
        self._begun = 0  # windows that begin at or before the frames so far
        self._now = 0.0  # seconds, the time of the last frame so far
        self._open: dict[int, Middle] = {}  # whose last frame did not pass yet
        self._over: dict[int, Middle] = {}
        self._came: dict[int, int] = {}  # outcomes about a window of which there are more to come, or that is to come

    def saw(self, frames: FrameChunk) -> None:
        """Keeps those of the next frames that are nearest to the middle of a window."""
        times, now, kept = frames.times, float(frames.times[-1]), dict[int, Kept]()
        self._now = now
        self._open_until(now)
        for index, middle in list(self._open.items()):
            window = self._windows[index]
            first, last = (int(np.searchsorted(times, edge)) for edge in (window.start, window.end))

            def keep(place: int, first: int = first) -> Kept:
                at = first + place
                if at not in kept:
                    kept[at] = Kept(float(times[at]), self._maker.make(frames.pixels[at], self._info))
                return kept[at]

            if first < last:
                start = max(window.start, self._begin)
                middle.look(times[first:last], start, self._middle(window), keep)
                self._look_at_pieces(index, window, times[first:last], keep)
            if window.end <= now:
                self._over[index] = self._open.pop(index)

    def of(self, window: int) -> Kept | None:
        """The picture of a window of which an outcome has come; None where it had no frame."""
        middle = self._over.get(window) or self._open.get(window)
        if middle is None:
            return None
        start, end = self._windows[window].start, self._windows[window].end
        last = self._now if min(end, self._end) == inf else min(end, self._end)
        return middle.nearest((max(start, self._begin) + last) / 2)

    def of_piece(self, window: int, start: float, end: float) -> Kept | None:
        """The picture of a piece of a window; None where it had no frame."""
        middle = self._pieces.get(window, {}).get(start)
        return None if middle is None else middle.nearest((start + end) / 2)

    def _look_at_pieces(self, index: int, window: Window, times: NDArray[np.float64], keep: Keep) -> None:
        """The same for the pieces of a window; frames before the first and behind the last are theirs."""
        if self._cut is None:
            return
        pieces = list(pairwise(self._cut.bounds(window.start, window.end)))
        if not pieces:
            self._pieces.pop(index, None)
        for number, (start, end) in enumerate(pieces, 1):
            first = 0 if number == 1 else int(np.searchsorted(times, start))
            last = len(times) if number == len(pieces) else int(np.searchsorted(times, end))
            if first < last:
                is_told_later = self._cut.is_growing and number == len(pieces)
                middle = None if is_told_later else (start + end) / 2
                held = self._pieces.setdefault(index, {}).setdefault(start, Middle())
                held.look(times[first:last], start, middle, lambda place, first=first: keep(first + place))

    def answered(self, window: int) -> None:
        """One more outcome about a window was dealt with."""
        came = self._came.pop(window, 0) + 1
        if came < self._outcomes(window) or window >= self._begun:
            self._came[window] = came
            return
        for held in (self._open, self._over, self._pieces):
            held.pop(window, None)

    def _outcomes(self, window: int) -> int:
        return self._prompts - len(self._windows[window].without)

    def _open_until(self, now: float) -> None:
        while self._begun < len(self._windows) and self._windows[self._begun].start <= now:
            if self._came.get(self._begun, 0) < self._outcomes(self._begun):
                self._open[self._begun] = Middle()
            else:
                self._came.pop(self._begun, None)
            self._begun += 1

    def _middle(self, window: Window) -> float | None:
        """The middle of a window in seconds; None while nobody knows where it ends."""
        end = min(window.end, self._end)
        is_told_later = isinstance(self._windows, GrowingWindows) and window.end == inf
        return None if is_told_later or end == inf else (max(window.start, self._begin) + end) / 2
