from typing import Any

class LogitsProcessor: ...

class MoveDirectionality:
    SWAP: Any
