# What llava_mini_cli.engine.vllm uses of vLLM 0.32, which is not installed where types are checked.
from typing import Any

__version__: str

class ModelRegistry:
    @staticmethod
    def register_model(model_arch: str, model_cls: str) -> None: ...

class EngineArgs:
    def __init__(self, **given: Any) -> None: ...

class SamplingParams:
    def __init__(self, **given: Any) -> None: ...
