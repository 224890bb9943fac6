"""Decoders that are killed, by a double of ffmpeg that ends itself or by process id: never a short answer."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import media_films as films
import numpy as np
import psutil
import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import endings, tone
from llava_mini_cli.media.child import Child, Command
from llava_mini_cli.media.decoders import DECODERS, Decoder, Name, Pixels, Plan, decord_installed
from llava_mini_cli.media.open import open_clip, probe

LOOK, TIMES, HEADER, FILTERS = "framecrc", "wrapped_avframe", "-t", "-filters"  # a word of each run
# It becomes the real ffmpeg, or gives the first bytes of what that would give and ends itself by a signal.
DOUBLE = f"""#!{sys.executable} -IS
import os, sys
if os.environ["KILL_RUN"] in sys.argv:
    os.write(1, {{recorded!r}}.get(os.environ["KILL_RUN"], b"")[:int(os.environ["KILL_AFTER"])])
    os.kill(os.getpid(), int(os.environ["KILL_WITH"]))
os.execv({films.FFMPEG!r}, [{films.FFMPEG!r}, *sys.argv[1:]])
"""
Row = tuple[list[int], list[float], list[str]] | tuple[str, str]
needs_decord = pytest.mark.skipif(not decord_installed(), reason="decord is not installed")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.film(tmp_path_factory.mktemp("films") / "film.mp4", 300, *films.B_FRAMES)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film whose packets do not tell when its frames are shown."""
    return films.film(tmp_path_factory.mktemp("films") / "film.webm", 60, "-c:v", "libvpx", "-deadline", "realtime")


def row(path: Path, decoders: Mapping[Name, Decoder] = DECODERS, **options: object) -> Row:
    """What becomes of a video: its frames with their times and warnings, or the error."""
    settings = SamplingOptions(**{"decode_timeout": 20, "decoder": "ffmpeg", **options})  # type: ignore[arg-type]
    try:
        with open_clip(path, settings, chunk_frames=2, decoders=decoders) as clip:
            chunks = list(clip)
            assert sum(len(chunk.times) for chunk in chunks) == clip.info.frame_count or clip.warnings
    except MediaError as error:
        return error.kind, str(error)
    pixels, times = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("pixels", "times"))
    return films.numbers(pixels), times.tolist(), clip.warnings


@dataclass
class Killing:
    """The double in ffmpeg's place; `once` lets it live from the second try on."""

    monkeypatch: pytest.MonkeyPatch

    def kill(self, run: str, after: int = 0, sign: str = "KILL", once: bool = True) -> None:
        for name, value in (("RUN", run), ("AFTER", after), ("WITH", int(signal.Signals[f"SIG{sign}"]))):
            self.monkeypatch.setenv(f"KILL_{name}", str(value))

        def pause(_: float) -> None:
            if once:
                self.monkeypatch.setenv("KILL_RUN", "nothing")

        self.monkeypatch.setattr(endings.time, "sleep", pause)


@pytest.fixture
def ffmpeg(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killing:
    runs = {LOOK: ("-i", str(film), "-c", "copy", "-f", LOOK, "-"), FILTERS: (FILTERS,)}
    recorded = {name: subprocess.run([films.FFMPEG, *run], capture_output=True).stdout for name, run in runs.items()}
    assert len(recorded[LOOK]) > 11_000
    program = tmp_path / "ffmpeg"
    program.write_text(DOUBLE.format(recorded=recorded))
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setenv("KILL_RUN", "nothing")
    return Killing(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "PAUSE_S", 0.01)


def killed(sign: str) -> tuple[str, str]:
    if sign == "SEGV":
        return "corrupt", "the decoder crashed (SIGSEGV)"
    return "decoder_killed", f"the decoder was ended from outside (SIG{sign})"


SIGNS = ("KILL", "TERM", "SEGV")


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("after", [0, 60, 11_000])  # bytes of 300 packets
def test_a_first_look_that_is_killed(film: Path, ffmpeg: Killing, sign: str, after: int) -> None:
    whole = row(film)
    assert whole[2:] == ([],)
    ffmpeg.kill(LOOK, after, sign)
    assert row(film) == whole
    ffmpeg.kill(LOOK, after, sign, once=False)
    assert row(film) == killed(sign)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_count_of_frames_that_is_killed(hidden: Path, ffmpeg: Killing, sign: str) -> None:
    whole = row(hidden)
    assert whole[2:] == ([],)
    ffmpeg.kill(TIMES, 0, sign)
    assert row(hidden) == whole
    ffmpeg.kill(TIMES, 0, sign, once=False)
    assert row(hidden) == killed(sign)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_look_at_the_header_that_is_killed(film: Path, ffmpeg: Killing, sign: str) -> None:
    whole = probe(film, 20)
    ffmpeg.kill(HEADER, 0, sign)
    assert probe(film, 20) == whole
    ffmpeg.kill(HEADER, 0, sign, once=False)
    with pytest.raises(MediaError) as caught:
        probe(film, 20)
    assert (caught.value.kind, str(caught.value)) == killed(sign)


def dying_ffmpeg(frames: int, sign: str, times: int) -> Decoder:
    """The real ffmpeg, which is sent a signal when it has given so many frames, so many times; -1: when it begins."""
    left = [times]

    def read(child: Child, plan: Plan) -> Iterator[tuple[int, Pixels]]:
        is_last = left[0] == 0
        left[0] -= not is_last

        def send() -> None:
            if not is_last:
                os.kill(child._process.pid, signal.Signals[f"SIG{sign}"])  # pyright: ignore[reportPrivateUsage]

        if frames < 0:
            send()
        for number, frame in enumerate(DECODERS["ffmpeg"].read(child, plan)):
            if number == frames:
                send()
            yield frame

    return replace(DECODERS["ffmpeg"], read=read)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("frames", [-1, 0, 100])
def test_frames_are_taken_up_where_the_killed_decoder_left_them(film: Path, sign: str, frames: int) -> None:
    """All 300 of them (one is sampled twice), of which the pipe holds nine."""
    whole = row(film, fps=30)
    assert len(whole[0]) == 300
    # ffmpeg heeds SIGTERM, and may leave out frames before its last one then, which is noticed.
    may_be = [whole, *([killed(sign)] if sign == "TERM" else [])]
    assert row(film, {"ffmpeg": dying_ffmpeg(frames, sign, 1)}, fps=30) in may_be
    part = row(film, {"ffmpeg": dying_ffmpeg(frames, sign, 2)}, fps=30)
    if sign == "SEGV" and frames >= 0:
        given = len(part[0])
        assert 2 * (frames + 1) <= given < 300
        distinct = len(set(whole[1][:given]))
        missing = f"{distinct} of 299 frames could be decoded: the decoder crashed (SIGSEGV)"
        assert part == (whole[0][:given], whole[1][:given], [missing])
    else:
        assert part in [killed(sign), *([whole] if sign == "TERM" else [])]  # which may give all before it ends


def test_the_filters_of_an_ffmpeg_that_is_killed(ffmpeg: Killing) -> None:
    """A list of half of them would make the colours of every video pale."""
    program = os.environ["IMAGEIO_FFMPEG_EXE"]
    filters = tone._filters  # pyright: ignore[reportPrivateUsage]
    for once in (False, True):
        filters.cache_clear()
        ffmpeg.kill(FILTERS, 2000, once=once)
        if once:
            assert {"zscale", "tonemap", "setparams"} <= filters(program)
        else:
            with pytest.raises(MediaError) as caught:
                filters(program)
            assert caught.value.kind == "decoder_killed"
    filters.cache_clear()


@pytest.mark.parametrize(("code", "reason"), [("exit 3", "it ended with status 3"), ("sleep 60", "filters it has")])
def test_an_ffmpeg_that_does_not_tell_its_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setattr(tone, "_PATIENCE_S", 0.5)
    (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{code}\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    with pytest.raises(MediaError, match=reason):
        tone._filters(str(tmp_path / "ffmpeg"))  # pyright: ignore[reportPrivateUsage]


def dying(frames: int, sign: int, times: int = 1000, then: Decoder = DECODERS["decord"]) -> Decoder:
    """A decoder that gives `frames` real ones and dies, so many times; after that it is `then`."""
    left = [times]

    def command(plan: Plan) -> Command:
        left[0] -= 1
        if left[0] < 0:
            return then.command(plan)
        code = f"import os, sys; sys.stdout.buffer.write(bytes({frames * 336 * 336 * 3})); sys.stdout.flush()\n"
        return Command([sys.executable, "-c", f"{code}os.kill(os.getpid(), {sign})"])

    return replace(then, command=command)


@needs_decord
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_decord(film: Path, sign: int) -> None:
    whole = row(film, decoder="auto")
    assert row(film, {**DECODERS, "decord": dying(0, sign, 1)}, decoder="auto") == whole
    assert row(film, {**DECODERS, "decord": dying(0, sign)}, decoder="auto") == whole  # ffmpeg goes on
    assert row(film, {**DECODERS, "decord": dying(0, sign)}, decoder="decord") == killed(signal.Signals(sign).name[3:])
    black, times, warnings = row(film, {**DECODERS, "decord": dying(3, sign, 1)}, decoder="auto")  # type: ignore[misc]
    assert (black[3:], times, warnings) == (whole[0][3:], whole[1], [])
    assert black[:3] == [0, 0, 0]


@needs_decord
@pytest.mark.usefixtures("quick")
def test_a_killed_decoder_is_the_reason_also_where_the_other_one_fails(film: Path) -> None:
    refusing = replace(DECODERS["decord"], command=lambda _: Command(["/bin/sh", "-c", "echo odd >&2; exit 1"]))
    for first, second in ((dying(3, signal.SIGKILL), refusing), (refusing, dying(3, signal.SIGKILL))):
        assert row(film, {"decord": first, "ffmpeg": second}, decoder="auto") == killed("KILL")


def children(of: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
    for process in psutil.Process().children():
        try:
            if of(process):
                yield process
        except psutil.NoSuchProcess:
            pass


def is_ffmpeg(process: psutil.Process) -> bool:
    return process.name().startswith("ffmpeg")


class Killer:
    """A thread that kills the real ffmpeg by its process id, `most` times, each some moment after it began."""

    def __init__(self, seed: int, most: int) -> None:
        self._random = random.Random(seed)
        self.kills = 0
        self._most = most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _kill(self) -> None:
        seen: set[int] = set()
        while self.kills < self._most and not self._stop.is_set():
            for process in children(lambda found: found.pid not in seen and is_ffmpeg(found)):
                seen.add(process.pid)
                self._stop.wait(self._random.uniform(0, self._random.choice((0, 0.01, 0.25))))  # a first look is short
                if process.is_running():
                    process.kill()
                    self.kills += 1
            time.sleep(0.001)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
def test_the_real_ffmpeg_killed_at_random_moments(film: Path, decoder: str, most: int) -> None:
    whole = row(film, decoder=decoder, fps=10)
    rows: list[Row] = []
    kills = 0
    for seed in range(5):
        with Killer(seed, most) as killer:
            rows.append(row(film, decoder=decoder, fps=10))
        kills += killer.kills
    assert kills > 0
    if most == 1:
        assert rows == [whole] * 5
    else:
        assert all(found in (whole, killed("KILL")) for found in rows)
