"""Ray clusters on this machine, for tests and benchmarks: as small as they can be, and ended with all that they are."""

import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

STORE_BYTES = 80 << 20  # the least that Ray takes is a little less


@contextmanager
def cluster(*nodes: float) -> Generator[Any]:
    """A cluster of nodes with so many CPUs each, the first one its head."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # doubles are found where the tests find them

    common = {"object_store_memory": STORE_BYTES, "include_dashboard": False, "num_gpus": 0}
    made = Cluster()
    try:
        for cpus in nodes:
            made.add_node(num_cpus=cpus, **common)
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def worker_processes() -> list[psutil.Process]:
    """The processes of workers on this machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("ray::Worker") or "ray::Worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_workers(count: int, seconds: float = 600.0) -> list[psutil.Process]:
    """The processes of workers, once there are so many."""
    end = time.monotonic() + seconds
    while len(found := worker_processes()) != count:
        assert time.monotonic() < end, f"{len(found)} workers, not {count}"
        time.sleep(0.05)
    return found


def kill(process: psutil.Process) -> None:
    """SIGKILL; a process that is gone already is gone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
