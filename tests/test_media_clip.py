"""A video as a clip: chunks, the second decoder, what is said of frames that are missing, and the child's end."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import child_processes
from media_doubles import Decoders, found

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import open as module
from llava_mini_cli.media.child import Child, Command
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.decoders import Decoder, DecoderError, Plan
from llava_mini_cli.media.open import open_clip

Read = Callable[[Child, Plan], Iterator[tuple[int, np.ndarray]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Clip]:
    """Opens a video with decoders of the test's own; `options`: of sampling."""
    (tmp_path / "film.mp4").write_bytes(b"no picture")
    monkeypatch.setattr(module, "decord_installed", lambda: True)

    def make(
        decoders: Any, chunk_frames: int = 3, promised: float | None = None, seconds: float = 8, **options: Any
    ) -> Clip:
        monkeypatch.setattr(module, "scan", lambda *_: found(seconds, promised))
        sampling = SamplingOptions(**{"decode_timeout": 9.0, **options})
        return open_clip(tmp_path / "film.mp4", sampling, frame_size=2, chunk_frames=chunk_frames, decoders=decoders)

    return make


def decoder(read: Read, script: str = "", parts: int = 1) -> Decoder:
    """A decoder that reads what its script does; its plan in so many parts."""

    def cut(plan: Plan) -> list[Plan]:
        each = -(-len(plan.pts) // parts)
        return [plan.part(first, first + each) for first in range(0, len(plan.pts), each)]

    return Decoder(cut, lambda _: Command(["/bin/sh", "-c", script]), read)


def frame(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value % 256, np.uint8)


def reading(*numbers: int, then: Exception | None = None) -> Read:
    """Gives the frames of these places in the plan, once the child has ended."""

    def read(child: Child, plan: Plan) -> Iterator[tuple[int, np.ndarray]]:
        child.finish()
        for number in numbers:
            yield plan.pts[number], frame(plan.pts[number])
        if then is not None:
            raise then

    return read


def failure(clip: Clip) -> tuple[str, str]:
    with clip, pytest.raises(MediaError) as caught:
        list(clip)
    return caught.value.kind, str(caught.value)


def times(clip: Clip) -> list[float]:
    with clip:
        return [time for chunk in clip for time in chunk.times.tolist()]


WANTED = [0.5, 1.5, 2.5, 3.5, 4.4, 5.4, 6.4, 7.4]


def test_frames_in_chunks_with_their_times(opened: Callable[..., Clip]) -> None:
    with opened({"decord": decoder(reading(*range(8)))}, decoder="decord") as clip:
        chunks = list(clip)
    assert [len(chunk.times) for chunk in chunks] == [3, 3, 2]
    assert np.concatenate([chunk.times for chunk in chunks]).tolist() == WANTED
    shown = np.concatenate([chunk.pixels for chunk in chunks])
    assert shown.shape == (8, 2, 2, 3)
    assert (shown[:, 0, 0, 0] / 10).tolist() == WANTED
    assert clip.warnings == []


def test_a_frame_that_is_sampled_twice_is_given_twice_across_chunks(opened: Callable[..., Clip]) -> None:
    clip = opened({"decord": decoder(reading(0, 1))}, 2, decoder="decord", fps=40, seconds=0.3)
    with clip:
        assert [chunk.times.tolist() for chunk in clip] == [[0.0, 0.1], [0.1]]


def test_the_second_decoder_goes_on_behind_the_last_frame_that_was_had(opened: Callable[..., Clip]) -> None:
    second = Decoders(ffmpeg=99)
    first = decoder(reading(0, 2, then=DecoderError("broken")))  # its second frame is lost
    clip = opened({"decord": first, "ffmpeg": second.mapping["ffmpeg"]})
    assert times(clip) == [WANTED[0], *WANTED[2:]]
    assert second.asked[0][1].indices == (35, 44, 54, 64, 74)
    assert clip.warnings == ["7 of 8 frames could be decoded"]


def test_nobody_else_is_asked_once_the_last_frame_is_there(opened: Callable[..., Clip]) -> None:
    second = Decoders()
    first = decoder(reading(*range(8), then=DecoderError("broken at its end")))
    clip = opened({"decord": first, "ffmpeg": second.mapping["ffmpeg"]})
    assert times(clip) == WANTED
    assert second.asked == []
    assert clip.warnings == []


def test_what_both_cannot_read_is_missing(opened: Callable[..., Clip]) -> None:
    clip = opened(Decoders(decord=3, ffmpeg=2).mapping)
    assert times(clip) == WANTED[:5]
    assert clip.warnings == ["5 of 8 frames could be decoded: no frame came from ffmpeg"]


SAYS = "echo '[h264 @ 0x1] damaged.' >&2"


def test_a_decoder_that_ends_early_without_a_word(opened: Callable[..., Clip]) -> None:
    clip = opened({"ffmpeg": decoder(reading(0, 1))}, decoder="ffmpeg")
    assert times(clip) == WANTED[:2]
    assert clip.warnings == ["2 of 8 frames could be decoded"]
    clip = opened({"ffmpeg": decoder(reading(0, 1), SAYS)}, decoder="ffmpeg")
    assert times(clip) == WANTED[:2]
    assert clip.warnings == ["2 of 8 frames could be decoded: damaged"]


def test_complaints_are_told_unless_the_file_is_known_to_be_cut(opened: Callable[..., Clip]) -> None:
    whole = {"ffmpeg": decoder(reading(*range(8)), SAYS)}
    clip = opened(whole, decoder="ffmpeg")
    assert times(clip) == WANTED
    assert clip.warnings == ["the video is damaged; frames may be, too (damaged)"]
    clip = opened(whole, decoder="ffmpeg", promised=20.0)
    assert times(clip) == WANTED
    assert clip.warnings == ["read 8.0 of 20.0 s"]


def test_not_one_frame(opened: Callable[..., Clip]) -> None:
    assert failure(opened({"ffmpeg": decoder(reading())}, decoder="ffmpeg")) == ("corrupt", "no frame could be decoded")
    clip = opened({"ffmpeg": decoder(reading(), SAYS)}, decoder="ffmpeg")
    assert failure(clip) == ("corrupt", "no frame could be decoded (damaged)")


def test_a_first_decoder_without_a_frame_is_followed_by_the_second(opened: Callable[..., Clip]) -> None:
    clip = opened({"decord": decoder(reading()), "ffmpeg": decoder(reading(*range(8)))})
    assert times(clip) == WANTED
    assert clip.warnings == []


@pytest.mark.parametrize(
    "words", ["Unknown decoder 'x'", "Decoder not found", "no decoder found for: none", "cannot find video stream"]
)
def test_a_codec_that_nobody_knows(opened: Callable[..., Clip], words: str) -> None:
    clip = opened({"ffmpeg": decoder(reading(then=DecoderError(words)))}, decoder="ffmpeg")
    assert failure(clip) == ("unsupported_codec", f"the video's codec cannot be decoded ({words})")


def test_a_decoder_that_stalls(opened: Callable[..., Clip]) -> None:
    stuck = decoder(reading(), "exec sleep 60")
    clip = opened({"ffmpeg": stuck}, decoder="ffmpeg", decode_timeout=0.2)
    assert failure(clip) == ("timeout", "ffmpeg gave no frame for 0.2 s")
    assert clip.warnings == ["ffmpeg gave no frame for 0.2 s and was stopped"]


def test_each_child_has_ended_before_the_next_begins(opened: Callable[..., Clip]) -> None:
    """Also one that would go on by itself, as ffmpeg does behind the last frame that was asked for."""

    def read(_: Child, plan: Plan) -> Iterator[tuple[int, np.ndarray]]:
        running.append(len(child_processes()))
        for pts in plan.pts:
            yield pts, frame(pts)

    running: list[int] = []
    clip = opened({"ffmpeg": decoder(read, "exec sleep 60", parts=3)}, decoder="ffmpeg")
    assert times(clip) == WANTED
    assert running == [1, 1, 1]
    assert child_processes() == []


def test_closing_kills_the_child_that_is_read(opened: Callable[..., Clip]) -> None:
    clip = opened({"ffmpeg": decoder(reading(), "exec sleep 60")}, decoder="ffmpeg", decode_timeout=60)
    end = time.monotonic() + 10
    while not child_processes():
        assert time.monotonic() < end
        time.sleep(0.01)
    begin = time.monotonic()
    clip.close()
    assert time.monotonic() - begin < 4  # less than the thread would be waited for
    assert child_processes() == []
    assert list(clip) == []


def test_closing_does_not_wait_for_frames_that_nobody_takes(opened: Callable[..., Clip]) -> None:
    clip = opened(Decoders(ffmpeg=99).mapping, 1, decoder="ffmpeg")
    end = time.monotonic() + 10
    while not clip.ready():
        assert time.monotonic() < end
        time.sleep(0.01)
    begin = time.monotonic()
    clip.close()
    assert time.monotonic() - begin < 4


def test_no_child_begins_for_a_clip_that_is_closed(opened: Callable[..., Clip]) -> None:
    begun: list[str] = []
    closing = threading.Event()

    def parts(plan: Plan) -> list[Plan]:
        closing.wait(10)
        time.sleep(0.1)
        return [plan]

    def command(_: Plan) -> Command:
        begun.append("child")
        return Command(["/bin/true"])

    clip = opened({"ffmpeg": Decoder(parts, command, reading())}, decoder="ffmpeg")
    closing.set()
    clip.close()
    assert begun == []
