"""Memory that was freed is kept for the next wide tensors, where there is plenty of it."""

import platform
import subprocess
import sys
from dataclasses import replace

import pytest

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine import load
from llava_mini_cli.engine.memory import LARGEST_KEPT, MOST_KEPT

OPTIONS = ModelOptions("demo", device="cpu")
# How much of a freed tensor is still in memory: a quarter of what is kept at most.
FREED = """
import sys, torch
from llava_mini_cli.engine.memory import MOST_KEPT, keep_freed_memory
from llava_mini_cli.memory_there import held_bytes
if sys.argv[1] == "kept":
    keep_freed_memory()
before = held_bytes()
tensor = torch.ones(MOST_KEPT // 16)
del tensor
print((held_bytes() - before) / (MOST_KEPT // 4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which is left as it is")
@pytest.mark.parametrize(("asked", "least", "most"), [("kept", 0.9, 1.5), ("left", -0.1, 0.5)])
def test_a_freed_tensor_stays_in_memory(asked: str, least: float, most: float) -> None:
    shown = subprocess.run([sys.executable, "-c", FREED, asked], capture_output=True, text=True, check=True)
    assert MOST_KEPT // 4 <= LARGEST_KEPT
    assert least <= float(shown.stdout) <= most


@pytest.mark.parametrize(("room", "times"), [(None, 0), (load.AMPLE - 1, 0), (load.AMPLE, 1)])
def test_it_is_kept_where_there_is_plenty(room: int | None, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    limits = load._limits
    monkeypatch.setattr(load, "keep_freed_memory", lambda: calls.append(None))
    monkeypatch.setattr(load, "_limits", lambda *given: replace(limits(*given), work_bytes=room))
    load.load_engine(OPTIONS)
    assert len(calls) == times
