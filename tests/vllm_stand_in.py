"""A module that runs in place of vLLM's process, with a fake engine. Started by `Process`."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from test_vllm_server import FakeEngine

from llava_mini_cli.engine.vllm import left_files, server

if __name__ == "__main__":
    fake: Any = ModuleType("vllm")
    fake.__version__ = "0"
    sys.modules["vllm"] = fake

    def start_another() -> "subprocess.Popen[bytes]":
        """A process that goes on when this one has ended, and a file with its number for a name."""
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        (Path(tempfile.gettempdir()) / str(other.pid)).touch()
        return other

    def end_slowly(place: str) -> None:
        time.sleep(1)
        Path(place).touch()

    def make_engine(start: Any) -> Any:
        print("the stand-in is ready", flush=True)
        left_files.SHARED_MEMORY = Path(start.config or "/dev/shm")
        if start.checkpoint == "slow":
            time.sleep(3600)
        started = [start_another() for _ in range(start.tensor_parallel - 1)]
        engine: Any = FakeEngine()
        engine.engine_core = SimpleNamespace(shutdown=lambda: [(one.terminate(), one.wait()) for one in started])
        slow = start.checkpoint.removeprefix("ends slowly: ")
        if slow != start.checkpoint:
            engine.engine_core = SimpleNamespace(shutdown=lambda: end_slowly(slow))
        engine.model_config = SimpleNamespace(max_model_len=64)
        return engine

    server.make_engine = make_engine
    server.sampling_params = lambda unit, ends: unit
    server.main()
