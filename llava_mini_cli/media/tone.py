"""High dynamic range (PQ, HLG) shown as the ordinary one, by ffmpeg's own filters.

Chooses filters and words only: knows which streams need them, and nothing of frames.
"""

import re
from contextlib import closing
from functools import cache
from pathlib import Path

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.child import Command, StalledError
from llava_mini_cli.media.endings import ended, started, twice
from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary
from llava_mini_cli.media.probe import VideoStream

_CURVES = {"smpte2084": "PQ", "arib-std-b67": "HLG"}  # ffmpeg's names of transfer functions
_CURVE_NUMBERS = {16: "PQ", 18: "HLG"}  # the same in ITU-T H.273, which pictures use
_COLOUR_BOX = re.compile(rb"colrnclx..(..)", re.DOTALL)  # of AVIF and HEIC: primaries, transfer function
_COLOUR_CHUNK = re.compile(rb"\x00\x00\x00\x04cICP.(.)", re.DOTALL)  # of PNG
_HEAD_BYTES = 1 << 16  # of a picture, in which these lie
_FILTERS = frozenset({"zscale", "tonemap", "setparams"})
# What zscale can take to linear light; what a file leaves open, or says beyond these, is taken as BT.2020.
_MATRICES = frozenset({"bt2020nc", "bt709", "smpte170m", "bt470bg", "ictcp", "ycgco", "gbr"})
_PRIMARIES = frozenset({"bt2020", "bt709", "smpte170m", "bt470bg", "smpte431", "smpte432"})
_WHITE = 203  # candela a square metre of a white sheet in HDR (ITU-R BT.2408): white in what comes out, about
_PEAK = 1000  # of the brightest that is told from white (the same report's display for HLG)
_LINEAR_TO = 0.5  # of a white sheet; what is darker stays as it is, what is brighter is compressed
_PATIENCE_S = 30.0  # with an ffmpeg that tells its filters
_UNMAPPED = "shown as if it were of ordinary range: the colours are pale"


def is_hdr(stream: VideoStream) -> bool:
    """True for a stream of high dynamic range: its transfer function is PQ or HLG."""
    return stream.transfer in _CURVES


def tone_mapping(stream: VideoStream) -> tuple[str, ...]:
    """The filters that make RGB of ordinary range (BT.709) of a stream; none if it has that, or ffmpeg lacks them."""
    if not is_hdr(stream) or not _FILTERS.issubset(_filters(ffmpeg_binary())):
        return ()
    matrix = stream.matrix if stream.matrix in _MATRICES else "bt2020nc"
    primaries = stream.primaries if stream.primaries in _PRIMARIES else "bt2020"
    return (
        f"setparams=color_trc={stream.transfer}:color_primaries={primaries}:colorspace={matrix}",
        "format=yuv444p12le|gbrp12le",  # zscale takes no odd edges with halved colour
        f"zscale=t=linear:npl={_WHITE}",
        "format=gbrpf32le",
        "zscale=p=bt709",
        f"tonemap=mobius:param={_LINEAR_TO}:desat=0:peak={_PEAK / _WHITE:.3f}",
        "zscale=t=bt709:m=gbr:r=pc",
        "format=gbrp",
    )


def doubt_of_colours(stream: VideoStream) -> str | None:
    """The reason why a stream's colours are not those that a display would show, None where there is none."""
    if stream.is_dolby_only:
        return "the colours are wrong: Dolby Vision without a layer that others can read"
    if is_hdr(stream) and not tone_mapping(stream):
        return f"{_CURVES[stream.transfer]} {_UNMAPPED}, since this ffmpeg has no zscale and tonemap filters"
    return None


def doubt_of_picture(path: Path) -> str | None:
    """The same for a picture or an animation in a file: Pillow maps no tones."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # whoever reads the pixels says so
        return None
    numbers = {int.from_bytes(match, "big") for match in _COLOUR_BOX.findall(head) + _COLOUR_CHUNK.findall(head)}
    if b"tmap" in head or not numbers or not numbers <= _CURVE_NUMBERS.keys():
        return None  # with "tmap" there is an ordinary picture, and what makes the other one of it
    return f"{_CURVE_NUMBERS[min(numbers)]} {_UNMAPPED}"


@cache
def _filters(ffmpeg: str) -> frozenset[str]:
    """The names of the filters that an ffmpeg has."""
    return twice(lambda: _told_filters(ffmpeg))


def _told_filters(ffmpeg: str) -> frozenset[str]:
    command = Command((ffmpeg, "-hide_banner", "-loglevel", "error", "-filters"))
    with closing(started(command, _PATIENCE_S)) as child:
        try:
            lines = b"".join(iter(child.read_some, b"")).decode("utf-8", "replace").splitlines()
            status = ended(child)
        except StalledError:
            raise MediaError("timeout", "ffmpeg did not tell which filters it has") from None
    if status != 0:
        raise MediaError("unreadable", f"ffmpeg did not tell which filters it has: it ended with status {status}")
    return frozenset(words[1] for words in map(str.split, lines) if len(words) > 2)
