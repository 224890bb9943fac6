"""The processes that this one started, for tests that none is left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

_there_before: list[psutil.Process] = []


def know_those_there() -> None:
    """Takes the children that are there for those of fixtures of the whole session, such as a browser."""
    _there_before[:] = psutil.Process().children()


def child_processes() -> list[psutil.Process]:
    """The children of this process, but for those of the session and those that `multiprocessing` keeps."""
    children = psutil.Process().children()
    return [child for child in children if child not in _there_before and not _is_of_multiprocessing(child)]


def _is_of_multiprocessing(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing." in word for word in process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def left_by_killed_parent(code: str, sign: signal.Signals, seconds: float = 10) -> list[psutil.Process]:
    """The processes that are left of those that a Python process started, once it has printed `going` and been ended.

    Args:
        code: what it runs, in the project's folder. sign: the signal that ends it. seconds: that its end may take.
    """
    root = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"going\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert started
        parent.send_signal(sign)
        parent.wait(seconds)
    return psutil.wait_procs(started, timeout=5)[1]
