"""A module that runs in place of vLLM's process, with a fake engine. Started by `Process`."""

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

from test_vllm_server import FakeEngine

from llava_mini_cli.engine.vllm import server

if __name__ == "__main__":
    fake: Any = ModuleType("vllm")
    fake.__version__ = "0"
    sys.modules["vllm"] = fake

    def make_engine(start: Any) -> Any:
        print("the stand-in is ready", flush=True)
        if start.checkpoint == "slow":
            time.sleep(3600)
        engine: Any = FakeEngine()
        engine.model_config = SimpleNamespace(max_model_len=64)
        return engine

    server.make_engine = make_engine
    server.sampling_params = lambda unit, ends: unit
    server.main()
