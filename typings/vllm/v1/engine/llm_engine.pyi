from typing import Any

from vllm import EngineArgs
from vllm.usage.usage_lib import UsageContext

class LLMEngine:
    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, usage_context: UsageContext = ...) -> Any: ...
