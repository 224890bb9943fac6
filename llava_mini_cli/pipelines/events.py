"""Probabilities along a video -> the stretches in which something holds. Arithmetic only: knows neither media nor rows.

A probability stands at the time of a frame, and holds from there to the time of the next one; the first holds from the
beginning. So an event lasts from the first frame in which it is seen to the first in which it is not any more, as all
stretches hold the frames with `start <= time < end`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import EventOptions


class Track(NamedTuple):
    """How likely yes is, along one medium."""

    times: NDArray[np.float64]  # [n] seconds, increasing
    probabilities: NDArray[np.float64]  # [n]
    begin: float  # seconds, of what was looked at
    end: float

    @property
    def starts(self) -> NDArray[np.float64]:
        """Where each probability begins to hold, `[n]` seconds."""
        return np.concatenate([[self.begin], self.times[1:]])

    @property
    def ends(self) -> NDArray[np.float64]:
        """Where each stops, `[n]` seconds: where the next one begins."""
        return np.concatenate([self.times[1:], [self.end]])


class Event(NamedTuple):
    """A stretch in which something holds."""

    start: float  # seconds
    end: float
    mean: float  # of the probabilities within, those of gaps that were merged among them
    peak: float
    peak_at: float  # seconds, the time of the first frame with that probability


def make_track(times: NDArray[np.float64], probabilities: NDArray[np.float64], begin: float, end: float) -> Track:
    """A track of `[n]` times that do not decrease and may repeat, where the mean counts, and probabilities or NaN.

    Where there is no probability, nothing was looked at, and the one before goes on.
    """
    there = ~np.isnan(probabilities)
    moments, where, counts = np.unique(times[there], return_inverse=True, return_counts=True)
    mean = np.bincount(where, probabilities[there], len(moments)) / np.maximum(counts, 1)
    return Track(moments, mean, begin, max(end, float(moments[-1])) if len(moments) else end)


def events_of(track: Track, options: EventOptions) -> list[Event]:
    """The events of a track: begun at `on`, ended below `off`, then merged, then without those that are too short."""
    found: list[list[int]] = []  # first and last position
    is_on = False
    for position, probability in enumerate(track.probabilities.tolist()):
        if is_on and probability >= options.off:
            found[-1][1] = position
        elif not is_on and probability >= options.on:
            found.append([position, position])
        is_on = probability >= (options.off if is_on else options.on)
    starts, ends = track.starts, track.ends
    merged: list[list[int]] = []
    for first, last in found:
        if merged and starts[first] - ends[merged[-1][1]] <= options.merge:
            merged[-1][1] = last
        else:
            merged.append([first, last])
    events = (_event(track, first, last, float(starts[first]), float(ends[last])) for first, last in merged)
    return [event for event in events if event.end - event.start >= options.min_length]


def summary_of(track: Track) -> Event:
    """The whole of a track that has at least one probability, as if it were one event."""
    return _event(track, 0, len(track.times) - 1, track.begin, track.end)


def _event(track: Track, first: int, last: int, start: float, end: float) -> Event:
    within = track.probabilities[first : last + 1]
    peak = int(within.argmax())
    moment = float(track.times[first + peak])
    return Event(start, end, float(within.mean()), float(within[peak]), moment)
