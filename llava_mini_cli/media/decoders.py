"""The two decoders of video frames, each a child process that writes the asked frames to a pipe.

A decoder is two functions: the command that decodes a plan, and the reading of what it writes. Both give the same
frames: chosen by timestamp, upright, RGB, squashed to a square by nearest-neighbour sampling of the full-size frame.
Knows nothing of threads, queues or retries.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import UsageError, first_line
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.child import MORE_NOTES, Child, Command, StalledError, python_command
from llava_mini_cli.media.endings import ended
from llava_mini_cli.media.scan import clean, ffmpeg_command, timestamps_as_notes

Name = Literal["decord", "ffmpeg"]
Pixels = NDArray[np.uint8]

_HEARTBEAT = 900  # frames after which ffmpeg gives one that nobody asked for, to show that it is alive
_IMPORT_S = 60  # seconds that a process has for importing decord
_SOON_S = 1.0  # in which an ffmpeg that was told to end does so
_DECORD_THREADS = 2  # 0 (automatic) fails on some VP9 files
_SCORE = re.compile(r"lavfi\.scd\.score=([\d.]+)")
_SCORED_FRAME = re.compile(r"frame:\d+ +pts:(-?\d+) ")
# Each frame beside the one before it, at a few thousand of its points in RGB: mean change of colours, in hundredths, or
# how much it differs from the change before, whichever is less. A cut changes once, what moves goes on changing.
_SCORES = (
    "scale=128:72:flags=neighbor,format=rgb24,scdet=t=100,"
    f"metadata=print:key=lavfi.scd.score:file='pipe\\:{MORE_NOTES}':direct=1,nullsink"
)
_SCORES_EVERY_S = 0.02  # a look at each by itself would cost more than all that ffmpeg does for it
_SEEK_FRAMES = 600  # decoding so many frames for nothing costs more than starting ffmpeg anew behind them


@dataclass(frozen=True)
class Plan:
    """The frames that a decoder is asked for, each once."""

    path: Path
    stream: int  # among all streams of the file
    width: int  # pixels of the upright frame
    height: int
    frame_size: int  # edge of the square to which frames are squashed
    time_base: Fraction  # seconds a tick
    pts: tuple[int, ...]  # [k] ticks, strictly increasing
    indices: tuple[int, ...]  # [k] positions of these frames among all
    total: int  # frames of the stream
    timeline: NDArray[np.int64]  # [total] ticks
    keys: NDArray[np.int64]  # [m] ticks of the frames at which decoding can begin; empty where seeking is not exact
    filters: tuple[str, ...] = ()  # ffmpeg's, between choosing frames and making RGB of them
    seek: int = 0  # whole seconds after which decoding begins; ffmpeg counts time from there
    memory: int | None = None  # bytes that a decoder may take; None: any number
    scored: Callable[[int, float], None] | None = None  # takes ticks and score of every frame; None: nobody wants them
    since: int | None = None  # ticks from which on scores are wanted; None: from some frame before the first
    until: int | None = None  # ticks of the first frame whose score is not wanted; None: those of all are

    def seconds(self, pts: int) -> float:
        """When a frame is shown, from the first frame on; the very number of `Timeline.seconds`."""
        return (pts - int(self.timeline[0])) * self.time_base.numerator / self.time_base.denominator

    def rest(self, given: int) -> "Plan":
        """The plan without its first `given` frames."""
        return self.part(given, len(self.pts))

    def part(self, first: int, last: int) -> "Plan":
        """The plan for the frames from number `first` up to, but without, number `last`."""
        return replace(self, pts=self.pts[first:last], indices=self.indices[first:last])


class DecoderError(Exception):
    """A decoder ended early or gave something else than it was asked for; the text is one line."""


@dataclass(frozen=True)
class Decoder:
    """A decoder: how it is run and read. Tests put others in the place of `DECODERS`."""

    parts: Callable[[Plan], list[Plan]]  # each is one run of the command
    command: Callable[[Plan], Command]
    # Gives (pts, [frame_size, frame_size, 3]) in time order; raises `DecoderError`, or `SignalledError` of the child.
    read: Callable[[Child, Plan], Iterator[tuple[int, Pixels]]]


def _ffmpeg_parts(plan: Plan) -> list[Plan]:
    """Cuts a plan where frames lie so far apart that seeking is cheaper than decoding what lies between."""
    if not len(plan.keys) or plan.time_base.numerator != 1 or plan.timeline[0] < 0:
        return [plan]
    target = np.searchsorted(plan.timeline, plan.pts)
    keys = np.maximum(np.searchsorted(plan.keys, plan.pts, side="right") - 1, 0)
    begin = np.searchsorted(plan.timeline, plan.keys)[keys]  # where decoding has to begin for each frame
    previous = np.concatenate(([0], target[:-1]))
    cuts = [0, *(np.flatnonzero(begin[1:] - previous[1:] > _SEEK_FRAMES) + 1).tolist(), len(plan.pts)]
    parts = [plan.part(first, last) for first, last in pairwise(cuts)]
    return [
        replace(part, seek=_seek(part) if begin[cut] > _SEEK_FRAMES else 0)
        for part, cut in zip(parts, cuts[:-1], strict=True)
    ]


def _seek(part: Plan) -> int:
    first = part.pts[0] if part.since is None else min(part.since, part.pts[0])
    return max(0, int(first * part.time_base) - 1)


def _ffmpeg_decode(plan: Plan) -> Command:
    base = f"{plan.time_base.numerator}/{plan.time_base.denominator}"
    offset = _offset(plan)
    chosen = _choose([pts - offset for pts in _with_heartbeats(plan)])
    scores = "" if plan.scored is None else f"split[kept][scored];[scored]{_SCORES};[kept]"
    steps = [f"settb={base}", f"{scores}select='{chosen}'", *plan.filters, f"scale={plan.width}:{plan.height}"]
    options: dict[str, str | None] = {
        "map": f"0:{plan.stream}",
        "/filter:v": "/dev/stdin",
        "f": "rawvideo",
        "pix_fmt": "rgb24",
        "threads": "1",  # of the "encoder" that only copies: with more, each frame would wait for later ones
        "flush_packets": "1",  # or the end of each frame would wait for the next one
        **timestamps_as_notes(plan.time_base),
    }
    steps_file = ",".join(steps).encode()
    return ffmpeg_command(plan.path, options, seek=plan.seek, level="error", stdin=steps_file, memory=plan.memory)


def _offset(plan: Plan) -> int:
    """The ticks by which ffmpeg's clock is behind after seeking; whole seconds are whole ticks."""
    return plan.seek * plan.time_base.denominator


def _with_heartbeats(plan: Plan) -> list[int]:
    first = int(np.searchsorted(plan.timeline, _offset(plan)))
    last = int(np.searchsorted(plan.timeline, plan.pts[-1]))
    return sorted({*plan.pts, *plan.timeline[first:last:_HEARTBEAT].tolist()})


def _choose(pts: list[int]) -> str:
    """An expression of ffmpeg's that is true for exactly these timestamps: a search tree, so 14 steps for 3 hours."""
    if len(pts) == 1:
        return f"eq(pts,{pts[0]})"
    middle = len(pts) // 2
    return f"if(lt(pts,{pts[middle]}),{_choose(pts[:middle])},{_choose(pts[middle:])})"


def _ffmpeg_read(child: Child, plan: Plan) -> Iterator[tuple[int, Pixels]]:
    rows, columns = nearest_index(plan.height, plan.frame_size), nearest_index(plan.width, plan.frame_size)
    frame = np.empty((plan.height, plan.width, 3), np.uint8)
    bytes_of_frame = frame.data.cast("B")
    wanted, given, scored = set(plan.pts), 0, 0
    child.expect()
    pause = 0.0 if plan.scored is None else _SCORES_EVERY_S
    while (note := child.read_note(pause)) is not None:
        if plan.scored is not None and (told := _SCORED_FRAME.match(note)):
            scored = int(told[1]) + _offset(plan)
            continue
        if plan.scored is not None and (score := _SCORE.match(note)):
            plan.scored(scored, float(score[1]))
            if plan.until is not None and scored >= plan.until and given == len(plan.pts):
                return None
            child.expect()
            continue
        if child.read_into(bytes_of_frame) < len(bytes_of_frame):
            break
        pts = int(note) + _offset(plan)
        if pts in wanted:
            yield pts, frame[rows][:, columns]
            given += 1
            if pts == plan.pts[-1] and plan.scored is None:  # what follows is not asked for
                return None if given == len(plan.pts) else _see_end(child)
        child.expect()
    status = ended(child)
    if status != 0:
        raise DecoderError(clean(child.said[0]) if child.said else f"ffmpeg ended with status {status}")


def _see_end(child: Child) -> None:
    """Looks how ffmpeg ended, if it does soon: frames are missing. Raises `SignalledError`."""
    child.timeout = min(child.timeout, _SOON_S)
    child.expect()
    with suppress(StalledError):
        ended(child)


def _in_one(plan: Plan) -> list[Plan]:
    return [plan]


def _decord_decode(plan: Plan) -> Command:
    asked = {
        "path": str(plan.path.absolute()),
        "threads": _DECORD_THREADS,
        "total": plan.total,
        "frame_size": plan.frame_size,
        "height": plan.height,
        "width": plan.width,
        "tick": float(plan.time_base),
        "origin": int(plan.timeline[0]),
        "pts": plan.pts,
        "indices": plan.indices,
    }
    module = "llava_mini_cli.media.decord_child"
    # decord keeps all packets that it read, and it reads the whole file to count them.
    memory = None if plan.memory is None else plan.memory + _size(plan.path)
    return python_command(module, stdin=json.dumps(asked).encode(), reads=(plan.path,), memory=memory)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # decord says why
        return 0


def _decord_read(child: Child, plan: Plan) -> Iterator[tuple[int, Pixels]]:
    child.expect()
    for pts in plan.pts:
        pixels = np.empty((plan.frame_size, plan.frame_size, 3), np.uint8)
        buffer = pixels.data.cast("B")
        if child.read_into(buffer) < len(buffer):
            status = ended(child)
            raise DecoderError(child.said[-1] if child.said else f"decord ended with status {status}")
        yield pts, pixels
        child.expect()


DECODERS: Mapping[Name, Decoder] = {
    "decord": Decoder(_in_one, _decord_decode, _decord_read),
    "ffmpeg": Decoder(_ffmpeg_parts, _ffmpeg_decode, _ffmpeg_read),
}


def is_read_through(plan: Plan) -> bool:
    """True if ffmpeg decodes every frame from the first to the last of a plan; False if it leaps over some."""
    return len(_ffmpeg_parts(plan)) == 1


def check_decord() -> None:
    """Makes sure that decord works, by importing it as when it decodes: in a process of its own.

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    if not decord_installed():
        raise UsageError("--decoder decord: decord is not installed: python -m pip install decord")
    command = [sys.executable, "-c", "import decord"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_IMPORT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--decoder decord: decord cannot be imported: {first_line(error)}") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"])[-1]
        raise UsageError(f"--decoder decord: decord is installed and cannot be imported: {why}")


def decord_installed() -> bool:
    """True if decord is installed; does not import it."""
    return find_spec("decord") is not None
