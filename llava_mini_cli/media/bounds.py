"""How much memory a decoder may take, and the reason of a row whose decoder wanted more.

The bounds are such that no real file reaches them, whatever the number of processors (docs/decoding.md has what was
measured), so that a file that is made to grow ends its own decoder and nothing else. Knows nothing of processes.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_mini_cli.errors import MediaError

FIRST_LOOK_BYTES = 1 << 30  # of the process that reads a header and counts packets, before a frame's size is known

_PROCESS_BYTES = 64 << 20  # that the process of a decoder takes, about, without its frames
_FRAMES = 24  # full-size frames of 4:2:0 that a decoder keeps for reference and in its threads, about
_TONE_BYTES = 48  # that it takes for a pixel of a frame whose tones are mapped, in floats
_SLACK_BYTES = 256 << 20
_THREAD_BYTES = 8 << 20  # of each processor: stacks of the threads that decode and filter
_FRAME_BYTES, _DEEP_FRAME_BYTES = 3, 6  # of a pixel in 4:4:4, the most that is usual; deep: more than 8 bits a channel

# What ffmpeg, decord, Python, C++ and OpenBLAS say.
_NO_MEMORY = (
    "Cannot allocate memory",
    "Could not allocate memory",
    "MemoryError",
    "bad_alloc",
    "Memory allocation",
    "Out of memory",
    "get_buffer() failed",  # of a frame; for want of memory, unless the next is said
)
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NO_SUCH_FRAME = "image parameters invalid"


def usual_bytes(pixels: int, *, toned: bool) -> int:
    """The bytes that a decoder of frames of so many pixels takes, about, on two processors."""
    return _PROCESS_BYTES + (_FRAMES * 3 // 2 + (_TONE_BYTES if toned else 0)) * pixels


def most_bytes(pixels: int, *, deep: bool, toned: bool) -> int:
    """The bytes beyond which a decoder of such frames is refused more memory."""
    of_processor = _THREAD_BYTES + (_DEEP_FRAME_BYTES if deep else _FRAME_BYTES) * pixels
    return 2 * usual_bytes(pixels, toned=toned) + _SLACK_BYTES + (_processors() + 1) * of_processor


def shortage(said: Sequence[str], memory: int | None) -> MediaError | None:
    """The error for a decoder that said that it got no memory, None for one that said nothing of it.

    Args:
        memory: The bytes that it was allowed; None: any number.
    """
    text = "\n".join(said)
    if _NO_SUCH_FRAME in text or not any(sign in text for sign in _NO_MEMORY):
        return None
    if memory is None or sys.platform != "linux" or _memory_is_promised():
        return MediaError("out_of_memory", "there was no memory left for the decoder")
    return MediaError("too_large", f"decoding needs more than {memory >> 20} MiB of memory")


def _memory_is_promised() -> bool:
    """True where the kernel hands out no more memory than there is, so that a refusal may be for want of that."""
    try:
        return _OVERCOMMIT.read_text().strip() == "2"
    except OSError:
        return False


def _processors() -> int:
    """How many processors decoders take for their threads."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
