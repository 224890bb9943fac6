"""The packets of a video, as ffmpeg lists them without decoding: when frames are shown, and how sure that is.

Reads text only: runs nothing and knows nothing of pixels.
"""

from array import array
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.media.timeline import Timeline

_KEY, _DISCARD = 0x1, 0x4  # packet flags of libavcodec
_UNSET = -(1 << 63)  # its "no timestamp"
_HIDDEN_FRAMES = frozenset({"vp8", "jpegxl_anim"})  # codecs whose packets need not be single frames that are shown


class Packets:
    """The packets of one stream, in decoding order."""

    def __init__(self) -> None:
        self.time_base = Fraction(1)
        self.pts, self.durations, self.flags = array("q"), array("q"), array("q")

    @classmethod
    def read(cls, lines: Iterator[bytes]) -> "Packets":
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
