"""Small pictures show the frame in the middle of what was asked about, of frames that passed, in bounded memory."""

import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import pytest
from cli_doubles import MadeClip
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request
from numpy.typing import NDArray
from PIL import Image

from llava_mini_cli.config import EventOptions, EvidenceOptions, SamplingOptions
from llava_mini_cli.engine import frame_encoder
from llava_mini_cli.engine.request import WHOLE, Answer, FeatureChunk, Request, Window
from llava_mini_cli.formats.job import TimeSpan
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.media.thumbnail import EDGE, small_jpeg
from llava_mini_cli.pieces import ArrayRaster, PieceLayout, pieces
from llava_mini_cli.pipelines import thumbnails
from llava_mini_cli.pipelines.event_thumbnails import EventThumbnails
from llava_mini_cli.pipelines.events import events_of, make_track
from llava_mini_cli.pipelines.evidence import EvenPieces
from llava_mini_cli.pipelines.frame_times import TimedClip, TimedWindows
from llava_mini_cli.pipelines.spans import looked_at
from llava_mini_cli.pipelines.thumbnails import Kept, Middle, ThumbnailMaker, WindowThumbnails, shown

VIDEO = ClipInfo("a.mp4", "video", 64, 36, 100.0, 100, 1.0)
IMAGE = ClipInfo("a.jpg", "image", 300, 100, None, 1, None)


class CountedMaker(ThumbnailMaker):
    """Has the value of a frame's first pixel in place of a JPEG."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def make(self, pixels: NDArray[np.uint8], info: ClipInfo) -> Future[bytes]:
        self.made += 1
        found: Future[bytes] = Future()
        found.set_result(bytes(pixels[0, 0, :2]))
        return found


def frames_at(times: Sequence[float], first: int = 0) -> FrameChunk:
    """Frames whose first pixel says which of the video they are."""
    pixels = np.zeros((len(times), 1, 1, 3), np.uint8)
    for place in range(len(times)):
        pixels[place, 0, 0, :2] = divmod(first + place, 256)
    return FrameChunk(pixels, np.array(times, np.float64))


def number(kept: Kept | None) -> int | None:
    """The frame that a picture shows."""
    data = None if kept is None else kept.jpeg()
    return None if data is None else data[0] * 256 + data[1]


def in_chunks(times: Sequence[float], generator: np.random.Generator) -> list[FrameChunk]:
    made: list[FrameChunk] = []
    first = 0
    while first < len(times):
        count = int(generator.integers(1, 40))
        made.append(frames_at(times[first : first + count], first))
        first += count
    return made


def opened(jpeg: bytes | None) -> Image.Image:
    assert jpeg is not None
    return Image.open(io.BytesIO(jpeg))


# One stretch


@pytest.mark.parametrize("seed", range(30))
def test_the_frame_nearest_to_a_known_middle_is_kept(seed: int) -> None:
    """However the frames come; and few pictures are made on the way."""
    generator = np.random.default_rng(seed)
    count, step = int(generator.integers(1, 3000)), float(generator.uniform(0.04, 5))
    times = [(place + 0.5) * step for place in range(count)]
    end = count * step * float(generator.uniform(0.7, 1.3))  # the last frames may be missing
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, (WHOLE,), 1, (0.0, end))
        for chunk in in_chunks(times, generator):
            watcher.saw(chunk)
        kept = watcher.of(0)
    assert kept is not None
    assert abs(kept.time - end / 2) == pytest.approx(min(abs(time - end / 2) for time in times))
    assert maker.made <= np.log2(count) + 3


@pytest.mark.parametrize("seed", range(30))
def test_a_frame_of_the_middle_third_is_kept_where_nobody_knows_the_end(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(12, 4000))
    times = [float(place) for place in range(count)]
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, (WHOLE,), 1, (0.0, inf))
        for chunk in in_chunks(times, generator):
            watcher.saw(chunk)
            middle = watcher._open[0]
            assert len(middle._kept) <= 2
        kept = watcher.of(0)
    assert kept is not None
    assert count / 3 - 2 <= kept.time <= 2 * count / 3 + 2
    assert maker.made <= np.log2(count) + 3


def test_no_frame_no_picture() -> None:
    assert Middle().nearest(3.0) is None


# The windows of a medium


@pytest.mark.parametrize("seed", range(20))
def test_every_window_has_the_frame_in_its_middle(seed: int) -> None:
    """Windows that overlap, leave gaps, hold no frame or reach behind the end; answers come late and in any order."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 400))
    times = [float(time) for time in range(count)]
    length, step = float(generator.uniform(0.3, 60)), float(generator.uniform(0.3, 30))
    starts = [place * step for place in range(int(1.2 * count / step) + 1)]
    windows = [Window(start, start + length, frozenset({1} if place % 3 else {})) for place, start in enumerate(starts)]
    info = replace(VIDEO, duration_s=float(count))
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, info, windows, 2, looked_at(None, info, SamplingOptions()))
        due: list[int] = []
        asked = 0
        for chunk in in_chunks(times, generator):
            watcher.saw(chunk)
            while asked < len(windows) and windows[asked].end <= chunk.times[-1]:
                due.append(asked)
                asked += 1
            generator.shuffle(due)
            for index in due[: len(due) // 2]:
                check(watcher, windows[index], index, times, count)
            del due[: len(due) // 2]
            assert len(watcher._over) <= len(due)
        for index in [*due, *range(asked, len(windows))]:
            check(watcher, windows[index], index, times, count)
        assert (watcher._open, watcher._over) == ({}, {})
        assert maker.made <= count


def check(watcher: WindowThumbnails, window: Window, index: int, times: list[float], end: int) -> None:
    """The picture of a window against the plain way, which has all frames; then all answers are dealt with."""
    middle = (window.start + min(window.end, end)) / 2
    inside = [time for time in times if window.start <= time < window.end]
    kept = watcher.of(index)
    assert (kept is None) == (not inside)
    if kept is not None:
        assert number(kept) == int(kept.time)
        assert abs(kept.time - middle) == min(abs(time - middle) for time in inside)
    for _ in range(2 - len(window.without)):
        watcher.answered(index)


@pytest.mark.parametrize("seed", range(10))
def test_every_piece_of_a_window_has_the_frame_in_its_middle(seed: int) -> None:
    """As evidence cuts them: frames before the first and behind the last piece are theirs."""
    generator = np.random.default_rng(seed)
    count, every = int(generator.integers(1, 200)), float(generator.uniform(1, 30))
    times = [float(time) for time in range(count)]
    windows = [Window(0, 50), Window(50), WHOLE]
    windows = [windows[int(one)] for one in generator.permutation(3)]
    windows.sort(key=lambda one: one.start)
    cut = EvenPieces(0.0, float(count), 1.0, EvidenceOptions(1, every=every if seed % 2 else None))
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, windows, 1, (0.0, float(count)), cut)
        for chunk in in_chunks(times, generator):
            watcher.saw(chunk)
        for index, window in enumerate(windows):
            inside = [time for time in times if window.start <= time < window.end]
            for start, end in pairwise(cut.bounds(window.start, window.end)):
                own = [time for time in inside if start <= time < end]
                kept = watcher.of_piece(index, start, end)
                assert (kept is None) == (not own), (start, end)
                if kept is not None:
                    assert abs(kept.time - (start + end) / 2) == min(abs(time - (start + end) / 2) for time in own)
            watcher.answered(index)
        assert watcher._pieces == {}


def test_questions_that_fail_before_their_frames_come_leave_nothing_behind() -> None:
    windows = [Window(float(start), start + 1.0) for start in range(0, 100)]
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, windows, 2, (0.0, 100.0))
        for index in range(100):
            watcher.answered(index)
            if index % 2:
                watcher.answered(index)
        watcher.saw(frames_at([float(time) for time in range(100)]))
        assert set(watcher._open) | set(watcher._over) == set(range(0, 100, 2))
        assert maker.made == 50
        for index in range(0, 100, 2):
            watcher.answered(index)
        assert (watcher._open, watcher._over, watcher._came) == ({}, {}, {})


def test_frames_that_come_again_after_a_shortage_change_nothing() -> None:
    with CountedMaker() as maker:
        watcher = WindowThumbnails(maker, VIDEO, (WHOLE, Window(3, 9)), 1, (0.0, 20.0))
        for _ in range(2):
            watcher.saw(frames_at([float(time) for time in range(20)]))
        assert (number(watcher.of(0)), number(watcher.of(1)), maker.made) == (10, 6, 2)


@pytest.mark.parametrize(
    ("span", "sampling", "expected"),
    [
        (None, SamplingOptions(), (0.0, 100.0)),
        (None, SamplingOptions(start=5.0, end=60.0), (5.0, 60.0)),
        (TimeSpan(1, 10.0, 20.0, ""), SamplingOptions(start=12.0), (12.0, 20.0)),
        (TimeSpan(1, None, None, ""), SamplingOptions(end=700.0), (0.0, 100.0)),
    ],
)
def test_the_part_that_is_looked_at(
    span: TimeSpan | None, sampling: SamplingOptions, expected: tuple[float, float]
) -> None:
    assert looked_at(span, VIDEO, sampling) == expected
    assert looked_at(span, IMAGE, sampling) == (0.0, 0.0)
    assert looked_at(None, replace(VIDEO, duration_s=None), SamplingOptions()) == (0.0, inf)


# The pictures of events


@pytest.mark.parametrize("seed", range(20))
def test_every_event_has_a_frame_of_its_own(seed: int) -> None:
    """Whatever the order of the answers; the picture lies in the event, and in the middle third of one that is long."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 600))
    smooth = np.convolve(generator.random(count + 20), np.ones(20) / 20, "same")[:count]
    yes = np.clip((smooth - smooth.mean()) * 8 + 0.5, 0, 1)
    options = EventOptions(merge=float(generator.integers(0, 4)), min_length=float(generator.integers(0, 3)))
    times = [float(time) for time in range(count)]
    clip = TimedClip(MadeClip("a.mp4", str(count)))
    windows = TimedWindows(clip, None)
    with CountedMaker() as maker:
        watcher = EventThumbnails(maker, VIDEO, windows, 1, (0.0, float(count)), options)
        due: list[int] = []
        for chunk in in_chunks(times, generator):
            due += range(len(clip.times), len(clip.times) + len(chunk.times))
            clip.times.extend(chunk.times.tolist())
            watcher.saw(chunk)
            generator.shuffle(due)
            while len(due) > 30:
                index = due.pop()
                watcher.take(Answer("k", 0, "", (), "stop", 1, 1, 1, 1, index, float(yes[index])))
        for index in due:
            watcher.take(Answer("k", 0, "", (), "stop", 1, 1, 1, 1, index, float(yes[index])))
        track = make_track(np.array(times), yes, 0.0, float(count))
        for event in events_of(track, options):
            jpeg = watcher.of(0, event)
            assert jpeg is not None
            shows = jpeg[0] * 256 + jpeg[1]
            assert event.start <= shows < event.end
            held = [time for time in times if event.start <= time < event.end and yes[int(time)] >= options.off]
            if len(held) == event.end - event.start > 12:  # it has no gap
                assert event.start + len(held) / 3 - 2 <= shows <= event.end - len(held) / 3 + 2
        whole = watcher.of(0, None)
        assert whole is not None
        assert abs(whole[0] * 256 + whole[1] - count / 2) <= 0.5


def test_an_event_that_goes_on_to_the_end_and_a_window_without_a_frame() -> None:
    clip = TimedClip(MadeClip("a.mp4", "6"))
    with CountedMaker() as maker:
        watcher = EventThumbnails(maker, VIDEO, TimedWindows(clip, None), 2, (0.0, 6.0), EventOptions())
        clip.times.extend(float(time) for time in range(5))
        watcher.saw(frames_at(clip.times))
        for index, p_yes in enumerate((0.1, 0.5, 0.9, 0.5, 0.9)):
            watcher.take(Answer("k", 1, "", (), "stop", 1, 1, 1, 1, index, p_yes))
        asked = Request("k", "video", ArrayFrames(noise_video(5, 0)), ("?", "!"), GREEDY)
        watcher.take(asked.failure(1, 5, frame_encoder.MediaError("empty", "no frame")))
        (event,) = events_of(make_track(np.arange(5.0), np.array([0.1, 0.5, 0.9, 0.5, 0.9]), 0.0, 6.0), EventOptions())
        assert (event.start, event.end) == (2.0, 6.0)
        found = watcher.of(1, event)
        assert found == watcher.of(1, event)  # asked twice
        assert found is not None
        assert found[1] in (3, 4)
        assert watcher.of(0, event) is None


# What is shown


def test_a_frame_of_a_video_has_its_real_shape() -> None:
    squashed = np.zeros((336, 336, 3), np.uint8)
    squashed[:, 168:] = 255
    picture = opened(small_jpeg(*shown(squashed, replace(VIDEO, width=1920, height=1080), None)))
    assert (picture.format, picture.size) == ("JPEG", (256, 144))
    left, right = (np.asarray(picture.crop((at, 0, at + 100, 144))).mean() for at in (0, 156))
    assert (left < 5, right > 250) == (True, True)
    assert opened(small_jpeg(squashed, 20, 10)).size == (20, 10)  # no larger than it is
    assert opened(small_jpeg(squashed, 100_000, 3)).size == (EDGE, 1)
    assert opened(small_jpeg(squashed, 3, 100_000)).size == (1, EDGE)


@pytest.mark.parametrize(
    ("layout", "size", "reddest"),
    [
        (PieceLayout(336, (336, 336)), (256, 256), 1.0),  # the middle third, which is red
        (PieceLayout(336, (336, 336), pad=True), (256, 85), 1 / 3),
        (PieceLayout(336, (336, 336), 2), (256, 256), 1.0),
    ],
)
def test_a_picture_is_shown_as_the_model_sees_it(layout: PieceLayout, size: tuple[int, int], reddest: float) -> None:
    """Green, red, green from left to right, three times as wide as high."""
    canvas = np.zeros((100, 300, 3), np.uint8)
    canvas[..., 1] = 255
    canvas[:, 100:200] = 255, 0, 0
    picture = opened(small_jpeg(*shown(pieces(ArrayRaster(canvas), layout), IMAGE, layout)))
    assert picture.size == size
    seen = np.asarray(picture).astype(int)
    assert (seen[..., 0] > 128).mean() == pytest.approx(reddest, abs=0.03)
    assert (seen[..., 2] > 100).mean() < 0.01  # nothing of what was put around it


def test_a_picture_that_is_whole_keeps_its_shape() -> None:
    assert opened(small_jpeg(*shown(np.zeros((100, 300, 3), np.uint8), IMAGE, None))).size == (256, 85)


def test_a_maker_without_threads_or_memory_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = np.zeros((36, 64, 3), np.uint8)
    with ThumbnailMaker() as maker:
        before = maker.make(frame, VIDEO).result()
        monkeypatch.setattr(thumbnails, "WAITING", 0)
        gate = threading.Event()
        held = [maker._threads.submit(gate.wait) for _ in range(thumbnails.THREADS)]
        waiting = [maker.make(frame, VIDEO) for _ in range(40)]
        assert sum(one.done() for one in waiting) >= 8  # those behind the 32 that wait
        gate.set()
        assert [one.result() for one in waiting] == [before] * 40
        assert len(held) == thumbnails.THREADS

        def fail(*_: Any) -> bytes:
            raise MemoryError

        monkeypatch.setattr(thumbnails, "small_jpeg", fail)
        assert Kept(0.0, maker.make(frame, VIDEO)).jpeg() is None
        assert Kept(0.0, thumbnails._made_here(frame, 3, 3)).jpeg() is None
        monkeypatch.undo()

        def no_thread(*_: Any) -> Any:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(maker._threads, "submit", no_thread)
        assert [maker.make(frame, VIDEO).result() for _ in range(40)] == [before] * 40  # no room is lost
    assert not [one for one in threading.enumerate() if one.name.startswith("thumbnail")]


# The engine


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


class Seen:
    """A watcher that remembers the times."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def saw(self, frames: FrameChunk) -> None:
        assert len(frames.pixels) == len(frames.times)
        self.times += frames.times.tolist()


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_engine_shows_each_frame_once_in_order_and_answers_the_same(oracle: Oracle, chunk: int) -> None:
    """Also where frames pass twice for many questions, and beside media that nobody watches."""
    pixels = noise_video(11, 1)
    asked = {"a": Seen(), "b": None, "c": Seen()}
    windows = (Window(0, 4), WHOLE)
    found: list[dict[Any, Any]] = []
    for is_watched in (True, False):
        requests = [
            request(key, pixels, QUESTIONS[:2], windows=windows, watcher=seen if is_watched else None)
            for key, seen in asked.items()
        ]
        found.append(by_prompt(list(oracle.engine(limits(chunk)).run(requests))))
    assert found[0] == found[1]
    assert [seen.times for seen in asked.values() if seen is not None] == [[float(time) for time in range(11)]] * 2


def test_stored_features_are_shown_to_nobody(oracle: Oracle) -> None:
    seen = Seen()
    config = oracle.model.config

    class Stored(ArrayFrames):
        def __iter__(self) -> Any:
            yield FeatureChunk(np.zeros((2, 1, 16, config.mm_hidden_size), np.float32), np.arange(2.0))

    asked = Request("a", "video", Stored(noise_video(1, 1)), QUESTIONS[:1], GREEDY, watcher=seen)
    (answer,) = oracle.engine(limits()).run([asked])
    assert (isinstance(answer, Answer), seen.times) == (True, [])
