"""The contents of a video file, as ffmpeg's own banner tells them: container, streams, size, rotation, duration.

Reads text only: runs nothing and knows nothing of frames.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from llava_mini_cli.errors import MediaError

MAX_FRAME_PIXELS = 8192 * 8192  # a frame of 200 MB as RGB; beyond that a file is an attack or an accident

_OBLONG = 20  # no pixel is so much wider than high, or higher than wide: whoever says so is wrong
_MATROSKA = "matroska,webm"
_INPUT = re.compile(r"Input #0, ([\w,]+), from")
_DURATION = re.compile(r"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)")
_START = re.compile(r", start:? (-?\d+(?:\.\d+)?)")
_STREAM = re.compile(r"Stream #0:(\d+)\S*: (Video|Audio|Subtitle|Data|Attachment)(?:: (\w+))?")
_SIZE = re.compile(r", (\d+)x(\d+)[ ,\n]")
_PIXEL = re.compile(r"SAR (\d+):(\d+)")  # width to height; the last one is the container's and counts
_DEEP = re.compile(r", \w+?(?:9|1[0-6])(?:le|be)\b")  # a pixel format such as yuv420p10le
_COLOURS = re.compile(r"[(, ]([\w-]+)/([\w-]+)/([\w-]+)[,)]")  # matrix, primaries, transfer function, where they differ
_DOLBY_ONLY = re.compile(r"DOVI configuration record: .*profile: (?:5|10|20),.*compatibility id: 0\b")
_ROTATION = re.compile(r"rotation of (-?[\d.]+|-?nan) degrees")
_MAPPED = re.compile(r"Stream #0:(\d+) -> #0:0")
_OUTPUT = re.compile(r"^Output #0")
_LEVEL = re.compile(r"\[(info|warning|error|fatal|panic|verbose)\] ")


@dataclass(frozen=True)
class VideoStream:
    """One video stream of a file."""

    index: int  # among all streams of the file
    codec: str  # ffmpeg's name: h264, hevc, vp9, ...
    width: int  # pixels, as coded (before rotation); 0 when unknown
    height: int
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel as coded to its height
    rotation: float | None = None  # degrees of the display matrix (which may also mirror); None: no matrix
    is_deep: bool = False  # more than 8 bits a channel
    is_cover: bool = False  # a picture attached to a sound file
    start_s: float | None = None  # of its first frame, on the file's clock; None: not told
    matrix: str = "unknown"  # ffmpeg's names: bt2020nc, ...
    primaries: str = "unknown"
    transfer: str = "unknown"  # smpte2084 and arib-std-b67 are high dynamic range
    is_dolby_only: bool = False  # Dolby Vision whose pixels mean nothing to others


@dataclass(frozen=True)
class Header:
    """The banner's facts about a file."""

    container: str  # ffmpeg's names, such as "mov,mp4,m4a,3gp,3g2,mj2"
    duration_s: float | None  # from the file's first moment to its last
    videos: tuple[VideoStream, ...]
    stream_count: int
    mapped: int | None  # the stream that ffmpeg chose, where it was asked to choose
    complaints: tuple[str, ...]  # error lines
    start_s: float = 0.0  # the file's first moment, on its own clock

    def stream(self) -> VideoStream:
        """The stream that ffmpeg chose, or the largest. Raises `MediaError` when there is none to look at."""
        moving = [video for video in self.videos if not video.is_cover]
        if not moving:
            raise MediaError("no_video", "no video stream" + (", only sound" if self.stream_count else ""))
        chosen = [video for video in moving if video.index == self.mapped]
        stream = (chosen or sorted(moving, key=lambda video: -video.width * video.height))[0]
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            raise MediaError("too_large", f"frames of {stream.width}x{stream.height} pixels are too large to decode")
        return stream


def length(header: Header, stream: VideoStream) -> float | None:
    """Seconds for which a stream is shown, as far as the header tells: one may begin later than its file."""
    late = 0.0 if stream.start_s is None else stream.start_s - header.start_s
    return header.duration_s if header.duration_s is None or late < 0 else max(header.duration_s - late, 0.0)


def stored_size(stream: VideoStream) -> tuple[int, int]:
    """Width and height of the upright frame in the pixels that are stored."""
    return (stream.height, stream.width) if _is_turned(stream) else (stream.width, stream.height)


def display_size(stream: VideoStream) -> tuple[int, int]:
    """Width and height of the upright frame as players show it, in square pixels: the coded width is stretched."""
    stretched = max(1, round(stream.width * stream.pixel_aspect)) if stream.width else 0
    return stored_size(replace(stream, width=stretched))


def _is_turned(stream: VideoStream) -> bool:
    return stream.rotation is not None and 45 < abs(stream.rotation) % 180 < 135


def read_header(lines: Iterable[str]) -> Header:
    """The header in the lines that ffmpeg wrote to stderr under `-loglevel level+info` (or without `level+`)."""
    container, duration, start, mapped, count = "", None, 0.0, None, 0
    videos: list[VideoStream] = []
    complaints: list[str] = []
    in_input, last_is_video = True, False
    for raw in lines:
        level = _LEVEL.search(raw)
        line = _LEVEL.sub("", raw, count=1)
        if level is not None and level[1] in ("error", "fatal", "panic"):
            complaints.append(line.strip())
        in_input = in_input and not _OUTPUT.match(line)
        if match := _INPUT.search(line):
            container = match[1]
        elif match := _DURATION.search(line):
            duration = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
            start = float(begin[1]) if (begin := _START.search(line)) else 0.0
        elif match := _MAPPED.search(line):
            mapped = int(match[1])
        elif in_input and (match := _STREAM.search(line)):
            count += 1
            last_is_video = match[2] == "Video"
            if last_is_video:
                videos.append(_video(int(match[1]), match[3] or "none", line))
        elif in_input and last_is_video and (match := _ROTATION.search(line)):
            videos[-1] = replace(videos[-1], rotation=0.0 if "nan" in match[1] else float(match[1]))
        elif in_input and last_is_video and _DOLBY_ONLY.search(line):
            videos[-1] = replace(videos[-1], is_dolby_only=True)
    if duration is not None and container == _MATROSKA and duration > start > 0:
        duration -= start  # what it calls its duration is when it ends, where others begin to count at their start
    return Header(container, duration, tuple(videos), count, mapped, tuple(complaints), start)


def _video(index: int, codec: str, line: str) -> VideoStream:
    size = _SIZE.search(line + "\n")
    width, height = (int(size[1]), int(size[2])) if size else (0, 0)
    deep, cover = _DEEP.search(line) is not None, "(attached pic)" in line
    start, colours = _START.search(line), _COLOURS.search(line)
    return VideoStream(
        index,
        codec,
        width,
        height,
        _pixel_aspect(line),
        is_deep=deep,
        is_cover=cover,
        start_s=None if start is None else float(start[1]),
        **({} if colours is None else dict(zip(("matrix", "primaries", "transfer"), colours.groups(), strict=True))),
    )


def _pixel_aspect(line: str) -> Fraction:
    width, height = map(int, (_PIXEL.findall(line) or [(1, 1)])[-1])
    aspect = Fraction(width, height) if width and height else Fraction(1)
    return aspect if 1 / _OBLONG < aspect < _OBLONG else Fraction(1)
