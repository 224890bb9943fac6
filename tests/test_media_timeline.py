"""Which frames are looked at: the reference's rule for evenly spaced frames, time for others."""

import json
from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.timeline import Timeline, constant_rate, sample_count, select_frames

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "manifest.json"
# total, fps, indices of the reference's script
REFERENCE = [
    (76, 25.0, [12, 37, 62]),
    (24, 24.0, [11]),
    (47, 24.0, [23]),
    (48, 24.0, [12, 35]),
]


def evenly(total: int, fps: Fraction, time_base: Fraction = Fraction(1, 90_000)) -> Timeline:
    step = 1 / (fps * time_base)
    pts = np.array([round(index * step) for index in range(total)], np.int64)
    return Timeline(pts, time_base, round(step))


def indices(timeline: Timeline, options: SamplingOptions | None = None) -> list[int]:
    selection = select_frames(timeline, options or SamplingOptions())
    assert selection is not None
    assert selection.times.tolist() == timeline.seconds[selection.indices].tolist()
    return selection.indices.tolist()


@pytest.mark.parametrize(("total", "fps", "expected"), REFERENCE)
@pytest.mark.parametrize("time_base", [Fraction(1, 1000), Fraction(1, 90_000), Fraction(1, 15_360)])
def test_even_frames_are_chosen_by_the_references_rule(
    total: int, fps: float, expected: list[int], time_base: Fraction
) -> None:
    assert indices(evenly(total, Fraction(fps).limit_denominator(1001), time_base)) == expected


@pytest.mark.skipif(not GOLDEN.exists(), reason="the reference's full table is not here")
def test_the_references_whole_table() -> None:
    table = json.loads(GOLDEN.read_text())["frame_index_table"]
    assert table
    for row in table:
        timeline = evenly(row["total"], Fraction(row["fps"]).limit_denominator(1001))
        if row["error"] is None:
            assert indices(timeline) == row["idx"]
            assert sample_count(row["total"], row["fps"], 1.0) == row["picked"]
        else:  # the reference fails for want of a frame; we look at one
            assert len(indices(timeline)) == 1


@given(
    st.integers(1, 5000),
    st.sampled_from([12, 15, 24, 25, 30, 50, 60]),
    st.booleans(),
    st.sampled_from([1000, 90_000]),
)
def test_the_rate_is_found_from_rounded_timestamps(total: int, rate: int, ntsc: bool, ticks: int) -> None:
    fps = Fraction(rate * 1000, 1001) if ntsc else Fraction(rate)
    timeline = evenly(total, fps, Fraction(1, ticks))
    found = constant_rate(timeline)
    if total < 2:
        assert found is None
    else:
        assert found is not None
        assert sample_count(total, found, 1.0) == sample_count(total, float(fps), 1.0)


def test_seconds_count_from_the_first_frame() -> None:
    timeline = Timeline(np.array([90, 135, 270]), Fraction(2, 90), 45)
    assert timeline.seconds.tolist() == [0.0, 1.0, 4.0]
    assert timeline.duration == 5
    assert len(timeline) == 3


def rate_of(*pts: int, last: int = 10, ticks: int = 100) -> float | None:
    return constant_rate(Timeline(np.array(pts), Fraction(1, ticks), last))


def test_the_rate_of_evenly_spaced_frames() -> None:
    assert rate_of(7) is None
    assert rate_of(7, 17) == 10.0
    assert rate_of(0, 30, 60, 90, last=30, ticks=400) == pytest.approx(40 / 3)  # no common rate is near
    assert constant_rate(evenly(1000, Fraction(24))) == 24.0
    assert constant_rate(evenly(1000, Fraction(24_000, 1001))) == 24_000 / 1001
    assert constant_rate(evenly(300, Fraction(30_000, 1001), Fraction(1, 1000))) == 30_000 / 1001
    assert constant_rate(evenly(300, Fraction(30), Fraction(1, 1000))) == 30.0


def test_half_a_frame_away_is_still_even() -> None:
    assert rate_of(0, 15, 20, 30, 40) == 10.0
    assert rate_of(0, 16, 20, 30, 40) is None
    assert rate_of(0, 1, 3, 3, 4, last=1) == 100.0  # a tick away, whatever the step
    assert rate_of(0, 2, 4, 6, 10, 10, 12, 14, 16, last=2) is None


def test_a_last_frame_that_stays_on_display_makes_a_video_uneven() -> None:
    assert rate_of(0, 10, 20, last=21) == 10.0
    assert rate_of(0, 10, 20, last=22) is None


@pytest.mark.parametrize(
    ("total", "native", "fps", "count"),
    [(250, 25.0, 1.0, 10), (249, 25.0, 1.0, 9), (10, 25.0, 1.0, 1), (250, 25.0, 2.0, 20), (3, 1.0, 10.0, 3)],
)
def test_how_many_frames_are_sampled(total: int, native: float, fps: float, count: int) -> None:
    assert sample_count(total, native, fps) == count


def test_a_span_begins_with_its_first_frame_and_ends_before_its_end() -> None:
    timeline = evenly(10, Fraction(1))
    assert indices(timeline, SamplingOptions(start=2, end=5)) == [2, 3, 4]
    assert indices(timeline, SamplingOptions(start=9)) == [9]
    assert indices(timeline, SamplingOptions(end=1)) == [0]
    found = select_frames(timeline, SamplingOptions(start=2, end=5))
    assert found is not None
    assert (len(found), found.pts.tolist(), found.times.tolist()) == (3, [180_000, 270_000, 360_000], [2.0, 3.0, 4.0])


def test_a_video_under_a_second_gives_one_frame() -> None:
    assert indices(evenly(10, Fraction(30))) == [4]
    assert indices(evenly(1, Fraction(30))) == [0]


def test_more_frames_a_second_than_there_are_gives_repeated_indices() -> None:
    assert indices(evenly(3, Fraction(1)), SamplingOptions(fps=10)) == [0, 1, 1]


def test_fps_scales_the_count() -> None:
    timeline = evenly(300, Fraction(30))
    assert len(indices(timeline, SamplingOptions(fps=2))) == 20
    assert len(indices(timeline, SamplingOptions(fps=0.5))) == 5


def test_max_frames_spreads_over_the_whole_span() -> None:
    assert indices(evenly(300, Fraction(30)), SamplingOptions(max_frames=2)) == [75, 224]


def test_start_and_end_restrict_the_span() -> None:
    timeline = evenly(300, Fraction(30))
    chosen = indices(timeline, SamplingOptions(start=2.0, end=5.0))
    assert len(chosen) == 3
    assert 60 <= chosen[0] < chosen[-1] < 150
    assert select_frames(timeline, SamplingOptions(start=10.0)) is None


def test_uneven_frames_are_chosen_by_time_and_once_each() -> None:
    """30 frames in the first second, then one frame held for nine seconds."""
    pts = np.concatenate([np.arange(30) * 100 // 30, [100]]).astype(np.int64)
    timeline = Timeline(pts, Fraction(1, 100), 900)
    assert constant_rate(timeline) is None
    assert indices(timeline) == [15, 30]


def test_a_still_stretch_loses_no_frame() -> None:
    """Ten frames a second for 5 s, the last of them held for 600 s more, and 5 s again."""
    pts = np.concatenate([np.arange(50), 6050 + np.arange(50)])
    timeline = Timeline(pts, Fraction(1, 10), 1)
    assert indices(timeline) == [5, 15, 25, 35, 45, 49, 55, 65, 75, 85, 95]
    assert indices(timeline, SamplingOptions(start=100, end=200)) == [49]
    assert indices(timeline, SamplingOptions(start=4, end=606)) == [45, 49, 55]
    assert indices(timeline, SamplingOptions(end=float("inf"))) == indices(timeline)
    assert indices(timeline, SamplingOptions(max_frames=2)) == [49]
    assert select_frames(timeline, SamplingOptions(start=610)) is None


def test_a_span_inside_an_evenly_shown_frame_is_that_frame() -> None:
    timeline = evenly(6, Fraction(1, 10))
    assert indices(timeline, SamplingOptions(start=12, end=18)) == [1]
    assert indices(timeline, SamplingOptions(start=59)) == [5]
    assert select_frames(timeline, SamplingOptions(start=60)) is None
    assert indices(Timeline(np.array([7]), Fraction(1, 10), 0)) == [0]


def test_a_long_stretch_at_a_high_rate_takes_no_time() -> None:
    timeline = Timeline(np.array([0, 10, 10**12]), Fraction(1, 10), 1)
    assert indices(timeline, SamplingOptions(fps=1000)) == [0, 1, 2]


def reference(total: int, native_fps: float) -> list[int]:
    """The indices of the reference's script, in its own words: at least one, where it fails."""
    count = max(1, min(total, int(total // native_fps)))
    edges = [round((total - 1) / count * number) for number in range(count + 1)]
    return [(one + other) // 2 for one, other in pairwise(edges)]


@given(st.integers(2, 3000), st.sampled_from([1, 5, 10, 24, 25, 30, 60]), st.booleans(), st.integers(-(10**9), 10**9))
def test_evenly_spaced_frames_keep_the_references_numbers(total: int, rate: int, ntsc: bool, first: int) -> None:
    fps = Fraction(rate * 1000, 1001) if ntsc else Fraction(rate)
    timeline = evenly(total, fps)
    assert indices(replace(timeline, pts=timeline.pts + first)) == reference(total, float(fps))


def by_definition(timeline: Timeline, options: SamplingOptions) -> list[int] | None:
    """For each segment of the span the frame that is on display in its middle, each frame once.

    And, as far as `max_frames` allows, those that are on display in the span for as long as a segment should be.
    """
    appears = [(pts - int(timeline.pts[0])) * timeline.time_base for pts in timeline.pts.tolist()]
    start, fps = Fraction(str(options.start or 0)), Fraction(str(options.fps))
    if start > appears[-1] and start >= timeline.duration:
        return None
    end = timeline.duration if options.end is None else min(Fraction(str(options.end)), timeline.duration)
    most = options.max_frames or len(appears) + 100_000
    count = min(max(1, int((end - start) * fps)), most)
    middles = [start + (end - start) * (2 * number + 1) / (2 * count) for number in range(count)]
    shown = {bisect_right(appears, middle) - 1 for middle in middles}
    spans = [(max(one, start), min(other, end)) for one, other in pairwise([*appears, timeline.duration])]
    stay = {index for index, (one, other) in enumerate(spans) if (other - one) * fps >= 1}
    return sorted(shown | stay if len(shown | stay) <= most else shown)


# A tie, a burst, a steady rate, frames that stay on display.
GAPS = st.one_of(st.just(0), st.integers(1, 3), st.just(40), st.integers(1, 5000), st.integers(50_000, 200_000))
FPS = st.one_of(st.just(1.0), st.just(0.5), st.just(2.0), st.floats(0.01, 5))
SECONDS = st.one_of(st.none(), st.integers(0, 100), st.floats(0, 500).map(lambda seconds: round(seconds, 3)))


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """What a scan makes of any presentation times in milliseconds."""
    first = draw(st.sampled_from([0, -40, 7, 3_600_000, 2**40]))  # late, and early
    pts = np.unique(first + np.cumsum([0, *draw(st.lists(GAPS, max_size=40))], dtype=np.int64))
    return Timeline(pts, Fraction(1, 1000), draw(GAPS))


@given(timelines(), FPS, SECONDS, SECONDS, st.one_of(st.none(), st.integers(1, 20)))
def test_uneven_frames_are_those_on_display_in_the_middles_of_the_segments(
    timeline: Timeline, fps: float, start: float | None, length: float | None, max_frames: int | None
) -> None:
    assume(constant_rate(timeline) is None)
    end = None if not length else (start or 0) + length
    options = SamplingOptions(fps=fps, start=start, end=end, max_frames=max_frames)
    expected = by_definition(timeline, options)
    found = select_frames(timeline, options)
    assert (None if found is None else found.indices.tolist()) == expected


def test_a_clock_of_picoseconds_is_as_exact() -> None:
    """Products of its ticks with the number of segments are beyond 64 bits."""
    milliseconds = np.cumsum(np.arange(200) ** 2 % 967 + 9_000_000 * (np.arange(200) == 100))
    timeline = Timeline(milliseconds * 10**9 - 40, Fraction(1, 10**12), 10**12)
    options = SamplingOptions(fps=2, start=6.9)
    chosen = indices(timeline, options)
    assert chosen == by_definition(timeline, options)
    assert 100 < len(chosen) < 190


@given(st.integers(2, 50), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 400), st.integers(1, 400))
def test_a_span_of_a_slow_video_begins_with_the_frame_on_display(
    total: int, rate: float, start: int, length: int
) -> None:
    timeline = evenly(total, Fraction(str(rate)))
    options = SamplingOptions(start=start / 10, end=(start + length) / 10)
    assume(options.start != 0)
    found = select_frames(timeline, options)
    assert (None if found is None else found.indices.tolist()) == by_definition(timeline, options)


def test_a_span_between_two_frames_of_a_quick_video_is_not_empty() -> None:
    timeline = evenly(300, Fraction(30))
    assert indices(timeline, SamplingOptions(start=1.001, end=1.002)) == [30]
    assert indices(timeline, SamplingOptions(start=9.99)) == [299]
    assert select_frames(timeline, SamplingOptions(start=10.0)) is None


def test_a_last_frame_without_a_length_is_on_display_from_its_own_time() -> None:
    timeline = Timeline(np.array([0, 300, 10_000]), Fraction(1, 1000), 0)
    assert indices(timeline, SamplingOptions(start=10)) == [2]
    assert select_frames(timeline, SamplingOptions(start=10.001)) is None


# A screen recording of 300 s: pictures of about a second, some of which stay longer.
RECORDINGS = {
    "the first stays": [0, *range(10_000, 300_000, 1000)],
    "the first stays for no whole number of seconds": [0, *range(10_900, 300_000, 1000)],
    "one in ten stays": [ms for ms in range(0, 300_000, 1000) if ms % 10_000],
    "by a clock that trembles": [1000 * number + (7 * number) % 5 for number in range(300)],
}


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("fps", [1.0, 2.0, 10.0])
def test_no_picture_of_a_second_is_overlooked(name: str, fps: float) -> None:
    pts = np.array(RECORDINGS[name], np.int64)
    timeline = Timeline(pts, Fraction(1, 1000), 1010)
    shown = np.diff(pts, append=pts[-1] + 1010)
    chosen = indices(timeline, SamplingOptions(fps=fps))
    assert set(np.flatnonzero(shown >= 1000).tolist()) <= set(chosen)
    assert fps == 1.0 or chosen == list(range(len(pts)))


def test_pictures_that_stay_are_looked_at_as_far_as_the_limit_allows() -> None:
    """The second one lies between the two middles of a span of 2.9 s; of the fourth, 50 ms long, nothing is seen."""
    timeline = Timeline(np.array([0, 740, 1850, 3200, 3250, 13_200]), Fraction(1, 1000), 10_000)
    assert indices(timeline, SamplingOptions(end=2.9)) == [0, 1, 2]
    assert indices(timeline, SamplingOptions(end=2.9, max_frames=2)) == [0, 2]
    assert indices(timeline) == [0, 1, 2, 4, 5]
    assert indices(timeline, SamplingOptions(max_frames=4)) == [1, 2, 4, 5]
    assert indices(timeline, SamplingOptions(max_frames=3)) == [4, 5]


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=300),
    st.floats(0.05, 60),
    st.one_of(st.none(), st.integers(1, 50)),
)
def test_any_timeline_gives_at_least_one_real_frame_in_order(
    gaps: list[int], fps: float, max_frames: int | None
) -> None:
    timeline = Timeline(np.cumsum(gaps).astype(np.int64), Fraction(1, 1000), gaps[-1])
    chosen = indices(timeline, SamplingOptions(fps=fps, max_frames=max_frames))
    assert 1 <= len(chosen) <= (max_frames or len(gaps))
    assert chosen == sorted(chosen)
    assert 0 <= chosen[0] <= chosen[-1] < len(gaps)
