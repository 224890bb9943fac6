"""A decoder that never returns is killed at its deadline, and no process is left behind, whatever ends the reading."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import psutil
import pytest
from child_processes import left_by_killed_parent

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import child
from llava_mini_cli.media.child import Command
from llava_mini_cli.media.decoders import DECODERS, Decoder, Name, Plan
from llava_mini_cli.media.open import open_clip

DEADLINE = 1.0
SLACK = 5.0  # seconds beyond the deadline, on a busy machine
# Deaf to SIGTERM, with a child of its own, like decord in its endless loop.
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
sys.stdout.buffer.write(bytes({size}))
sys.stdout.buffer.flush()
while True:
    time.sleep(0.1)
"""


def stuck(frames: int = 0, edge: int = 336) -> Decoder:
    """A decoder that gives `frames` black frames and then nothing, for ever; read as decord is."""
    code = DEAF.format(size=frames * edge * edge * 3)
    return replace(DECODERS["decord"], command=lambda plan: Command([sys.executable, "-c", code]))


def broken(plan: Plan) -> Command:
    return Command([sys.executable, "-c", "import sys; sys.exit('cannot open')"])


_others: set[psutil.Process] = set()  # such as the fork server of tests that ran before, in the same process


def descendants() -> set[psutil.Process]:
    """Processes that a test started and that are alive."""
    return set(psutil.Process().children(recursive=True)) - _others


def remaining() -> list[psutil.Process]:
    """`descendants`, once those being killed are gone."""
    end = time.monotonic() + 5
    while (alive := descendants()) and time.monotonic() < end:
        time.sleep(0.02)
    return list(alive)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    _others.clear()
    _others.update(psutil.Process().children(recursive=True))
    yield
    assert remaining() == []


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.film(tmp_path_factory.mktemp("films") / "film.mp4", 300, *films.B_FRAMES)


def opened(path: Path, decoders: Mapping[Name, Decoder] = DECODERS, **options: Any) -> Any:
    options = {"decode_timeout": DEADLINE, **options}
    return open_clip(path, SamplingOptions(**options), chunk_frames=2, decoders=decoders)


def test_a_stuck_decoder_is_killed_at_the_deadline(film: Path) -> None:
    begin = time.monotonic()
    with (
        opened(film, {"decord": stuck()}, decoder="decord") as clip,
        pytest.raises(MediaError, match="no frame for 1 s") as caught,
    ):
        list(clip)
    assert caught.value.kind == "timeout"
    assert DEADLINE <= time.monotonic() - begin < DEADLINE + SLACK
    assert remaining() == []


def test_both_stuck_take_two_deadlines(film: Path) -> None:
    begin = time.monotonic()
    with opened(film, {"decord": stuck(), "ffmpeg": stuck()}) as clip, pytest.raises(MediaError) as caught:
        list(clip)
    assert caught.value.kind == "timeout"
    assert 2 * DEADLINE <= time.monotonic() - begin < 2 * DEADLINE + SLACK


def test_the_second_decoder_goes_on_where_the_first_stuck(film: Path) -> None:
    with opened(film, {**DECODERS, "decord": stuck(frames=3)}) as clip:
        chunks = list(clip)
    times = np.concatenate([chunk.times for chunk in chunks])
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    assert len(times) == 10
    assert not pixels[:3].any()
    assert [films.number_in(frame) for frame in pixels[3:]] == np.rint(times[3:] * 30).astype(int).tolist()
    assert clip.warnings == ["decord gave no frame for 1 s and was stopped"]


def test_the_second_decoder_mends_what_the_first_cannot_open(film: Path) -> None:
    with opened(film, {**DECODERS, "decord": replace(DECODERS["decord"], command=broken)}) as clip:
        assert sum(len(chunk.times) for chunk in clip) == 10
    assert clip.warnings == []


def test_frames_before_the_stall_are_given_with_a_warning(film: Path) -> None:
    with opened(film, {"ffmpeg": stuck(frames=3)}, decoder="ffmpeg") as clip:
        assert sum(len(chunk.times) for chunk in clip) == 3
    assert "ffmpeg gave no frame for 1 s and was stopped" in clip.warnings
    assert any(warning.startswith("3 of 10 frames could be decoded") for warning in clip.warnings)


@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
def test_a_slow_reader_is_not_a_stuck_decoder(film: Path, decoder: str) -> None:
    with opened(film, decoder=decoder, decode_timeout=0.7, fps=3) as clip:
        count = 0
        for chunk in clip:
            count += len(chunk.times)
            time.sleep(1.0 if count <= 4 else 0)
    assert count == 30
    assert clip.warnings == []


def test_a_pipe_that_nobody_writes_is_a_timeout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "film.mp4")
    begin = time.monotonic()
    with pytest.raises(MediaError) as caught:
        opened(tmp_path / "film.mp4")
    assert caught.value.kind == "timeout"
    assert DEADLINE <= time.monotonic() - begin < DEADLINE + SLACK


def test_ready_tells_the_truth_and_does_not_wait(film: Path) -> None:
    with opened(film, {"decord": stuck(frames=2)}, decoder="decord", decode_timeout=60) as clip:
        wait_until(clip.ready)
        chunks = iter(clip)
        begin = time.monotonic()
        assert len(next(chunks).times) == 2
        assert not clip.ready()
        assert time.monotonic() - begin < 0.5 * 60
    with opened(film, {"decord": stuck(frames=2)}, decoder="decord") as clip:
        next(iter(clip))
        wait_until(clip.ready)  # the end, after the deadline


@pytest.mark.parametrize("seconds", [2.2e6, 1e15, float("inf")])  # the kernel counts milliseconds in 31 bits
def test_any_deadline_can_be_asked_for(film: Path, seconds: float) -> None:
    with opened(film, decode_timeout=seconds) as clip:
        assert sum(len(chunk.times) for chunk in clip) == 10
    assert clip.warnings == []


def test_a_deadline_is_kept_beyond_the_longest_wait(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_LONGEST_WAIT_S", 0.1)
    begin = time.monotonic()
    with opened(film, {"decord": stuck()}, decoder="decord") as clip, pytest.raises(MediaError, match="no frame for 1"):
        list(clip)
    assert DEADLINE <= time.monotonic() - begin < DEADLINE + SLACK


def test_closing_early_ends_the_decoder(film: Path) -> None:
    clip = opened(film, {"decord": stuck()}, decoder="decord", decode_timeout=60)
    wait_until(lambda: len(descendants()) > 0)
    begin = time.monotonic()
    clip.close()
    clip.close()
    assert time.monotonic() - begin < SLACK
    assert list(clip) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
def test_an_exception_in_the_reader_ends_the_decoder(film: Path, decoder: str, error: type[BaseException]) -> None:
    with pytest.raises(error), opened(film, decoder=decoder, fps=30) as clip:
        for _ in clip:
            raise error
    assert remaining() == []


def test_an_interrupt_while_waiting_ends_the_decoder(film: Path) -> None:
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        clip = opened(film, {"decord": stuck()}, decoder="decord", decode_timeout=60)
        with pytest.raises(KeyboardInterrupt), clip:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            list(clip)
    finally:
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
def test_nothing_outlives_a_killed_parent(film: Path, decoder: str, sign: signal.Signals) -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from llava_mini_cli.config import SamplingOptions\n"
        "from llava_mini_cli.media.open import open_clip\n"
        f"clip = open_clip({str(film)!r}, SamplingOptions(fps=30, decoder={decoder!r}), chunk_frames=4)\n"
        "chunks = iter(clip); next(chunks); print('going', flush=True); time.sleep(60)\n"
    )
    assert left_by_killed_parent(code, sign) == []


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
