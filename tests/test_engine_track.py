"""What is kept of one request on its way: when frames are ready, how they are cut, what a window holds."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.pack import PromptGroup, pack_prompts
from llava_mini_cli.engine.questions import AskedAbout
from llava_mini_cli.engine.request import AnyChunk, Failure, FeatureChunk, GrowingWindows, Request, Window
from llava_mini_cli.engine.track import Track, apart, cut, halves, prefill_items
from llava_mini_cli.engine.window_sum import WindowSum
from llava_mini_cli.errors import ItemError, MediaError
from llava_mini_cli.media.clip import FrameChunk

IMAGE = -200
PACK = pack_prompts([[5, 6, IMAGE, 7, 8], [5, 6, IMAGE, 9]])


def track_of(source: ArrayFrames, *windows: Window) -> Track:
    request = Request("v", "video", source, ("a", "b"), GenerationOptions())
    sums = [WindowSum(index, window, PACK.groups) for index, window in enumerate(windows or (Window(),))]
    return Track(request, [PACK], iter(source), sums, begun=len(sums))


def pixels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)


def times(chunk: AnyChunk | None) -> list[float]:
    assert chunk is not None
    return chunk.times.tolist()


def test_frames_are_ready_when_the_source_says_so_or_some_are_left_over() -> None:
    track = track_of(ArrayFrames(pixels(5), size=5, not_ready=1))
    assert not track.frames_ready()
    assert track.frames_ready()
    assert times(track.take(2)) == [0, 1]
    track.request.frames.not_ready = 1000  # pyright: ignore[reportAttributeAccessIssue]
    assert track.frames_ready()
    assert times(track.take(3)) == [2, 3, 4]
    assert not track.frames_ready()


def test_at_its_end_a_source_is_not_asked_again() -> None:
    track = track_of(ArrayFrames(pixels(3), size=2))
    assert [times(track.take(9)), times(track.take(9))] == [[0, 1], [2]]
    assert not track.ended
    assert track.frames_ready()
    assert track.take(9) is None
    assert track.ended
    assert not track.frames_ready()
    assert track.take(9) is None


def test_what_a_source_raises_is_raised() -> None:
    track = track_of(ArrayFrames(pixels(1), error=MediaError("corrupt", "damaged")))
    assert times(track.take(1)) == [0]
    with pytest.raises(MediaError):
        track.take(1)


def test_taken_frames_are_those_of_the_source() -> None:
    track = track_of(ArrayFrames(pixels(5), size=5))
    parts = [track.take(2), track.take(2), track.take(2)]
    assert [part.pixels[:, 0, 0, 0].tolist() for part in parts if isinstance(part, FrameChunk)] == [[0, 1], [2, 3], [4]]


def frames_of(count: int, width: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[n, 1, width]` and fused text `[n, T, width]` that count the frames."""
    numbers = torch.arange(count, dtype=torch.float32)[:, None, None]
    return numbers.expand(-1, 1, width), (numbers + 1).expand(-1, len(PACK), width)


def test_frames_go_to_every_window_that_holds_them() -> None:
    track = track_of(ArrayFrames(pixels(1)), Window(0, 2), Window(1, 3), Window(4, 9), Window())
    track.add(*frames_of(4), np.arange(4.0))
    assert [window.frame_count for window in track.windows] == [2, 2, 0, 4]
    assert track.windows[0].tokens[:, 0].tolist() == [0, 1]
    assert track.windows[1].tokens[:, 0].tolist() == [1, 2]
    assert track.windows[2].total is None
    totals = [window.total[0, 0].item() for window in track.windows if window.total is not None]
    assert totals == [1 + 2, 2 + 3, 1 + 2 + 3 + 4]


def test_windows_are_complete_when_their_end_has_come() -> None:
    track = track_of(ArrayFrames(pixels(1)), Window(0, 2), Window(1, 3), Window())
    assert track.complete(1.9) == []
    assert [window.index for window in track.complete(2.0)] == [0]
    assert [window.index for window in track.windows] == [1, 2]
    track.ended = True
    assert [window.index for window in track.complete(0.0)] == [1, 2]
    assert track.windows == []


def coming(*windows: Window) -> Track:
    source = ArrayFrames(pixels(1))
    request = Request("v", "video", source, ("a", "b"), GenerationOptions(), windows)
    return Track(request, [PACK], iter(source))


def test_a_window_is_made_when_its_first_frame_comes() -> None:
    track = coming(Window(0, 2), Window(2, 4), Window(2, 9, frozenset({0})), Window(5, 9))
    track.add(*frames_of(2), np.arange(2.0))
    assert ([window.index for window in track.windows], track.coming) == ([0], 3)
    track.add(*frames_of(2), np.arange(2.0, 4.0))
    assert [(window.index, window.frame_count, window.prompts) for window in track.windows] == [
        (0, 2, [0, 1]), (1, 2, [0, 1]), (2, 2, [1]),
    ]  # fmt: skip
    track.begin(100.0)
    assert (len(track.windows), track.coming) == (4, 0)


def test_ten_thousand_windows_are_never_there_together() -> None:
    track = coming(*(Window(number, number + 2) for number in range(10_000)))
    most = 0
    for second in range(0, 10_000, 10):
        track.add(*frames_of(10), np.arange(second, second + 10.0))
        most = max(most, len(track.windows))
        assert [window.frame_count for window in track.complete(second + 10.0)][1:] == [2] * (8 if second == 0 else 9)
    assert most == 11


def test_a_pass_fails_with_the_windows_that_are_still_to_come() -> None:
    track = coming(Window(0, 2), Window(2, 4, frozenset({1})), Window(4, 6))
    track.begin(0.0)
    failures = track.pass_failures(0, ItemError("x", "y"), "generate")
    assert [(one.window_index, one.prompt_index) for one in failures] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    track.drop_pass(0)
    track.begin(9.0)
    assert [window.prompts for window in track.windows] == [[], [], []]
    assert track.pass_failures(0, ItemError("x", "y")) == []


class Told(GrowingWindows):
    """Windows that begin where a test says."""

    is_growing = True
    outcomes = 0
    wants_embeddings = True

    def __init__(self) -> None:
        self.starts = [0.0]
        self.seen: list[tuple[list[float], object]] = []

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return Window(self.starts[index], [*self.starts, float("inf")][index + 1])

    def __len__(self) -> int:
        return len(self.starts)

    def reached(self, time: float) -> None: ...

    def saw(self, times: np.ndarray, embeddings: np.ndarray | None) -> None:
        self.seen.append((times.tolist(), None if embeddings is None else embeddings.tolist()))

    def close(self) -> None:
        self.is_growing = False


def growing() -> tuple[Track, Told]:
    source, windows = ArrayFrames(pixels(1)), Told()
    return Track(Request("v", "video", source, ("a", "b"), GenerationOptions(), windows), [PACK], iter(source)), windows


def test_a_window_that_grows_ends_where_the_next_one_begins() -> None:
    track, windows = growing()
    track.add(*frames_of(3), np.arange(3.0))
    assert ([window.frame_count for window in track.windows], track.complete(2.0), track.is_growing) == ([3], [], True)
    windows.starts += [4.0, 5.5]
    track.add(*frames_of(3), np.arange(3.0, 6.0))
    assert [(one.window.start, one.window.end, one.frame_count) for one in track.windows] == [
        (0.0, 4.0, 4), (4.0, 5.5, 2),
    ]  # fmt: skip
    assert ([one.index for one in track.complete(5.0)], track.coming) == ([0], 1)
    track.begin(5.5)
    assert ([one.index for one in track.complete(5.5)], track.coming) == ([1], 0)
    windows.close()
    assert not track.is_growing


def test_a_prompt_that_failed_fails_in_windows_that_come_later() -> None:
    track, windows = growing()
    track.begin(0.0)
    track.refuse([1], ItemError("too_long", "y"), "prompt")
    windows.starts += [2.0, 4.0]
    track.begin(3.0)
    assert [(one.window_index, one.prompt_index, one.stage) for one in track.failed] == [(1, 1, "prompt")]
    late = track.failed_late()
    assert [(one.window_index, one.prompt_index, one.error_type) for one in late] == [
        (1, 1, "too_long"),
        (2, 1, "too_long"),
    ]


def test_windows_that_want_embeddings_are_given_those_of_the_model_or_of_the_store() -> None:
    track, windows = growing()
    assert track.wants_embeddings
    stored = FeatureChunk(np.zeros((2, 1, 4, 8), np.float16), np.array([7.0, 8.0]), np.eye(2, dtype=np.float16))
    track.see(cut(stored, slice(1, None)), None)
    track.see(FrameChunk(pixels(1), np.zeros(1)), torch.ones(1, 2))
    track.see(FrameChunk(pixels(1), np.ones(1)), None)
    assert windows.seen == [([8.0], [[0.0, 1.0]]), ([0.0], [[1.0, 1.0]]), ([1.0], None)]
    windows.wants_embeddings = False
    track.see(stored, None)
    assert (len(windows.seen), track.wants_embeddings) == (3, False)
    assert not track_of(ArrayFrames(pixels(1))).wants_embeddings


def test_a_window_grows_and_keeps_what_it_has() -> None:
    window = WindowSum(0, Window(), PACK.groups)
    for _ in range(3):
        window.add(*frames_of(40))
    assert window.tokens[:, 1].tolist() == [*range(40)] * 3
    assert window.frame_count == 120
    assert window._buffer is not None
    assert window._buffer.shape == (240, 2)  # twice what the third addition needed
    small = WindowSum(0, Window(), PACK.groups)
    small.add(*frames_of(1))
    assert small._buffer is not None
    assert small._buffer.shape == (64, 2)


def test_prompts_are_left_out_and_a_released_window_holds_nothing() -> None:
    window = WindowSum(0, Window(), PACK.groups)
    window.add(*frames_of(2))
    window.drop_prompts({0})
    assert (window.prompts, window.groups) == ([1], (PromptGroup(0, (2,), (1,)),))
    assert window.total is not None
    window.release()
    assert (window.total, window._buffer) == (None, None)


def test_a_window_is_read_as_its_mean_text_around_its_tokens() -> None:
    track = track_of(ArrayFrames(pixels(1)))
    (window,) = track.windows
    text = torch.arange(float(len(PACK)))[None, :, None].expand(2, -1, 3)
    window.add(torch.full((2, 1, 3), 50.0), text * torch.tensor([1.0, 3.0])[:, None, None])
    (item,) = prefill_items(track, window)
    assert item.prefix[:, 0].tolist() == [0, 2, 50, 50]  # the placeholder, third of the shared text, is left out
    assert [tail[:, 0].tolist() for tail in item.tails] == [[6, 8], [10]]


def chunks() -> Iterator[tuple[Track, AnyChunk]]:
    for size in (3, 1, 4):
        yield track_of(ArrayFrames(pixels(1))), FrameChunk(pixels(size), np.arange(float(size)))


def test_a_chunk_is_cut_in_the_middle() -> None:
    chunk = list(chunks())
    first, second = halves(chunk)
    assert [times(frames) for _, frames in first] == [[0, 1, 2], [0]]
    assert [times(frames) for _, frames in second] == [[0, 1, 2, 3]]
    assert [track for track, _ in (*first, *second)] == [track for track, _ in chunk]
    first, second = halves(chunk[:1])
    assert [times(frames) for _, frames in (*first, *second)] == [[0], [1, 2]]


def test_pixels_and_features_are_encoded_apart() -> None:
    features = FeatureChunk(np.zeros((2, 1, 4, 8), np.float16), np.array([7.0, 8.0]))
    one, two, three = chunks()
    chunk = [one, two, (one[0], features), three]
    assert apart(chunk) == [[one, two], [(one[0], features)], [three]]
    assert apart([]) == []
    part = cut(features, slice(1, None))
    assert isinstance(part, FeatureChunk)
    assert (part.features.shape, part.times.tolist()) == ((1, 1, 4, 8), [8.0])


def test_a_failure_says_of_which_prompt_and_window_it_is() -> None:
    track = track_of(ArrayFrames(pixels(1)), Window(), Window(1, 2))
    error = MediaError("corrupt", "damaged")
    want = [Failure("v", prompt, "decode", "corrupt", "damaged", 1) for prompt in (0, 1)]
    assert track.failures(track.windows[1], error) == want
    assert track.failures(track.windows[0], ItemError("x", "y"), "generate")[0].stage == "generate"
    one = AskedAbout(track, track.windows[1], 1, 4)
    assert one.failure(ItemError("x", "y")) == Failure("v", 1, "generate", "x", "y", 1)
