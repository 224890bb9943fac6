"""Tries out, in a child, what decoders are kept from on this machine. For `llava-mini doctor`."""

import sys
from contextlib import closing

from llava_mini_cli.media.child import Child, Command, StalledError
from llava_mini_cli.media.endings import SignalledError, ended

KINDS = ("files", "network", "memory")

_MEMORY = 64 << 20
_PATIENCE_S = 20.0
_TRIAL = f"""
import os, socket

def is_refused(attempt):
    try:
        attempt()
    except (PermissionError, MemoryError):
        return True
    except OSError:  # such as a connection that nobody takes
        pass
    return False

def files():
    open("/dev/full", "wb")  # to which nothing can be written anyway

def network():
    with socket.socket() as out:
        out.connect(("127.0.0.1", 9))

def memory():
    bytearray({2 * _MEMORY})

listed = is_refused(lambda: os.listdir("/"))
found = [is_refused(files) and listed, is_refused(network), is_refused(memory)]
print(*(kind for kind, refused in zip({KINDS}, found) if refused))
"""


def kept_from() -> tuple[str, ...]:
    """Those of `KINDS` that the kernel keeps from decoders: files and sockets of others, memory beyond a bound.

    Raises `OSError` where the trial cannot be made.
    """
    command = Command((sys.executable, "-I", "-S", "-c", _TRIAL), memory=_MEMORY)
    with closing(Child(command, _PATIENCE_S)) as child:
        try:
            told = b"".join(iter(child.read_some, b"")).decode().split()
            status = ended(child)
        except StalledError:
            raise OSError("a confined process gave nothing") from None
        except SignalledError as error:
            raise OSError(f"a confined process was {error}") from None
        if status != 0:
            raise OSError(child.said[-1] if child.said else "a confined process ended early")
    return tuple(told)


def refusal_of(program: str) -> str | None:
    """What a program with the argument `-version` says when it cannot be run confined; None if it can."""
    with closing(Child(Command((program, "-version"), alone=True), _PATIENCE_S)) as child:
        try:
            for _ in iter(child.read_some, b""):
                pass
            status = ended(child)
        except StalledError:
            return "it gave nothing"
        except SignalledError as error:
            return f"it was {error}"
    return None if status == 0 else child.said[-1] if child.said else f"it ended with status {status}"
