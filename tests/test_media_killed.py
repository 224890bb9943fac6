"""Decoders that are killed, by a double of ffmpeg that ends itself or by process id: never a short answer."""

import os
import random
import signal
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
from llava_mini_cli.media.child import Command
from llava_mini_cli.media.decoders import DECODERS, Decoder, Name, Plan, decord_installed
from llava_mini_cli.media.open import open_clip, probe

FRAME = 256 * 144 * 3  # bytes
LOOK, TIMES, FRAMES, HEADER, FILTERS = "framecrc", "wrapped_avframe", "rawvideo", "-t", "-filters"  # a word of each run
# It runs the real ffmpeg, and ends itself by a signal after so many bytes of one kind of run.
DOUBLE = f"""#!/bin/sh
for word; do
    if [ "$word" = "$KILL_RUN" ]; then
        {films.FFMPEG} "$@" 2>/dev/null | head -c $KILL_AFTER
        kill -$KILL_WITH $$
    fi
done
exec {films.FFMPEG} "$@"
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
        for name, value in (("RUN", run), ("AFTER", str(after)), ("WITH", sign)):
            self.monkeypatch.setenv(f"KILL_{name}", value)

        def pause(_: float) -> None:
            if once:
                self.monkeypatch.setenv("KILL_RUN", "nothing")

        self.monkeypatch.setattr(endings.time, "sleep", pause)


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killing:
    program = tmp_path / "ffmpeg"
    program.write_text(DOUBLE)
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setenv("KILL_RUN", "nothing")
    return Killing(monkeypatch)


def killed(sign: str) -> tuple[str, str]:
    if sign == "SEGV":
        return "corrupt", "the decoder crashed (SIGSEGV)"
    return "decoder_killed", f"the decoder was ended from outside, twice (SIG{sign})"


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


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("after", [1, 3 * FRAME, 7 * FRAME // 2])
def test_frames_are_taken_up_where_the_killed_decoder_left_them(
    film: Path, ffmpeg: Killing, sign: str, after: int
) -> None:
    whole = row(film)
    ffmpeg.kill(FRAMES, after, sign)
    assert row(film) == whole
    ffmpeg.kill(FRAMES, after, sign, once=False)
    given = 2 * max(after // FRAME - 1, 0)  # by two tries; each begins with a sign of life
    if sign == "SEGV" and given:
        missing = f"{given} of 10 frames could be decoded: the decoder crashed (SIGSEGV)"
        assert row(film) == (whole[0][:given], whole[1][:given], [missing])
    else:
        assert row(film) == killed(sign)


def test_the_end_of_a_long_way_is_taken_up_too(film: Path, ffmpeg: Killing) -> None:
    """With all frames; the rest is asked for by itself, and no frame twice."""
    whole = row(film, fps=30)
    assert len(whole[0]) == 300
    ffmpeg.kill(FRAMES, 299 * FRAME + 5)
    assert row(film, fps=30) == whole


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "PAUSE_S", 0.01)


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
                self._stop.wait(self._random.uniform(0, 0.25))
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
