from typing import Any

from vllm import EngineArgs

class LLMEngine:
    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> Any: ...
