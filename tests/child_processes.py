"""The processes that this one started, for tests that none is left behind."""

import psutil


def child_processes() -> list[psutil.Process]:
    """The children of this process, but for those that `multiprocessing` keeps for other tests as long as it lives."""
    return [child for child in psutil.Process().children() if not _is_of_multiprocessing(child)]


def _is_of_multiprocessing(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing." in word for word in process.cmdline())
    except psutil.Error:  # it has just ended
        return False
