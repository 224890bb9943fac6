"""Stand-ins for what the plug-in uses of lmms-eval 0.7.3, as modules of its names."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    request_type: str
    arguments: tuple[Any, ...]
    idx: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class lmms:  # noqa: N801
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    def clean(self) -> None:
        self.is_clean = True


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@contextmanager
def installed() -> Iterator[None]:
    """While it lasts, `lmms_eval` can be imported; what imported it is forgotten afterwards."""
    contents: dict[str, dict[str, object]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
    try:
        yield
    finally:
        ours = ("llava_mini_cli.evaluate.plugin", "llava_mini_cli.evaluate.manifest")
        for name in (*contents, *ours):
            sys.modules.pop(name, None)
