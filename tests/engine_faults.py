"""A run of the engine in which one call runs out of memory: any call of the engine's own functions, or of torch's."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import torch

from llava_mini_cli.engine import engine as engine_module

ENGINE = engine_module.__file__.removesuffix("engine.py")
NOT_OURS = ("memory.py", "work.py", "load.py")  # they deal with shortages, or come before the first request
PUBLIC = {"Intake.piece"} | {
    f"Engine.{name}" for name in ("run", "add", "step", "has_room", "is_idle", "_has_outcomes")
}
# Which tell what lies there and hand it on, outside of pieces.
PLAIN = {"Explainer.has_work", "Explainer.take", "OwnLanguageModel.asked", "OwnLanguageModel.done"}
UNWATCHED = PUBLIC | PLAIN


class Site(NamedTuple):
    """A place that calls something."""

    file: str
    line: int
    called: str


@cache
def _is_watched(file: str) -> bool:
    return file.startswith(ENGINE) and not file.endswith(NOT_OURS)


def _site(frame: FrameType, event: str, called: Any) -> Site | None:
    """Where something is called that may need memory, if this is such an event."""
    code = frame.f_code
    if not _is_watched(code.co_filename):
        return None
    if event == "call":
        caller = frame.f_back
        if caller is None or code.co_name.startswith(("<", "__")) or code.co_qualname in UNWATCHED:
            return None
        return Site(caller.f_code.co_filename.rpartition("/")[2], caller.f_lineno, code.co_qualname)
    if event != "c_call":
        return None
    owner = getattr(called, "__self__", None)
    module = getattr(called, "__module__", None) or ""
    if not (isinstance(owner, torch.Tensor) or "torch" in module):
        return None
    return Site(code.co_filename.rpartition("/")[2], frame.f_lineno, called.__name__)


@contextmanager
def watched(meet: Callable[[Site], None]) -> Generator[None]:
    """Has a function told of each call; what it raises is raised in place of the call."""

    def profile(frame: FrameType, event: str, called: Any) -> None:
        site = _site(frame, event, called)
        if site is not None:
            meet(site)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
