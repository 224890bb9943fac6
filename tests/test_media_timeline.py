"""Which frames are looked at: the reference's rule for evenly spaced frames, time for others."""

import json
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.geometry import segment_middles
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
    assert indices(timeline, SamplingOptions(start=2, end=5)) == [2, 3, 3]
    assert indices(timeline, SamplingOptions(start=9)) == [9]
    assert indices(timeline, SamplingOptions(end=1)) == [0]
    found = select_frames(timeline, SamplingOptions(start=2, end=5))
    assert found is not None
    assert (len(found), found.pts.tolist(), found.times.tolist()) == (3, [180_000, 270_000, 270_000], [2.0, 3.0, 3.0])


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


def on_display(timeline: Timeline, options: SamplingOptions) -> list[int]:
    """The plain definition: the frame on display in the middle of each segment of the span, each once."""
    begin, end = Fraction(str(options.start or 0)), timeline.duration
    if options.end is not None:
        end = min(end, Fraction(str(options.end)))
    if end <= begin:
        return []
    count = max(1, int((end - begin) * Fraction(str(options.fps))))
    count = min(count, options.max_frames or count)
    found: list[int] = []
    for segment in range(count):
        middle = begin + (end - begin) * Fraction(2 * segment + 1, 2 * count)
        ticks = middle / timeline.time_base
        shown = bisect_right((timeline.pts - timeline.pts[0]).tolist(), ticks) - 1
        found += [shown] if found[-1:] != [shown] else []
    return found


GAPS = st.one_of(st.integers(1, 3), st.integers(20, 80), st.integers(300, 600))  # bursts, films, still stretches


@settings(deadline=None)
@given(
    st.lists(GAPS, min_size=1, max_size=20),
    st.integers(-500, 10**9),
    st.integers(0, 3000),
    st.sampled_from([10, 100, 1000]),
    st.sampled_from([0.1, 0.5, 1.0, 2.0]),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.decimals(0, 60, places=2).map(float)),
    st.one_of(st.none(), st.decimals(1, 60, places=1).map(float)),
)
def test_the_frame_on_display_in_the_middle_of_each_segment_once(
    gaps: list[int],
    late: int,
    last: int,
    ticks: int,
    fps: float,
    most: int | None,
    start: float | None,
    length: float | None,
) -> None:
    """Gaps, bursts, late starts, one frame; evenly spaced frames go by the reference's rule where one begins."""
    timeline = Timeline(late + np.cumsum(gaps), Fraction(1, ticks), last)
    end = None if length is None else (start or 0) + length
    options = SamplingOptions(fps=fps, max_frames=most, start=start, end=end)
    found = select_frames(timeline, options)
    chosen = [] if found is None else found.indices.tolist()
    inside = (timeline.seconds >= (start or 0)) & (timeline.seconds < (np.inf if end is None else end))
    if inside.any() and (constant_rate(timeline) is not None or len(timeline) == 1):
        rate = constant_rate(timeline) or 1.0
        count = sample_count(int(inside.sum()), rate, fps)
        first, middles = int(inside.argmax()), segment_middles(int(inside.sum()), min(count, most or count))
        assert chosen == (first + middles).tolist()
    else:
        assert chosen == on_display(timeline, options)


def test_a_long_stretch_at_a_high_rate_takes_no_time() -> None:
    timeline = Timeline(np.array([0, 10, 10**12]), Fraction(1, 10), 1)
    assert indices(timeline, SamplingOptions(fps=1000)) == [0, 1, 2]


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
