"""Ray clusters on this machine, for tests and benchmarks: as small as they can be, and ended with all that they are."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

FOLDER = "RAY_TMPDIR"  # the name by which Ray's processes hand the folder on
STORE_BYTES = 80 << 20  # the least that Ray takes is a little less


@contextmanager
def ray_of_ones_own() -> Generator[None]:
    """A folder for Ray's files, so that `ray.init` finds no cluster of others, whose address is not written over.

    A `ray.init` without an address takes the cluster whose address lies in Ray's folder, which is `/tmp/ray` for all
    processes of a machine unless their environment names another.
    """
    short = tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    )  # a socket's path has 107 bytes at most
    with short as folder, pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv(FOLDER, folder)
        yield


@contextmanager
def cluster(*nodes: float) -> Generator[Any]:
    """A cluster of nodes with so many CPUs each, the first one its head."""
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": STORE_BYTES, "include_dashboard": False, "num_gpus": 0}
    with ray_of_ones_own(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # doubles are found where the tests find them
        made = Cluster()
        try:
            for cpus in nodes:
                made.add_node(num_cpus=cpus, **common)
            yield made
        finally:
            made.shutdown()


def worker_processes() -> list[psutil.Process]:
    """The processes of workers on this machine, but for those of others' clusters."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_worker = process.name().startswith("ray::Worker") or "ray::Worker" in " ".join(process.cmdline())
            if is_worker and process.environ().get(FOLDER) == os.environ[FOLDER]:
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
