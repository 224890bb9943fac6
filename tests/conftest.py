"""Settings that every test shares: no network, no colours, no model from the user's environment."""

import os

import pytest

# Tiny models are quickest on one thread, and tests then do not fight over the cores with their subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the environment of whoever runs the tests out of them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    ours = [name for name in os.environ if name.startswith("LLAVA_MINI_")]
    for name in (*ours, "FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
