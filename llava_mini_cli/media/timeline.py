"""The times at which a video's frames are shown, and the choice of those that are looked at.

Arithmetic on timestamps only: knows neither decoders nor files.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, lcm

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.geometry import segment_middles


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
    """The frames to look at, or None where the video is over before `options.start`.

    Evenly spaced frames are chosen by index, by the reference's rule; others by time: for the middle of each of
    equal segments the frame that is on display then, once, and whatever stays on display for `1 / fps` seconds. Frames
    of which each stays so long are chosen by time, too, unless the whole of a regular video is asked for, where the
    reference has its say.
    """
    seconds = timeline.seconds
    first = int(np.searchsorted(seconds, options.start or 0.0, side="left"))
    last = len(seconds) if options.end is None else int(np.searchsorted(seconds, options.end, side="left"))
    total = last - first
    rate = constant_rate(timeline)
    if rate is not None and total > 0 and (rate > options.fps or (total == len(timeline) and _is_regular(timeline))):
        indices = first + segment_middles(total, _capped(sample_count(total, rate, options.fps), options))
    else:
        indices = _by_time(timeline, options)
    if indices is None:
        return None
    return Selection(indices, timeline.pts[indices], seconds[indices])


def _is_regular(timeline: Timeline) -> bool:
    """True if frames are evenly spaced but for the rounding of their timestamps to ticks."""
    return bool(np.ptp(np.diff(timeline.pts)) <= 2)


def _by_time(timeline: Timeline, options: SamplingOptions) -> NDArray[np.int64] | None:
    """The frames on display in the middles of equal segments of the span, `[k]`; None where the video is over before.

    And those that stay on display as long as `1 / fps` seconds but lie between two middles, since segments may be a
    little longer; where they are too many for `max_frames`, they are left out.
    """
    shown = timeline.pts - timeline.pts[0]
    duration = int(shown[-1]) + timeline.last_duration
    # In ticks, and exact: a middle may be the very moment in which a frame appears.
    start = Fraction(str(options.start or 0.0)) / timeline.time_base
    if start > int(shown[-1]) and start >= duration:
        return None
    is_open = options.end is None or options.end >= timeline.duration
    end = max(start, Fraction(duration) if is_open else Fraction(str(options.end)) / timeline.time_base)
    segment = 1 / (Fraction(str(options.fps)) * timeline.time_base)  # as long as is asked for; it may get longer
    count = _capped(max(1, int((end - start) / segment)), options)
    first = int(np.searchsorted(shown, floor(start), side="right")) - 1
    last = int(np.searchsorted(shown, ceil(end), side="left"))
    unit = lcm(start.denominator, end.denominator)  # parts of a tick, in which all that follows is whole
    begin, span = int(start * unit), int((end - start) * unit)
    whole = np.int64 if 2 * count * (begin + span) < 2**62 else object
    appear = shown[first + 1 : last].astype(whole) * unit - begin  # within the span
    middles_before = np.clip(-((span - 2 * count * appear) // (2 * span)), 0, count)
    in_middles = np.flatnonzero(np.diff(middles_before, prepend=0, append=count))
    stay = np.flatnonzero(np.diff(appear, prepend=0, append=span) >= ceil(segment * unit))
    chosen = np.union1d(in_middles, stay)
    return first + (chosen if _capped(len(chosen), options) == len(chosen) else in_middles)


def _capped(count: int, options: SamplingOptions) -> int:
    return count if options.max_frames is None else min(count, options.max_frames)
