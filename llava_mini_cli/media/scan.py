"""Reads a video's header and the timestamp of every frame through ffmpeg, before anything is decoded.

Demultiplexing alone costs about a second for an hour of video. Where the packets do not tell when frames are shown
(AVI, raw streams, VP8 with its hidden frames) the stream is decoded once for its timestamps. Knows nothing of pixels.
"""

from array import array
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import ffmpeg  # pyright: ignore[reportMissingTypeStubs]
import imageio_ffmpeg  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import LlavaMiniError, MediaError
from llava_mini_cli.media.child import NOTES, Child, Command, StalledError
from llava_mini_cli.media.probe import Header, VideoStream, read_header
from llava_mini_cli.media.timeline import Timeline

_KEY, _DISCARD = 0x1, 0x4  # packet flags of libavcodec
_UNSET = -(1 << 63)  # its "no timestamp"
_NOT_VIDEO = frozenset({"tty", "concat", "hls", "lavfi"})  # formats that ffmpeg takes texts for
_HIDDEN_FRAMES = frozenset({"vp8", "jpegxl_anim"})  # codecs whose packets need not be single frames that are shown


@dataclass(frozen=True)
class VideoScan:
    """Facts about a video that are known before a frame of it is decoded."""

    header: Header
    stream: VideoStream
    timeline: Timeline
    keys: NDArray[np.int64]  # [m] timestamps of the key frames, ticks; empty when not known
    oddities: tuple[str, ...]  # why frames cannot be found by counting packets; empty for a plain file
    end_s: float = 0.0  # when the last packet ends, by its own word, from the file's first moment; 0: not told


_FILE = "file:PATH"  # stands for the file that is read while the command is put together


def ffmpeg_command(
    path: Path,
    output: dict[str, str | None],
    *,
    seek: int = 0,
    level: str = "info",
    stdin: bytes = b"",
) -> Command:
    """An ffmpeg run over one local file, writing to its stdout.

    Args:
        output: Options of the output; a value of None makes a bare flag.
        seek: Whole seconds from the beginning at which to begin.
        level: How much ffmpeg says on stderr; each line names its own level.
    """
    # Other protocols are closed to the file, so that a playlist in disguise opens nothing else.
    opening = {"protocol_whitelist": "file", **({"ss": str(seek)} if seek else {})}
    run: Any = ffmpeg.input(_FILE, **opening)  # pyright: ignore
    run = ffmpeg.output(run, "pipe:1", **output)  # pyright: ignore
    run = run.global_args("-hide_banner", "-nostdin", "-nostats", "-loglevel", f"repeat+level+{level}")  # pyright: ignore
    argv = cast("list[str]", run.compile(cmd=ffmpeg_binary()))  # pyright: ignore
    # Put in here, since ffmpeg-python takes no name that is not UTF-8.
    return Command([f"file:{path.absolute()}" if word == _FILE else word for word in argv], stdin, reads=(path,))


def ffmpeg_binary() -> str:
    """Absolute path of ffmpeg: the one of imageio-ffmpeg, or what IMAGEIO_FFMPEG_EXE names."""
    try:
        return str(Path(imageio_ffmpeg.get_ffmpeg_exe()).absolute())
    except RuntimeError as error:
        raise LlavaMiniError(f"there is no ffmpeg to decode videos with: {error}") from None


_VIDEO_ONLY: dict[str, str | None] = {"an": None, "sn": None, "dn": None}


def header_of(path: Path, timeout: float) -> Header:
    """The file's header alone. Raises `MediaError`."""
    with _running(ffmpeg_command(path, {**_VIDEO_ONLY, "c": "copy", "t": "0", "f": "null"}), timeout) as child:
        pass
    return _opened(child.said)


def scan(path: Path, timeout: float) -> VideoScan:
    """Header and timestamps. Raises `MediaError`, of kind timeout if ffmpeg is silent for `timeout` seconds."""
    with _running(ffmpeg_command(path, {**_VIDEO_ONLY, "c": "copy", "f": "framecrc"}), timeout) as child:
        packets = _Packets.read(_lines(child))
    header = _opened(child.said)
    stream = header.stream()
    if not stream.width * stream.height:  # what a picture's name alone gives, too
        raise _no_medium()
    if stream.codec == "none":
        raise MediaError("unsupported_codec", "the video's codec is not known to ffmpeg")
    oddities = packets.oddities(stream.codec)
    timeline = packets.timeline() if packets.countable(stream.codec) else None
    if timeline is None:
        timeline = _decoded_timeline(path, stream, packets.time_base, timeout)
    if timeline is None:
        raise _no_frames(header, bool(packets.pts))
    return VideoScan(header, stream, timeline, packets.keys(), oddities, packets.end_s())


class _Packets:
    """The packets of one stream, in decoding order."""

    def __init__(self) -> None:
        self.time_base = Fraction(1)
        self.pts, self.durations, self.flags = array("q"), array("q"), array("q")

    @classmethod
    def read(cls, lines: Iterator[bytes]) -> "_Packets":
        """Parses ffmpeg's framecrc format: `stream, dts, pts, duration, size, crc[, F=flags][, side data]`."""
        packets = cls()
        for line in lines:
            if line.startswith(b"#tb 0:"):
                packets.time_base = Fraction(line[6:].decode().strip())
            elif line.startswith(b"0,"):
                fields = line.split(b",", 7)
                flag = fields[6].strip() if len(fields) > 6 else b""
                packets.pts.append(int(fields[2]))
                packets.durations.append(int(fields[3]))
                packets.flags.append(int(flag[2:], 16) if flag.startswith(b"F=") else _KEY)
        return packets

    def countable(self, codec: str) -> bool:
        """True if each packet that is not discarded is one shown frame with a timestamp of its own."""
        shown = self._pts[self._shown]
        own = len(shown) > 0 and shown.min() != _UNSET and len(np.unique(shown)) == len(shown)
        return own and codec not in _HIDDEN_FRAMES

    def timeline(self) -> Timeline:
        """The shown frames; only where `countable`."""
        pts, durations = self._pts[self._shown], np.frombuffer(self.durations, np.int64)[self._shown]
        order = np.argsort(pts)
        return Timeline(pts[order], self.time_base, max(int(durations[order[-1]]), 0))

    def keys(self) -> NDArray[np.int64]:
        """Timestamps of the key frames that are shown, ascending."""
        keys = self._pts[self._shown & (self._flags & _KEY != 0)]
        return np.sort(keys[keys != _UNSET])

    def end_s(self) -> float:
        """When the last packet ends, seconds; 0 where packets do not tell."""
        timed = self._pts != _UNSET
        ends = self._pts[timed] + np.frombuffer(self.durations, np.int64)[timed]
        return float(int(ends.max(initial=0)) * self.time_base)

    def oddities(self, codec: str) -> tuple[str, ...]:
        """The reasons why a decoder that counts packets, or seeks by them, may give another frame than it should."""
        signs = {
            "packets without timestamps of their own": not self.countable(codec),
            "edit list": not self._shown.all(),
            "negative timestamps": bool((self._pts < 0).any()),
            "open groups of pictures": self._open_groups(),
        }
        return tuple(name for name, found in signs.items() if found)

    @property
    def _pts(self) -> NDArray[np.int64]:
        return np.frombuffer(self.pts, np.int64)

    @property
    def _flags(self) -> NDArray[np.int64]:
        return np.frombuffer(self.flags, np.int64)

    @property
    def _shown(self) -> NDArray[np.bool_]:
        return self._flags & _DISCARD == 0

    def _open_groups(self) -> bool:
        """True if a packet is shown before the key frame that it follows."""
        key = None
        for pts, flags in zip(self.pts, self.flags, strict=True):
            if flags & _KEY:
                key = pts
            elif key is not None and pts < key:
                return True
        return False


def timestamps_as_notes(time_base: Fraction) -> dict[str, str | None]:
    """Options of an output that make ffmpeg note each frame's timestamp, in ticks of `time_base`, one a line."""
    return {
        "fps_mode": "passthrough",
        "enc_time_base": f"{time_base.numerator}/{time_base.denominator}",
        "stats_enc_pre": NOTES,
        "stats_enc_pre_fmt": "{pts}",
    }


def _decoded_timeline(path: Path, stream: VideoStream, time_base: Fraction, timeout: float) -> Timeline | None:
    options: dict[str, str | None] = {
        "map": f"0:{stream.index}",
        "c:v": "wrapped_avframe",
        "f": "null",
        **timestamps_as_notes(time_base),
    }
    times: list[int] = []
    with _running(ffmpeg_command(path, options), timeout) as child:
        while (note := child.read_note()) is not None:
            child.expect()
            times.append(int(note))
    if not times:
        return None
    pts = np.unique(np.array(times, np.int64))
    step = int(np.median(np.diff(pts))) if len(pts) > 1 else 0
    return Timeline(pts, time_base, step)


def _lines(child: Child) -> Iterator[bytes]:
    rest = b""
    while data := child.read_some():
        child.expect()
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


@contextmanager
def _running(command: Command, timeout: float) -> Generator[Child]:
    """A run of ffmpeg, which has ended when the block is left. Raises `MediaError` where it stalls."""
    with closing(Child(command, timeout)) as child:
        try:
            yield child
            child.finish()
        except StalledError:
            reason = f"the file gave nothing for {timeout:g} s while its frames were being counted"
            raise MediaError("timeout", reason) from None


def _no_frames(header: Header, has_packets: bool) -> MediaError:
    if has_packets:
        return MediaError("corrupt", f"no frame could be decoded{because(header.complaints)}")
    if header.complaints:
        return MediaError("truncated", f"the video ends before its first frame{because(header.complaints)}")
    return MediaError("empty", "the video stream holds no frame")


def _opened(said: list[str]) -> Header:
    """The header of a file that ffmpeg could open. Raises `MediaError` where it could not, or is no video."""
    header = read_header(said)
    if not header.container:
        raise _open_error(header, said)
    if header.container in _NOT_VIDEO:
        raise _no_medium()
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
    if "Input/output error" in text:
        return MediaError("unreadable", "input/output error while reading")
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
