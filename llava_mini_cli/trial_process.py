"""A stranger's data tried by a script in a process of its own, with bounds on time and memory.

What a library makes of such data may crash, panic, never end or fill the memory. `run_trial` is for whoever wants to
know, `bound` for the script, first of all.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Trial:
    """What came of one trial."""

    said: list[Any]  # the lines of JSON that the script wrote
    status: int | None  # the exit status of its process; None: it was ended, as it took too long by the clock

    @property
    def is_endless(self) -> bool:
        """True if it used up its time."""
        return self.status is None or self.status == -signal.SIGXCPU


def run_trial(script: str, asked: object, seconds: float, **environment: str) -> Trial:
    """Runs a script, with JSON on its standard input.

    Args:
        script: a path, such as a module's `__file__`.
        seconds: by the clock, on a machine that does much else.
        environment: variables that are set for the process.

    Raises:
        OSError: there is no process to be had.
    """
    path = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[1])])
    try:
        process = subprocess.run(
            [sys.executable, "-P", script],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=seconds,
            env=os.environ | {"PYTHONPATH": path} | environment,
            check=False,
        )
        printed, status = process.stdout, process.returncode
    except subprocess.TimeoutExpired as error:
        printed, status = error.stdout or b"", None
    return Trial([json.loads(line) for line in printed.decode(errors="replace").splitlines()], status)


def bound(cpu_seconds: int) -> None:
    """Takes away what a trial does not need, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            continue
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # SIGXCPU, then SIGKILL
