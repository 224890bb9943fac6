"""The process that decodes pictures: one after the other, from descriptors that it is handed, into shared memory.

    python -P -m llava_mini_cli.media.picture_worker SOCKET

SOCKET is an inherited descriptor, over which requests come and replies go; `Desk` says which. Opens no file, imports
Pillow and numpy only, and packages for HEIF and JPEG XL when a picture needs them. Ends when its asker does.
"""

import gc
import io
import mmap
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices, and threads take memory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.image import (
    BROKEN,
    Upright,
    animation_times,
    broken,
    is_animation,
    open_picture,
    upright_size,
    write_frames,
)
from llava_mini_cli.media.picture_bytes import decode_bytes
from llava_mini_cli.media.picture_messages import mapped, receive, send
from llava_mini_cli.media.png_text import Excerpt
from llava_mini_cli.media.still import decode
from llava_mini_cli.pieces import PieceLayout, pieces, resized

Reply = dict[str, Any]


class Desk:
    """The picture that is open, and what can be asked about it: each method whose name is a request's `do`."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._file: int | None = None
        self._suffix = ""
        self._picture: Image.Image | None = None

    def open(self, request: Reply, descriptors: list[int]) -> Reply:
        """`suffix`, with the file -> `format`, size as stored, `moving`, `bytes` for decoding; nothing: no picture."""
        self.close()
        (self._file,) = descriptors
        self._suffix = str(request["suffix"])
        self._picture = open_picture(self._open_file(), self._suffix)
        if self._picture is None:
            return {}
        is_moving = is_animation(self._picture)
        size = decode_bytes(self._picture, os.fstat(self._file).st_size, is_moving)
        width, height, name = *self._picture.size, self._picture.format or ""
        return {"format": name, "width": width, "height": height, "moving": is_moving, "bytes": size}

    def size(self, request: Reply, descriptors: list[int]) -> Reply:
        """-> `width` and `height` as displayed."""
        width, height = upright_size(self._opened())
        return {"width": width, "height": height}

    def still(self, request: Reply, descriptors: list[int]) -> Reply:
        """`allow_truncated`, `layout` or `edge` or neither, with memory -> `shape` of what was written there, size."""
        picture, warning = decode(self._opened(), self._open_file, self._suffix, bool(request["allow_truncated"]))
        self._picture = picture
        try:
            upright = Upright(picture)
            shape = self._write(upright, request, descriptors[0])
        except BROKEN as error:
            raise broken(error) from None
        return {"shape": shape, "width": upright.width, "height": upright.height, "warning": warning}

    def times(self, request: Reply, descriptors: list[int]) -> Reply:
        """-> `starts` of an animation's frames and `duration` of the last, ms; `trouble`; size as displayed."""
        width, height = upright_size(self._opened())
        starts, duration, trouble = animation_times(self._opened(), self._alive)
        return {"starts": starts, "duration": duration, "trouble": trouble, "width": width, "height": height}

    def frames(self, request: Reply, descriptors: list[int]) -> Reply:
        """`indices`, `size`, with memory -> nothing; the frames are written there."""
        indices, size = request["indices"], int(request["size"])
        pixels = _mapped(descriptors[0], (len(indices), size, size, 3))
        write_frames(self._opened(), indices, pixels, self._alive)
        return {}

    def close(self) -> None:
        """Lets go of the picture."""
        if self._picture is not None:
            self._picture.close()
            self._picture = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> Image.Image:
        assert self._picture is not None
        return self._picture

    def _open_file(self) -> IO[bytes]:
        assert self._file is not None
        whole = [(0, os.fstat(self._file).st_size)]
        return io.BufferedReader(Excerpt(self._file, whole), 1 << 16)  # with a position of its own

    def _write(self, upright: Upright, request: Reply, memory: int) -> tuple[int, ...]:
        """Writes pieces, a small picture or the whole one; gives the shape."""
        layout, edge = request.get("layout"), request.get("edge")
        if layout is not None:
            made = pieces(upright, PieceLayout(layout[0], (layout[1], layout[2]), layout[3], layout[4]))
        elif edge is not None:
            scale = edge / max(upright.width, upright.height)
            height, width = (max(1, round(length * scale)) for length in (upright.height, upright.width))
            made = resized(upright, height, width)
        else:
            shape = upright.height, upright.width, 3
            upright.write(_mapped(memory, shape))
            return shape
        _mapped(memory, made.shape)[...] = made
        return made.shape


def _mapped(memory: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Shared memory as an array, which keeps it mapped."""
    return np.frombuffer(mapped(memory, int(np.prod(shape))), np.uint8).reshape(shape)


def _reply(desk: Desk, request: Reply, descriptors: list[int]) -> Reply:
    """What is answered to a request, errors included."""
    try:
        return getattr(desk, request["do"])(request, descriptors)
    except MediaError as error:
        return {"error": [error.kind, str(error)]}
    except MemoryError:
        pass  # what the exception holds goes with it
    except Exception as error:  # noqa: BLE001 - a mistake of ours about one picture must not stop the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"mistake": f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"}
    desk.close()
    gc.collect()
    return {"memory": _is_there(int(request["memory"]))}


def _is_there(size: int) -> bool:
    """True if so many bytes can be had, now that those of the picture were given back."""
    try:
        mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def serve(channel: socket.socket) -> None:
    """Answers requests until there are no more."""
    desk = Desk(lambda: send(channel, {"alive": True}))
    send(channel, {"ready": True})
    while (received := receive(channel)) is not None:
        request, descriptors = received
        if request["do"] == "shut":  # which nobody waits for
            desk.close()
            continue
        reply = _reply(desk, request, descriptors)
        if request["do"] != "open":
            for descriptor in descriptors:
                os.close(descriptor)
        send(channel, reply)


def main() -> None:
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # nobody waits for the answer
        sys.exit(0)
