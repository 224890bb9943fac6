from collections.abc import Mapping, Sequence
from typing import Any

class lmms:  # noqa: N801
    is_simple: bool
    task_dict: Mapping[str, Mapping[str, Sequence[Any]]]
    _rank: int
    _world_size: int
    def __init__(self) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def clean(self) -> None: ...
