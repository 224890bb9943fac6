"""Messages between the process that decodes pictures and the one that asks: JSON behind its length, with descriptors.

Pixels do not go this way, but through memory that both map.

Uses the standard library only. Trusts nothing that comes: what is too long, or is no object, is an error.
"""

import json
import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = struct.Struct(">I")
MOST_BYTES = 1 << 26  # of a message: a few million times at which frames are shown
_MOST_DESCRIPTORS = 2


class BrokenMessageError(Exception):
    """What came is no message; nothing that comes later can be understood."""


def mapped(memory: int, size: int) -> mmap.mmap:
    """Shared memory behind a descriptor, with its pages there at once where the system can do that."""
    return mmap.mmap(memory, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def send(channel: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Sends a message with copies of some descriptors. Raises `OSError` where nobody listens any more."""
    text = json.dumps(message, separators=(",", ":")).encode()
    head = _HEAD.pack(len(text))
    if descriptors:
        socket.send_fds(channel, [head], list(descriptors))
        channel.sendall(text)
    else:
        channel.sendall(head + text)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and the descriptors that came with it; None at the end.

    Raises:
        TimeoutError: of the socket. BrokenMessageError.
    """
    head, descriptors, _, _ = socket.recv_fds(channel, _HEAD.size, _MOST_DESCRIPTORS)
    try:
        if not head:
            return None
        head += _exactly(channel, _HEAD.size - len(head))
        (size,) = _HEAD.unpack(head)
        if size > MOST_BYTES:
            raise BrokenMessageError(f"a message of {size} bytes")
        message = json.loads(_exactly(channel, size))
        if not isinstance(message, dict):
            raise BrokenMessageError("no object")
    except (ValueError, RecursionError) as error:
        _close(descriptors)
        raise BrokenMessageError(str(error)) from None
    except BaseException:
        _close(descriptors)
        raise
    return message, descriptors  # pyright: ignore[reportUnknownVariableType]


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise BrokenMessageError("it ends in the middle")
        data += piece
    return bytes(data)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
