"""Pictures and animations as clips: what is opened, read and decoded of them happens in a process of its own.

Here a file is opened, its first bytes are compared with those of known formats, and the rest is asked for. A process
that crashes, hangs or takes too much memory is one picture's error.
"""

import fcntl
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import MediaError, MediaErrorKind, kind_of
from llava_mini_cli.media.child import KilledError
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.picture_head import HEAD, may_be_picture, webp_size
from llava_mini_cli.media.picture_messages import mapped
from llava_mini_cli.media.picture_pool import POOL, PicturePool
from llava_mini_cli.media.picture_process import MOST_BYTES, EndedError, PictureProcess, SilentError
from llava_mini_cli.media.timeline import Selection, Timeline
from llava_mini_cli.pieces import PieceLayout

OPEN_BYTES = 96 << 20  # that reading a header takes, beside the file, which some packages read whole
_CANVAS = 8  # bytes a pixel more for a WebP, whose decoder sets its two canvases aside while it is opened
Still = PieceLayout | int | None  # a still picture in pieces, with a longest edge, or as it is

_MILLISECOND = Fraction(1, 1000)
_GIB, _MIB = 1 << 30, 1 << 20
LEAST_BYTES, _STEP_BYTES = 128 << 20, 64 << 20  # of bounds


class Picture:
    """A picture that a process has opened."""

    def __init__(self, path: Path, file: int, timeout: float, pool: PicturePool = POOL) -> None:
        """Reads the header. `file`: a descriptor, which becomes this object's own. Raises `MediaError`."""
        self.path = path
        self._file = file
        self._timeout = timeout
        self._pool = pool
        self._process: PictureProcess | None = None
        self._was_killed = False
        try:
            self._header = self._open()
        except BaseException:
            self.close()
            raise

    @property
    def is_picture(self) -> bool:
        """False if the process found that it is none."""
        return bool(self._header)

    @property
    def is_moving(self) -> bool:
        """True for several frames that are shown one after the other."""
        return bool(self._header["moving"])

    @property
    def codec(self) -> str:
        """The name of the format, such as `jpeg`."""
        return str(self._header["format"]).lower()

    @property
    def pixels(self) -> int:
        """Of the whole picture, or of a frame."""
        return int(self._header["width"]) * int(self._header["height"])

    @property
    def decode_bytes(self) -> int:
        """The most memory that decoding takes in the process."""
        return int(self._header["bytes"])

    def check_memory(self) -> None:
        """Raises `MediaError` for a picture that would take more than one may."""
        if self.decode_bytes > MOST_BYTES:
            width, height, name = self._header["width"], self._header["height"], self._header["format"]
            article = "an" if name[:1] in "AIJ" and name not in ("JPEG", "JXL", "JPEG2000") else "a"
            raise _takes_too_much(f"decoding {article} {name} picture of {width}x{height} pixels", self.decode_bytes)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """While something else is waited for, another picture may be decoded in this one's place."""
        process = self._process
        if process is not None:
            process.since = None
        yield
        if process is not None:
            process.since = time.monotonic()

    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        reply = self._ask({"do": "size"}, self.decode_bytes)
        return int(reply["width"]), int(reply["height"])

    def still(self, allow_truncated: bool, still: Still) -> tuple[NDArray[np.uint8], tuple[int, int], str | None]:
        """Pixels `[height, width, 3]` or pieces `[parts, height, width, 3]`; width and height; what is missing."""
        request: dict[str, Any] = {"do": "still", "allow_truncated": allow_truncated}
        if isinstance(still, PieceLayout):
            request["layout"] = (still.shortest_edge, *still.crop, still.splits, still.pad)
            size = int(np.prod(still.shape))
        elif still is not None:
            request["edge"] = still
            size = 3 * still * still
        else:
            size = 3 * self.pixels
        reply, memory = self._ask_for_pixels(request, self.decode_bytes, size)
        shape = tuple(int(length) for length in reply["shape"])
        pixels = memory[: int(np.prod(shape))].reshape(shape)
        return pixels, (int(reply["width"]), int(reply["height"])), reply["warning"]

    def times(self) -> tuple[Timeline, tuple[int, int], str | None]:
        """When an animation's frames are shown; width and height; why later frames cannot be had."""
        reply = self._ask({"do": "times"}, self.decode_bytes)
        if self._process is not None:
            self._process.since = None  # its frames are asked for now and then
        timeline = Timeline(np.array(reply["starts"], np.int64), _MILLISECOND, int(reply["duration"]))
        return timeline, (int(reply["width"]), int(reply["height"])), reply["trouble"]

    def frames(self, indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Some frames of an animation, squashed: `[n, size, size, 3]`."""
        shape = len(indices), size, size, 3
        request = {"do": "frames", "indices": indices.tolist(), "size": size}
        _, memory = self._ask_for_pixels(request, self.decode_bytes, int(np.prod(shape)))
        return memory.reshape(shape)

    def close(self) -> None:
        """Gives the process back. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.tell({"do": "shut"})
            process.pictures += 1
            self._pool.give_back(process)
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _open(self) -> dict[str, Any]:
        width, height = webp_size(os.pread(self._file, HEAD, 0))
        canvas = _CANVAS * width * height
        if canvas and OPEN_BYTES + canvas > MOST_BYTES:
            raise _takes_too_much(f"opening a WEBP picture of {width}x{height} pixels", OPEN_BYTES + canvas)
        memory = min(OPEN_BYTES + canvas + 3 * os.fstat(self._file).st_size, MOST_BYTES)
        return self._ask({"do": "open", "suffix": self.path.suffix}, memory)

    def _ask_for_pixels(
        self, request: Mapping[str, Any], memory: int, size: int
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        try:
            shared = _shared_memory(size)
        except OSError as error:
            raise _system(error) from None
        try:
            reply = self._ask(request, memory, shared)
            return reply, np.frombuffer(mapped(shared, size), np.uint8)
        except OSError as error:
            raise _system(error) from None
        finally:
            os.close(shared)

    def _ask(self, request: Mapping[str, Any], memory: int, shared: int | None = None) -> dict[str, Any]:
        """A reply that is no error. A process that was ended from outside is replaced, and asked, once."""
        try:
            is_new = self._process is None
            if self._process is None:
                self._process = self._pool.take()
            if is_new and request["do"] != "open":
                self._open()
            files = [self._file] if request["do"] == "open" else [] if shared is None else [shared]
            memory = _rounded(memory)
            reply = self._process.ask(request, self._timeout, files, memory)
        except SilentError:
            raise self._lost("timeout", f"the picture could not be read within {self._timeout:g} s") from None
        except KilledError:
            raise self._lost("decoder_killed", "its decoder was ended with the run") from None
        except EndedError as error:
            if not error.is_from_outside:
                raise self._lost("corrupt", f"the decoder crashed ({error})") from None
            if self._was_killed:
                raise self._lost("decoder_killed", f"its decoder was ended from outside, twice ({error})") from None
            self._was_killed = True
            self._let_go()
            return self._ask(request, memory, shared)
        except OSError as error:
            raise _system(error) from None
        return self._checked(reply, memory)

    def _checked(self, reply: dict[str, Any], memory: int) -> dict[str, Any]:
        if "error" in reply:
            kind, text = reply["error"]
            raise MediaError(cast(MediaErrorKind, kind), str(text))
        if "memory" in reply:
            assert self._process is not None
            has_too_much = bool(reply["memory"]) or self._process.grown() > memory // 2
            self._process.kill()  # whose memory is in pieces
            if has_too_much:
                bound = f"{memory / _MIB:.0f} MiB"
                raise self._lost("too_large", f"decoding took more memory than the {bound} that such a picture takes")
            raise self._lost("out_of_memory", "there was no memory left for decoding the picture")
        if "mistake" in reply:
            raise RuntimeError(reply["mistake"])
        return reply

    def _lost(self, kind: MediaErrorKind, text: str) -> MediaError:
        self._let_go()
        return MediaError(kind, text)

    def _let_go(self) -> None:
        """Gives a dead process back."""
        process, self._process = self._process, None
        if process is not None:
            self._pool.give_back(process)


def _rounded(memory: int) -> int:
    """The bound for what takes so much memory: one for all small pictures, so that it need not be set for each."""
    return max(LEAST_BYTES, -(-memory // _STEP_BYTES) * _STEP_BYTES)


def _takes_too_much(what: str, memory: int) -> MediaError:
    """The error for what would take more memory than one picture may."""
    takes = f"{what} takes {memory / _GIB:.1f} GiB"
    return MediaError("too_large", f"{takes}; one picture may take {MOST_BYTES // _GIB} GiB")


def _system(error: OSError) -> MediaError:
    """The system's refusal of a process, a descriptor or memory for decoding."""
    return MediaError(kind_of(error), f"the picture cannot be decoded now: {(error.strerror or str(error)).lower()}")


def _shared_memory(size: int) -> int:
    """A descriptor of memory that two processes can map, and whose size neither can change."""
    if sys.platform == "linux":
        memory = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return memory
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), size)
        return os.dup(file.fileno())


def open_picture_file(path: Path, timeout: float, opened: Callable[[], None] | None = None) -> Picture | None:
    """The picture in a file, opened by a process; None for a file that ffmpeg has to look at.

    Args:
        timeout: seconds for which the process may be silent.
        opened: is called once the file is open, which takes as long as its disk takes.

    Raises:
        MediaError: it is neither, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError("unreadable", "is a directory")
        if not stat.S_ISREG(mode):
            return None  # a pipe or a device: opening it here could wait for ever, so a child does
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have become a pipe just now
        try:
            head = os.pread(file, HEAD, 0) if stat.S_ISREG(os.fstat(file).st_mode) else b"?"
        except BaseException:
            os.close(file)
            raise
    except FileNotFoundError:
        raise MediaError("not_found", "no such file") from None
    except PermissionError:
        raise MediaError("unreadable", "permission denied") from None
    except ValueError:  # such as one with a NUL byte
        raise MediaError("not_found", "no file can have this name") from None
    except OSError as error:
        raise MediaError(kind_of(error), (error.strerror or str(error)).lower()) from None
    if opened is not None:
        opened()
    if not may_be_picture(head):
        os.close(file)
        if not head:
            raise MediaError("empty", "the file is empty")
        return None
    picture = Picture(path, file, timeout)
    if picture.is_picture:
        return picture
    picture.close()
    return None


class PictureClip(Clip):
    """One still picture; a `Clip` whose only chunk is `[1, height, width, 3]`, or `[1, parts, height, width, 3]`."""

    def __init__(self, info: ClipInfo, pixels: NDArray[np.uint8], warning: str | None) -> None:
        self.info = info
        self.warnings: list[str] = [] if warning is None else [warning]
        self._pixels: NDArray[np.uint8] | None = pixels

    def __iter__(self) -> Iterator[FrameChunk]:
        if self._pixels is not None:
            yield FrameChunk(self._pixels[None], np.zeros(1))

    def close(self) -> None:
        """Lets go of the pixels."""
        self._pixels = None


class AnimationClip(Clip):
    """The sampled frames of an animation, squashed like those of a video; a `Clip` that keeps its process."""

    def __init__(
        self, info: ClipInfo, picture: Picture, selection: Selection, frame_size: int, chunk_frames: int
    ) -> None:
        self.info = info
        self.warnings: list[str] = []
        self._picture = picture
        self._selection = selection
        self._frame_size = frame_size
        self._chunk_frames = chunk_frames

    def __iter__(self) -> Iterator[FrameChunk]:
        for begin in range(0, len(self._selection), self._chunk_frames):
            part = slice(begin, begin + self._chunk_frames)
            pixels = self._picture.frames(self._selection.indices[part], self._frame_size)
            yield FrameChunk(pixels, self._selection.times[part])
        self.close()

    def close(self) -> None:
        """Lets go of the process."""
        self._picture.close()
