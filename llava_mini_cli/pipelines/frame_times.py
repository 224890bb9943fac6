"""The times of a medium's frames as they come, and the windows that are made of them.

Knows nothing of what is asked.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from math import inf, nextafter
from types import TracebackType
from typing import Self

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.engine.request import WHOLE, Window
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.open_job import OpenClip
from llava_mini_cli.pipelines.spans import Grid, LazyWindows


class TimedClip(Clip):
    """A clip that remembers when each of its frames is shown: 8 bytes a frame."""

    def __init__(self, clip: Clip) -> None:
        self.times = array("d")  # seconds, of the frames that were read
        self.info: ClipInfo = clip.info
        self.warnings = clip.warnings
        self._clip = clip

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            self.times.extend(chunk.times.tolist())
            yield chunk

    def ready(self) -> bool:
        """True if the next chunk can be had without waiting."""
        return self._clip.ready()

    def close(self) -> None:
        """Closes the clip. Safe to call twice."""
        self._clip.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self


def timed(open_clip: OpenClip) -> OpenClip:
    """`open_clip`, but its clips remember times."""

    def open_timed(
        path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> Clip:
        return TimedClip(open_clip(path, options, frame_size=frame_size, chunk_frames=chunk_frames, opening=opening))

    return open_timed


class TimedWindows(LazyWindows):
    """Windows each of which can tell the time that it is about, once its frames were read."""

    def __init__(self, clip: TimedClip, grid: Grid | None) -> None:
        """`grid`: None has a window for every frame, where a medium is a video."""
        self._times = clip.times
        self._grid = grid
        self._is_picture = clip.info.kind == "image"
        if self._is_picture:
            self._count = 1
        elif grid is not None:
            self._count = grid.total
        else:
            assert clip.info.frame_count is not None  # of a whole medium that was opened it is known
            self._count = clip.info.frame_count

    def __len__(self) -> int:
        return self._count

    @property
    def by_frame(self) -> bool:
        """True if each holds one frame alone."""
        return self._grid is None

    def _window(self, index: int) -> Window:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._is_picture:
            return WHOLE
        if self._grid is not None:
            return self._grid.window(index + 1)
        if index >= len(self._times):  # the engine looks at windows again as frames come
            return Window(inf, inf)
        return Window(self._times[index], nextafter(self._times[index], inf))

    def time(self, index: int) -> float | None:
        """The time of the frame in the middle of a window, of two the earlier one; None where it holds no frame."""
        window = self[index]
        first, last = (bisect_left(self._times, edge) for edge in (window.start, window.end))
        return None if first == last else self._times[(first + last - 1) // 2]
