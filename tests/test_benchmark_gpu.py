"""The measuring of a device, small and on the CPU: every part is there, and one that fails is survived."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
BARE = """
from importlib.machinery import PathFinder
hidden = {"decord", "imageio_ffmpeg", "typer", "pyarrow", "datasets", "torchao", "llguidance"}
there = PathFinder.find_spec

@staticmethod
def find_spec(name, *more):
    return None if name.split(".")[0] in hidden else there(name, *more)

PathFinder.find_spec = find_spec
"""


def test_every_part_is_there_without_decoders_and_formats(tmp_path: Path) -> None:
    """With torch's compiler off, which `test_engine` waits for."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    output = tmp_path / "measured.jsonl"
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    script = f"PYTHONPATH={tmp_path} {GPU / 'measure.sh'} {output} --size small --device cpu"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == lines
    assert [line for line in lines if "error" in line] == []
    found = {line["part"]: line for line in lines if "part_s" not in line}
    assert list(found) == [
        "environment", "goldens", "crowds", "device", "loading", "encoding", "first-token", "steps", "captions",
        "questions", "kernels", "long-video", "training", "compile", "fp8", "int8", "vllm",
    ]  # fmt: skip
    exact = next(line for line in lines if line["part"] == "goldens" and line["dtype"] == "float32")
    assert exact["worst_of_largest"] < 1e-4
    assert exact["same_ids"] == exact["scenarios"]
    assert all(line["same"] == line["questions"] for line in lines if line.get("part") == "crowds" and "same" in line)


def test_a_part_that_fails_is_a_line_and_none_begins_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    from figures import Figures, run_parts  # pyright: ignore[reportMissingImports]

    def good() -> Iterator[dict[str, object]]:
        yield {"x": 1.23456789}

    def bad() -> Iterator[dict[str, object]]:
        yield {"x": 2}
        raise ValueError("no\nmore")

    cleaned: list[int] = []
    told_here = io.StringIO()
    figures = Figures(tmp_path / "out.jsonl", told_here)
    run_parts({"bad": bad, "good": good}, figures, 1.0, lambda: cleaned.append(1))
    run_parts({"late": good}, figures, 0.0, lambda: cleaned.append(1))
    figures.close()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    told = [{name: value for name, value in line.items() if name not in ("at_s", "part_s")} for line in lines]
    assert [line for line in told if len(line) > 1] == [
        {"part": "bad", "x": 2},
        {"part": "bad", "error": "ValueError: no", "where": told[1]["where"]},
        {"part": "good", "x": 1.2346},
        {"part": "late", "left_out": "the time was over"},
    ]
    assert told[1]["where"].startswith("test_benchmark_gpu.py:")
    assert len(cleaned) == 2
    assert told_here.getvalue() == (tmp_path / "out.jsonl").read_text()
