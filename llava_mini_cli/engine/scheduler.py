"""What the engine does next. Policy only: counts in, a decision out; no torch, no I/O.

Frames are encoded first, so that decoding steps have many rows to share the weights' reading; decoding goes
on whenever the next frames are not there yet, so nothing waits for a slow decoder that need not.
"""

from dataclasses import dataclass
from typing import Literal

Action = Literal["encode", "prefill", "decode", "wait", "idle"]


@dataclass(frozen=True)
class Limits:
    """The engine's bounds, one number each."""

    chunk_frames: int  # frames encoded at once
    rows: int  # questions answered at once
    media: int  # media taken in at once
    cache_bytes: int  # keys and values of all rows

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "rows", "media", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


@dataclass(frozen=True)
class Load:
    """Where the work stands."""

    frames_ready: bool  # some medium's next frames can be had without waiting
    frames_waiting: bool  # some medium has frames still to come
    prefills: int  # windows whose frames are all encoded
    prefill_rows: int  # questions of the next of them
    rows: int  # questions being answered
    cache_bytes: int


def choose(load: Load, limits: Limits) -> Action:
    """The next action.

    `wait` is an encode for whose frames the engine has to wait, since there is nothing else to do.
    """
    room = load.rows == 0 or (load.rows + load.prefill_rows <= limits.rows and load.cache_bytes < limits.cache_bytes)
    enough = load.prefills >= limits.chunk_frames or not load.frames_ready
    if load.prefills and room and enough:
        return "prefill"
    if load.frames_ready and load.prefills < limits.media:
        return "encode"
    if load.prefills and room:
        return "prefill"
    if load.rows:
        return "decode"
    return "wait" if load.frames_waiting else "idle"
