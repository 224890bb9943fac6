"""Starts a decoder so that it cannot outlive the process that asked for it.

Run as a script (`python -I -S launch.py PARENT_PID COMMAND ...`) it binds itself to its parent's life and
becomes the command. Uses the standard library only and imports nothing else of the package, so that it starts
in a few milliseconds; knows nothing of media.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL when the starting thread of process `parent` ends (Linux; elsewhere nothing).

    Survives `exec`. Exits at once if the parent is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
