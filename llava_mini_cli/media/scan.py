"""Reads a video's header and the timestamp of every frame through ffmpeg, before anything is decoded.

Demultiplexing alone costs about a second for an hour of video. Where the packets do not tell when frames are shown
(AVI, raw streams, VP8 with its hidden frames) the stream is decoded once for its timestamps. Knows nothing of pixels.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import ffmpeg  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import PASSING_KINDS, MediaError, kind_of
from llava_mini_cli.media.bounds import FIRST_LOOK_BYTES, most_bytes, shortage
from llava_mini_cli.media.child import NOTES, Child, Command, StalledError
from llava_mini_cli.media.containers import WHITELIST
from llava_mini_cli.media.endings import SignalledError, ended, started, twice
from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary
from llava_mini_cli.media.first_look import FirstLook
from llava_mini_cli.media.packets import Packets
from llava_mini_cli.media.probe import Header, VideoStream, read_header
from llava_mini_cli.media.timeline import Timeline

Result = TypeVar("Result")


@dataclass(frozen=True)
class VideoScan:
    """Facts about a video that are known before a frame of it is decoded."""

    header: Header
    stream: VideoStream
    timeline: Timeline
    keys: NDArray[np.int64]  # [m] timestamps of the key frames, ticks; empty when not known
    oddities: tuple[str, ...]  # why frames cannot be found by counting packets; empty for a plain file
    end_s: float = 0.0  # when the last packet ends, by its own word, from the file's first moment; 0: not told
    failure: str | None = None  # why the file was not read to its end; None: it was


# A medium sees itself: no format that reads other files, no protocol but that of the file. The protocol is `file`, not
# `fd` with a descriptor that is handed down: ffmpeg knows that since version 6 only, and some formats (raw streams) are
# told by their names, which it would not see. The kernel keeps the child from all other files, besides.
_ALONE = {"protocol_whitelist": "file", "format_whitelist": WHITELIST}
_FILE = "file:PATH"  # stands for the file that is read while the command is put together


def ffmpeg_command(
    path: Path,
    output: dict[str, str | None],
    *,
    seek: int = 0,
    level: str = "info",
    stdin: bytes = b"",
    memory: int | None = FIRST_LOOK_BYTES,
) -> Command:
    """An ffmpeg run over one local file, writing to its stdout.

    Args:
        output: Options of the output; a value of None makes a bare flag.
        seek: Whole seconds from the beginning at which to begin.
        level: How much ffmpeg says on stderr; each line names its own level.
        memory: Bytes that it may take; None: any number.
    """
    opening = {**_ALONE, **({"ss": str(seek)} if seek else {})}
    run: Any = ffmpeg.input(_FILE, **opening)  # pyright: ignore
    run = ffmpeg.output(run, "pipe:1", **output)  # pyright: ignore
    run = run.global_args("-hide_banner", "-nostdin", "-nostats", "-loglevel", f"repeat+level+{level}")  # pyright: ignore
    argv = cast("list[str]", run.compile(cmd=ffmpeg_binary()))  # pyright: ignore
    # Put in here, since ffmpeg-python takes no name that is not UTF-8.
    named = [f"file:{path.absolute()}" if word == _FILE else word for word in argv]
    return Command(named, stdin, reads=(path,), memory=memory, alone=True)


_VIDEO_ONLY: dict[str, str | None] = {"an": None, "sn": None, "dn": None}


def header_of(path: Path, timeout: float) -> Header:
    """The file's header alone. Raises `MediaError`."""
    command = ffmpeg_command(path, {**_VIDEO_ONLY, "c": "copy", "t": "0", "f": "null"})
    return _opened(_run(command, timeout, lambda _: None).said)


def scan(path: Path, timeout: float) -> VideoScan:
    """Header and timestamps. Raises `MediaError`, of kind timeout if ffmpeg is silent for `timeout` seconds."""
    command = ffmpeg_command(path, {**_VIDEO_ONLY, "c": "copy", "f": "framecrc"})
    listed = _run(command, timeout, lambda child: Packets.read(_lines(child, FirstLook(path))))
    packets, header = listed.given, _opened(listed.said)
    stream = header.stream()
    if not stream.width * stream.height:
        raise _no_medium()
    if stream.codec == "none":
        raise MediaError("unsupported_codec", "the video's codec is not known to ffmpeg")
    oddities, failure = packets.oddities(stream.codec), listed.failure
    timeline = packets.timeline() if packets.countable(stream.codec) else None
    if timeline is None:  # also where no packet is listed: ffmpeg copies none before the first key frame
        decoded = _decoded_timeline(path, stream, packets.time_base, timeout)
        timeline, failure = decoded.given, failure or decoded.failure
    if timeline is None:
        raise _no_frames(header, bool(packets.pts), listed.failure)
    return VideoScan(header, stream, timeline, packets.keys(), oddities, packets.end_s(), failure)


def timestamps_as_notes(time_base: Fraction) -> dict[str, str | None]:
    """Options of an output that make ffmpeg note each frame's timestamp, in ticks of `time_base`, one a line."""
    return {
        "fps_mode": "passthrough",
        "enc_time_base": f"{time_base.numerator}/{time_base.denominator}",
        "stats_enc_pre": NOTES,
        "stats_enc_pre_fmt": "{pts}",
    }


def _decoded_timeline(path: Path, stream: VideoStream, time_base: Fraction, timeout: float) -> "_Run[Timeline | None]":
    options: dict[str, str | None] = {
        "map": f"0:{stream.index}",
        "c:v": "wrapped_avframe",
        "f": "null",
        **timestamps_as_notes(time_base),
    }
    memory = most_bytes(stream.width * stream.height, deep=stream.is_deep, toned=False)

    def read(child: Child) -> Timeline | None:
        times: list[int] = []
        look = FirstLook(path)
        while (note := child.read_note()) is not None:
            child.expect()
            look.goes_on(1)
            times.append(int(note))
        if not times:
            return None
        pts = np.unique(np.array(times, np.int64))
        step = int(np.median(np.diff(pts))) if len(pts) > 1 else 0
        return Timeline(pts, time_base, step)

    return _run(ffmpeg_command(path, options, memory=memory), timeout, read)


def _lines(child: Child, look: FirstLook) -> Iterator[bytes]:
    rest = b""
    while data := child.read_some():
        child.expect()
        *lines, rest = (rest + data).split(b"\n")
        look.goes_on(len(lines))
        yield from lines


@dataclass(frozen=True)
class _Run(Generic[Result]):
    """A run of ffmpeg that has come to its own end."""

    given: Result
    said: list[str]
    failure: str | None  # how it ended, where that was not well


def _run(command: Command, timeout: float, read: Callable[[Child], Result]) -> _Run[Result]:
    """What `read` makes of a run of ffmpeg, of a second one if the first is killed. Raises `MediaError`."""

    def once() -> _Run[Result]:
        with closing(started(command, timeout)) as child:
            try:
                given = read(child)
                status = ended(child)
            except (StalledError, SignalledError) as error:
                raise shortage(child.said, child.memory) or error from None
            if status != 0 and (short := shortage(child.said, child.memory)) is not None:
                raise short
        complaints = read_header(child.said).complaints
        failure = f"ffmpeg gave up with status {status}{because(complaints[-1:])}" if status else None
        return _Run(given, child.said, failure)

    try:
        return twice(once)
    except StalledError:
        reason = f"the file gave nothing for {timeout:g} s while its frames were being counted"
        raise MediaError("timeout", reason) from None


def _no_frames(header: Header, has_packets: bool, failure: str | None) -> MediaError:
    if has_packets:
        return MediaError("corrupt", f"no frame could be decoded{because(header.complaints)}")
    if header.complaints:
        return MediaError("truncated", f"the video ends before its first frame{because(header.complaints)}")
    if failure is not None:
        return MediaError("corrupt", failure)
    return MediaError("empty", "the video stream holds no frame")


def _opened(said: list[str]) -> Header:
    """The header of a file that ffmpeg could open. Raises `MediaError` where it could not, or is no video."""
    header = read_header(said)
    if not header.container:
        raise _open_error(header, said)
    return header


def _no_medium() -> MediaError:
    return MediaError("unreadable", "neither a picture nor a video in any known format")


def _open_error(header: Header, said: list[str]) -> MediaError:
    """The error for a file that ffmpeg could not open, told from its words."""
    text = "\n".join(said)
    guessed = "misdetection possible" in text  # nothing in the file but its name says what it is
    if "moov atom not found" in text and not guessed:
        return MediaError("truncated", "the file is cut short: its index (moov) is missing")
    if "Permission denied" in text:
        return MediaError("unreadable", "permission denied")
    for number in errno.errorcode:
        kind = kind_of(OSError(number, ""))
        # Memory is left out: ffmpeg calls it that, too, when a file asks for absurdly much of it.
        if kind in PASSING_KINDS and kind != "out_of_memory" and os.strerror(number) in text:
            return MediaError(kind, f"{os.strerror(number).lower()} while reading")
    if "Format not on whitelist" in text:
        return MediaError("unreadable", "not a picture or video of a kind that is opened")
    if "Invalid data found" in text or guessed:
        return _no_medium()
    return MediaError("unreadable", f"cannot be opened{because(header.complaints)}")


def because(complaints: tuple[str, ...]) -> str:
    """The first complaint of a decoder, without its addresses, as the end of a sentence."""
    return f" ({clean(complaints[0])})" if complaints else ""


def clean(complaint: str) -> str:
    """One line of ffmpeg without the `[name @ 0x1234]` that begins it."""
    while complaint.startswith("[") and "]" in complaint:
        complaint = complaint.partition("]")[2].strip()
    return complaint.rstrip(". ") or "no reason given"
