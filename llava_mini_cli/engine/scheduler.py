"""The engine's next action. Policy only: counts in, a decision out; no torch, no I/O.

Frames are encoded first, so that decoding steps have many answers to share the weights' reading; decoding goes
on whenever the next frames are not there yet, so nothing waits for a slow decoder that need not.

Two processes that compute on the same cores at once are many times slower than one after the other, as the threads of
each wait for each other. So where answers are written by another one, as many windows as may be waiting are handed over
together, and the next frames are encoded once all are answered.
"""

from dataclasses import dataclass
from typing import Literal

Action = Literal["encode", "prefill", "decode", "wait", "idle"]


@dataclass(frozen=True)
class Limits:
    """The engine's bounds, one number each."""

    chunk_frames: int  # frames encoded at once
    generations: int  # questions answered at once
    media: int  # media taken in at once
    cache_bytes: int  # keys and values of all that is being answered
    media_bytes: int = 512 << 20  # decoded frames and their decoders, for whoever decodes
    work_bytes: int | None = None  # keys and values, and one piece of work; None: no bound
    takes_turns: bool = False  # another process answers on the same cores: no frames are encoded meanwhile

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "generations", "media", "cache_bytes", "media_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


@dataclass(frozen=True)
class Load:
    """The state of the work, in counts."""

    frames_ready: bool  # some medium's next frames can be had without waiting
    frames_waiting: bool  # some medium has frames still to come
    prefills: int  # windows whose frames are all encoded
    questions: int  # asked of the next of them
    generations: int  # questions being answered
    cache_bytes: int  # of their keys and values


def choose(load: Load, limits: Limits) -> Action:
    """The next action.

    `wait` is an encode for whose frames the engine has to wait, since there is nothing else to do.
    """
    total = load.generations + load.questions
    fits = load.generations == 0 or (total <= limits.generations and load.cache_bytes < limits.cache_bytes)
    if limits.takes_turns and load.generations:
        return "prefill" if load.prefills and fits else "decode"
    enough = load.prefills >= (limits.media if limits.takes_turns else limits.chunk_frames) or not load.frames_ready
    if load.prefills and fits and enough:
        return "prefill"
    if load.frames_ready and load.prefills < limits.media:
        return "encode"
    if load.prefills and fits:
        return "prefill"
    if load.generations:
        return "decode"
    return "wait" if load.frames_waiting else "idle"
