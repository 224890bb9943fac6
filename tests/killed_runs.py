"""Whole runs of the command line in forked children, with doubles, to be killed: at a moment, or at a file operation.

Imported once by multiprocessing's fork server, so that a run costs no start of Python.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

import cli_doubles
import pandas  # noqa: F401 - pyarrow imports it where it is installed; here once for all
import pyarrow.pandas_compat  # noqa: F401 - the same

import llava_mini_cli.workers.options  # noqa: F401 - once for all, like the commands and formats
from llava_mini_cli.commands import left_out, reporter, summary  # noqa: F401
from llava_mini_cli.commands.main import app
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.formats.outputs import (  # noqa: F401
    appended,
    csv,
    event_files,
    parquet_file,
    parquet_folder,
    parquet_parts,
)
from llava_mini_cli.media import open as media_open
from llava_mini_cli.pipelines import answer, answer_when, index_options, load_engine  # noqa: F401

ANSWERS_A_STEP = 4
FILE_OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

_runs = multiprocessing.get_context("forkserver")
_runs.set_forkserver_preload([__name__, "killed_runs_server"])


def _start_server() -> None:
    """The server looks for what it imports where its environment says, not where this process would."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(folder: Path, *arguments: str, pace: float = 0.0, kill_at: int = 0, kill_at_step: int = 0) -> BaseProcess:
    """`llava-mini ARGUMENTS` in `folder`; a step of the engine takes `pace` seconds and gives a few answers.

    With `kill_at` it kills itself right before the so-manieth time that it changes what files there are, with
    `kill_at_step` before the so-manieth step.
    """
    _start_server()
    process = _runs.Process(target=_run, args=(str(folder), arguments, pace, kill_at, kill_at_step))
    process.start()
    return process


def run(folder: Path, *arguments: str, kill_at: int = 0, kill_at_step: int = 0) -> int:
    """The exit code of a run, or minus the signal that ended it."""
    process = start(folder, *arguments, kill_at=kill_at, kill_at_step=kill_at_step)
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _run(folder: str, arguments: tuple[str, ...], pace: float, kill_at: int, kill_at_step: int) -> None:
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)

    class PacedEngine(cli_doubles.EchoEngine):
        def __init__(self, options: ModelOptions, *, yes_no: bool = False) -> None:
            super().__init__(options, yes_no=yes_no)
            self._steps = 0
            self._said: list[Answer | Failure] = []

        @property
        def is_idle(self) -> bool:
            return super().is_idle and not self._said

        def step(self) -> list[Answer | Failure]:
            time.sleep(pace)
            self._steps += 1
            if self._steps == kill_at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            self._said = self._said or super().step()
            now, self._said = self._said[:ANSWERS_A_STEP], self._said[ANSWERS_A_STEP:]
            return now

    load_engine.load_engine = PacedEngine
    media_open.open_clip = cli_doubles.open_made_clip
    parquet_parts.FLUSH_ROWS = 5
    os.fsync = lambda descriptor: None  # what a killed process wrote is there; only a power cut asks for more
    if kill_at:
        _kill_at(kill_at)
    sys.argv = ["llava-mini", *arguments]
    app()


def _kill_at(number: int) -> None:
    left = [number]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_OPERATIONS or (event == "open" and _is_write(arguments)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _is_write(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
