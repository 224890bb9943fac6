"""Probabilities along a video -> the stretches in which something holds."""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from cli_doubles import MadeClip

from llava_mini_cli.config import EventOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.answer_when import _bounds
from llava_mini_cli.pipelines.events import Event, Track, events_of, make_track, summary_of
from llava_mini_cli.pipelines.frame_times import TimedClip, TimedWindows
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import Grid

DEFAULT = EventOptions()


def track(*probabilities: float, end: float | None = None) -> Track:
    """A frame every second, the first at 0.5 s."""
    times = np.arange(len(probabilities)) + 0.5
    return make_track(times, np.array(probabilities), 0.0, float(len(probabilities)) if end is None else end)


def found(*probabilities: float, options: EventOptions = DEFAULT) -> list[tuple[float, float]]:
    return [(event.start, event.end) for event in events_of(track(*probabilities), options)]


@pytest.mark.parametrize(
    ("probabilities", "events"),
    [
        ((0.1, 0.2, 0.3), []),
        ((0.9, 0.9, 0.9), [(0, 3)]),
        ((0.1, 0.9, 0.1), [(1.5, 2.5)]),
        ((0.1, 0.1, 0.6), [(2.5, 3)]),
        ((0.59, 0.4, 0.59), []),
        ((0.6, 0.4, 0.4, 0.39, 0.5, 0.59), [(0, 3.5)]),
        ((0.9, 0.1, 0.9, 0.1), [(0, 1.5), (2.5, 3.5)]),
        ((0.9,), [(0, 1)]),
        ((0.1,), []),
    ],
)
def test_an_event_begins_at_the_upper_threshold_and_ends_below_the_lower_one(
    probabilities: Sequence[float], events: list[tuple[float, float]]
) -> None:
    assert found(*probabilities) == events


@pytest.mark.parametrize(
    ("changed", "events"),
    [
        ({}, [(0, 1.5), (2.5, 4.5), (7.5, 9)]),
        ({"merge": 0.999}, [(0, 1.5), (2.5, 4.5), (7.5, 9)]),
        ({"merge": 1.0}, [(0, 4.5), (7.5, 9)]),
        ({"merge": 3.0}, [(0, 9)]),
        ({"min_length": 1.5}, [(0, 1.5), (2.5, 4.5), (7.5, 9)]),
        ({"min_length": 1.6}, [(2.5, 4.5)]),
        ({"min_length": 2.1}, []),
        ({"min_length": 2.1, "merge": 1.0}, [(0, 4.5)]),
        ({"on": 0.95}, []),
        ({"off": 0.05, "on": 0.6}, [(0, 9)]),
    ],
)
def test_near_events_are_one_and_short_ones_none(changed: dict[str, float], events: list[tuple[float, float]]) -> None:
    options = replace(DEFAULT, **changed)
    assert found(0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, options=options) == events


def test_an_event_tells_its_mean_and_where_its_peak_is() -> None:
    assert events_of(track(0.1, 0.6, 0.9, 0.9, 0.4, 0.1), DEFAULT) == [
        Event(1.5, 5.5, pytest.approx(0.7), 0.9, 2.5),
    ]
    assert summary_of(track(0.1, 0.3, 0.2)) == Event(0.0, 3.0, pytest.approx(0.2), 0.3, 1.5)


def test_events_are_those_of_a_plain_loop() -> None:
    """Against the definition, walked frame by frame, for random probabilities, times and gaps."""
    chosen = random.Random(22)
    for _ in range(300):
        count = chosen.randint(1, 30)
        times = np.cumsum([chosen.choice((0.1, 0.5, 2.0)) for _ in range(count)])
        values = np.round([chosen.random() for _ in range(count)], 1)
        off = chosen.choice((0.1, 0.3, 0.5))
        options = EventOptions(on=chosen.choice((0.5, 0.7)), off=off)
        made = make_track(times, values, 0.0, float(times[-1]) + 1)
        held, state = [], False
        for value in values:
            state = value >= options.off if state else value >= options.on
            held.append(state)
        events = events_of(made, options)
        inside = [any(event.start <= time < event.end for event in events) for time in times]
        assert inside == held
        edges = {0.0, *times.tolist(), float(times[-1]) + 1}
        assert all({event.start, event.end} <= edges for event in events)


def test_a_time_that_comes_twice_counts_with_its_mean_and_no_probability_leaves_the_one_before() -> None:
    made = make_track(np.array([1.0, 1.0, 2.0, 3.0]), np.array([0.2, 0.8, nan, 0.9]), 0.0, 2.5)
    assert (made.times.tolist(), made.probabilities.tolist()) == ([1.0, 3.0], [0.5, 0.9])
    assert made.end == 3.0  # a file may say that it is shorter than its frames
    assert (made.starts.tolist(), made.ends.tolist()) == ([0.0, 3.0], [3.0, 3.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on": 0.0}, "--on must be above 0 and at most 1, not 0"),
        ({"on": 1.01}, "--on must be above 0 and at most 1, not 1.01"),
        ({"on": nan}, "--on must be above 0 and at most 1, not nan"),
        ({"off": 0.0}, r"--off must be above 0 and at most --on \(0.6\), not 0"),
        ({"off": 0.7}, r"--off must be above 0 and at most --on \(0.6\), not 0.7"),
        ({"off": nan}, r"--off must be above 0 and at most --on \(0.6\), not nan"),
        ({"min_length": -1.0}, "--min-length must be 0 s or more, and finite, not -1"),
        ({"min_length": nan}, "--min-length must be 0 s or more, and finite, not nan"),
        ({"merge": inf}, "--merge must be 0 s or more, and finite, not inf"),
        ({"stride": 1.0}, "--stride goes with --window; without it every frame is asked about alone"),
        ({"window": 0.0}, "--window must be at least 0.001 s, not 0"),
        ({"window": 4.0, "stride": 0.0}, "--stride must be at least 0.001 s, not 0"),
    ],
)
def test_what_no_option_may_be(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}$"):
        EventOptions(**options)


def test_the_options_that_shape_rows_are_told() -> None:
    plain = {"on": 0.6, "off": 0.4, "min_length": 0.0, "merge": 0.0, "window": None, "stride": None}
    assert EventOptions().shaping() == plain
    assert EventOptions(window=4.0).shaping() == plain | {"window": 4.0, "stride": 1.0}
    assert EventOptions(0.5, 0.5, 1, 2, 4.0, 4.0, timed=True).shaping() == {
        "on": 0.5, "off": 0.5, "min_length": 1, "merge": 2, "window": 4.0, "stride": 4.0,
    }  # fmt: skip


# Windows


def read_clip(kind: str, times: Sequence[float], frame_count: int | None = None) -> TimedClip:
    """A clip whose frames, with these times, were read."""
    clip = TimedClip(MadeClip("a.mp4", f"{len(times)}"))
    clip.info = ClipInfo("a", kind, 4, 4, None, frame_count or len(times), 1.0)  # pyright: ignore[reportArgumentType]
    clip.times.extend(times)
    return clip


def test_a_frame_is_a_window_once_it_was_read() -> None:
    clip = read_clip("video", [])
    clip.info = replace(clip.info, frame_count=3)
    windows = TimedWindows(clip, None)
    assert (len(windows), windows.by_frame) == (3, True)
    assert [(one.start, one.end) for one in windows] == [(inf, inf)] * 3
    clip.times.extend([0.5, 1.5])
    assert [window.start for window in windows] == [0.5, 1.5, inf]
    assert all(window.start < window.end < window.start + 1e-9 for window in windows[:2])
    assert [windows.time(number) for number in range(3)] == [0.5, 1.5, None]
    with pytest.raises(IndexError):
        windows[3]


def test_a_window_is_about_the_frame_in_its_middle() -> None:
    windows = TimedWindows(read_clip("video", [0.5, 1.5, 2.5, 3.5, 4.5]), Grid(0.0, 7.0, 3.0, 1.0))
    assert [windows.time(number) for number in range(len(windows))] == [1.5, 2.5, 3.5, 3.5, 4.5]
    assert not windows.by_frame


def test_a_picture_is_one_window() -> None:
    for grid in (None, Grid(0.0, None, 3.0, 1.0, is_picture=True)):
        windows = TimedWindows(read_clip("image", [0.0]), grid)
        assert (len(windows), windows[0].start, windows[0].end, windows.time(0)) == (1, 0.0, inf, 0.0)


@pytest.mark.parametrize(
    ("duration", "frame_count", "sampling", "bounds"),
    [
        (4.0, 3, SamplingOptions(), (0.0, 4.0)),
        (None, 3, SamplingOptions(), (0.0, 3.5)),
        (2.5, 3, SamplingOptions(), (0.0, 3.5)),  # the last frame is shown for a while, whatever the file says
        (2.4, 3, SamplingOptions(), (0.0, 3.5)),
        (9.0, 8, SamplingOptions(), (0.0, 3.5)),  # the last frames are missing
        (9.0, 3, SamplingOptions(start=0.3, end=3.0), (0.3, 3.0)),
        (9.0, 3, SamplingOptions(start=0.8), (0.5, 9.0)),  # a frame that is on display where it begins
    ],
)
def test_what_was_looked_at_ends_with_the_video_or_a_little_behind_its_last_frame(
    duration: float | None, frame_count: int, sampling: SamplingOptions, bounds: tuple[float, float]
) -> None:
    clip = read_clip("video", [0.5, 1.5, 2.5], frame_count)
    clip.info = replace(clip.info, duration_s=duration)
    assert _bounds(clip, RunOptions(ModelOptions("echo"), sampling, GenerationOptions())) == bounds
