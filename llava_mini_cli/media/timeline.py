"""The times at which a video's frames are shown, and the choice of those that are looked at.

Arithmetic on timestamps only: knows neither decoders nor files.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.geometry import segment_middles

_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Timeline:
    """The shown frames of one video stream, in the order in which they are shown."""

    pts: NDArray[np.int64]  # [n] presentation timestamps in ticks, strictly increasing
    time_base: Fraction  # seconds a tick
    last_duration: int  # ticks for which the last frame is shown

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds from the first frame, `[n]`."""
        return (self.pts - self.pts[0]) * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return (int(self.pts[-1] - self.pts[0]) + self.last_duration) * self.time_base


@dataclass(frozen=True)
class Selection:
    """The sampled frames of a video. Where a frame is sampled twice it appears twice."""

    indices: NDArray[np.int64]  # [k] positions in the timeline, non-decreasing
    pts: NDArray[np.int64]  # [k] ticks
    times: NDArray[np.float64]  # [k] seconds from the first frame of the video

    def __len__(self) -> int:
        return len(self.indices)


def constant_rate(timeline: Timeline) -> float | None:
    """Frames a second of a video whose frames are evenly spaced, else None.

    Evenly spaced: no frame is half a frame away from where its index puts it, so that choosing by index and by time
    cannot differ by a frame. Rates near a common one are given as that one, since containers round their timestamps.
    """
    n = len(timeline)
    if n < 2:
        return None
    ticks = int(timeline.pts[-1] - timeline.pts[0])
    step = ticks / (n - 1)
    even = timeline.pts[0] + np.arange(n) * step
    if np.abs(timeline.pts - even).max() > max(1.0, 0.5 * step) or timeline.last_duration > 2 * step + 1:
        return None
    rate = (n - 1) / (ticks * timeline.time_base)
    slack = Fraction(2, ticks) + Fraction(1, 100_000)  # relative: two timestamps, each off by up to a tick
    common = [Fraction(round(rate)), Fraction(round(rate * Fraction(1001, 1000)) * 1000, 1001)]
    near = [c for c in common if abs(c - rate) <= slack * rate]
    return float(min(near, key=lambda c: abs(c - rate), default=rate))


def sample_count(total: int, native_fps: float, fps: float) -> int:
    """Frames sampled of `total` evenly spaced ones; at 1 fps the reference's `min(total, int(total // native_fps))`.

    At least 1, where the reference fails on videos under a second.
    """
    return max(1, min(total, int(total * fps // native_fps)))


def select_frames(timeline: Timeline, options: SamplingOptions) -> Selection | None:
    """The frames to look at, or None where the video has ended before `options.start`.

    Evenly spaced frames are chosen by index, by the reference's rule; others, and a span in which no frame begins,
    by time: for the middle of each of equal segments the frame that is on display then, once.
    """
    seconds = timeline.seconds
    first = int(np.searchsorted(seconds, options.start or 0.0, side="left"))
    last = len(seconds) if options.end is None else int(np.searchsorted(seconds, options.end, side="left"))
    total = last - first
    rate = constant_rate(timeline)
    if total > 0 and (rate is not None or len(timeline) == 1):
        count = sample_count(total, rate or 1.0, options.fps)
        indices = first + segment_middles(total, _capped(count, options))
    else:
        indices = _by_time(timeline, options)
    return Selection(indices, timeline.pts[indices], seconds[indices]) if len(indices) else None


def _by_time(timeline: Timeline, options: SamplingOptions) -> NDArray[np.int64]:
    """The positions of the frames that are on display in the middle of a segment; none behind the video's end.

    In whole numbers, so that a middle that falls on a frame's beginning is that frame's.
    """
    begin, end = options.start or 0.0, timeline.duration
    if not begin < end:
        return np.empty(0, np.int64)
    begin = Fraction(str(begin))
    span = (end if options.end is None or options.end >= end else Fraction(str(options.end))) - begin
    count = _capped(max(1, int(span * Fraction(str(options.fps)))), options)
    scale = lcm(begin.denominator, span.denominator, timeline.time_base.denominator)
    tick, offset, whole = (int(scale * part) for part in (timeline.time_base, begin, span))
    ticks: NDArray[Any] = timeline.pts - timeline.pts[0]
    if 2 * count * (int(ticks[-1]) * tick + offset) + whole > _LARGEST:
        ticks = ticks.astype(object)  # Python's own numbers, which are slower
    # The number of middles before each frame begins; the first one is on display before that, too.
    before = np.clip(-((whole - 2 * count * (ticks * tick - offset)) // (2 * whole)), 0, count)
    return np.flatnonzero(np.diff([0, *before[1:], count]))


def _capped(count: int, options: SamplingOptions) -> int:
    return count if options.max_frames is None else min(count, options.max_frames)
