"""Runs of the real lmms-eval in processes of their own, without network, for the tests of this folder.

.venv-eval/bin/python -m pytest -c evaluation/pytest.ini evaluation/tests
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "evaluation" / "tasks"
sys.path.insert(0, str(ROOT / "evaluation"))


class Run(NamedTuple):
    """What a run left behind."""

    code: int
    output: str  # both streams
    results: dict[str, Any]  # metrics of each task
    samples: dict[str, list[dict[str, Any]]]  # rows of each task


def environment(home: Path) -> dict[str, str]:
    """The variables that a run without network has; `home`: the folder of caches."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    # Tasks of the hub want a token, which nothing here ever looks at.
    return {**os.environ, **offline, "HF_TOKEN": "none", "TOKENIZERS_PARALLELISM": "false"}


def lmms_eval(
    folder: Path, tasks: Sequence[str], arguments: str = "", *more: str, paths: Sequence[Path] = (TASKS,)
) -> Run:
    """Runs tasks with the demo model in `folder`, where their data and the results are."""
    output = folder / f"results-{len(list(folder.glob('results-*')))}"
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_mini", "--tasks", ",".join(tasks)]
    command += ["--model_args", f"pretrained=demo{arguments}", "--output_path", str(output), "--log_samples", *more]
    command += [word for path in paths for word in ("--include_path", str(path))]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder / "hf"), capture_output=True, text=True, check=False
    )
    results: dict[str, Any] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for path in output.glob("*/*_results.json"):
        results = json.loads(path.read_text())["results"]
    for path in output.glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.stem.split("_samples_")[1]] = sorted(rows, key=lambda row: row["doc_id"])
    return Run(done.returncode, done.stdout + done.stderr, results, samples)


def likely(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    """The loss of each continuation of a sample and whether it is greedy, which lmms-eval writes down as texts."""
    found = sample["filtered_resps"]
    pairs = [found] if isinstance(found[0], str) else found  # it takes a single one out of its list
    return [(float(loss), greedy == "True") for loss, greedy in pairs]


def said(sample: dict[str, Any]) -> str:
    """The answer of a sample in words."""
    assert isinstance(sample["filtered_resps"], str)
    return sample["filtered_resps"]


def ask(*arguments: str) -> list[dict[str, Any]]:
    """The rows of `llava-mini ask` with the demo model, without those that say that a line asks nothing."""
    command = [sys.executable, "-m", "llava_mini_cli", "ask", *arguments, "-m", "demo", "-f", "jsonl", "-q", "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(row["status"] == "ok" or "no question in column" in row["error"] for row in rows)
    return [row for row in rows if row["status"] == "ok"]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that runs are made in, with scenes where the tasks look for them."""
    from make_scenes import make_scenes

    folder = tmp_path_factory.mktemp("evaluation")
    make_scenes(folder / "evaluation-output" / "scenes")
    return folder
