# What the plug-in uses of lmms-eval 0.7.3, which is not installed where types are checked.
from typing import Any

class TokenCounts:
    def __init__(
        self, input_tokens: int | None = None, output_tokens: int | None = None, reasoning_tokens: int | None = None
    ) -> None: ...

class GenerationResult:
    text: Any
    token_counts: TokenCounts | None
    def __init__(self, text: Any, token_counts: TokenCounts | None = None) -> None: ...

class Instance:
    @property
    def args(self) -> tuple[Any, ...]: ...
