"""The demo, as `make demo` runs it: a rendered video through the real decoder and the shipped model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("seed", "answer"), [(0, "green cross"), (2, "yellow square")])
def test_the_demo_model_says_what_moves(seed: int, answer: str, tmp_path: Path, warm_command: Path) -> None:
    video = tmp_path / "demo.mp4"
    render = [sys.executable, "-m", "llava_mini_cli.demo", str(video), str(seed)]
    shown = subprocess.run(render, check=True, capture_output=True, text=True).stdout
    assert f"{answer} moves" in shown
    ask = [str(warm_command / "llava-mini"), "ask", str(video), "What is moving?", "--model", "demo"]
    done = subprocess.run(ask, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == answer
