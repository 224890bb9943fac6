"""The program with vLLM itself, on the CPU in float32: what it writes, what is left at its end. Run by `make vllm`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from llava_mini_cli.needs import is_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed: make vllm"),
]


PICTURES = 200
DEMO = ("-m", "demo", "--dtype", "float32")
TWO = ("--tensor-parallel", "2")
ENDLESS = ("--max-new-tokens", "400", "--repetition-penalty", "2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_its_death_ends_the_run_and_leaves_no_process(pictures: Path, tmp_path: Path) -> None:
    """In the middle of a run: what was answered is written, and the same command does the rest."""
    out = tmp_path / "out.jsonl"
    run = Command("ask", str(pictures), "What is shown?", "-o", str(out), *ENDLESS)
    run.wait_for(lambda: rows_in(out) >= 3)
    child = run.vllm()
    assert child is not None
    child.kill()
    code, said = run.end()
    assert code == 1
    told = [line for line in said.splitlines() if "error: " in line]
    assert len(told) == 1
    assert "vLLM's process ended (killed by SIGKILL" in told[0]
    assert 3 <= rows_in(out) < PICTURES
    again = Command(*run.arguments)
    assert again.end()[0] == 0
    assert rows_in(out) == PICTURES


def test_two_processes_share_the_layers(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two cards would. Their rows are those of our own; the death of one ends the run, and no process is left."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # a machine with one NUMA node has no place for two
    asked = ("ask", str(pictures), "What is shown?", "--limit", "5", "-f", "jsonl", "-o", "-", "-q")
    own, spread = (Command(*asked, llm=llm, more=more) for llm, more in (("own", ()), ("vllm", TWO)))
    rows = [
        sorted((row["id"], row["text"]) for row in map(json.loads, one.end_with_output()[1].splitlines()))
        for one in (own, spread)
    ]
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]
    out = tmp_path / "out.jsonl"
    run = Command("ask", str(pictures), "What is shown?", "-o", str(out), *ENDLESS, more=TWO)
    run.wait_for(lambda: rows_in(out) >= 1)
    child = run.vllm()
    assert child is not None
    parts = [one for one in child.children() if "resource_tracker" not in " ".join(one.cmdline())]
    assert len(parts) == 2
    parts[0].kill()
    code, said = run.end()
    assert (code, "Traceback" in said) == (1, False)
    assert "vLLM's process ended" in said
    psutil.wait_procs([child, *parts], 60)
    assert not any(one.is_running() for one in (child, *parts))


@pytest.mark.parametrize(
    ("sent", "loads"),
    [
        (signal.SIGINT, True),
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGKILL, False),
        (signal.SIGKILL, True),
    ],
)
def test_no_process_is_left(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, loads: bool
) -> None:
    """Whether vLLM answers or still loads when the program is told to end. Nor is a file of it."""
    out, files = tmp_path / "out.jsonl", tmp_path / "files"
    files.mkdir()
    monkeypatch.setenv("TMPDIR", str(files))
    run = Command("ask", str(pictures), "What is shown?", "-o", str(out), *ENDLESS)
    run.wait_for(lambda: run.is_loading() if loads else rows_in(out) >= 1)
    child = run.vllm()
    assert child is not None
    os.killpg(run.process.pid, sent)  # as the terminal does
    code, said = run.end()
    assert (code, "Traceback" in said) == (-sent if sent == signal.SIGKILL else 128 + sent, False)
    child.wait(60)
    assert not child.is_running()
    assert not list(files.glob("llava-mini-vllm-*"))


def rows_in(out: Path) -> int:
    return out.read_text().count("\n") if out.exists() else 0


@pytest.mark.parametrize("asked", ["ask {} Red? --llm own", "ask {} Red? --llm auto", "caption {}", "doctor"])
def test_where_our_own_answers_it_is_not_imported(pictures: Path, asked: str) -> None:
    """Where it is installed, too."""
    words = [word.format(pictures / "000.png") for word in asked.split()]
    device = [] if asked == "doctor" else ["--device", "cpu"]
    code = "import sys\ntry:\n    from llava_mini_cli.__main__ import main\n    main()\nfinally:\n    "
    code += "print('vllm', 'vllm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "-m", "demo", *device], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "vllm False"


def test_answers_alone_are_on_stdout(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), "red").save(tmp_path / "red.png")
    asked = ("ask", str(tmp_path / "red.png"), "What is shown?", "-f", "jsonl", "-o", "-", "-q")
    done = [Command(*asked, llm=llm).end_with_output() for llm in ("own", "vllm")]
    rows = [json.loads(out) for _, out, _ in done]
    assert [code for code, _, _ in done] == [0, 0]
    assert [said for _, _, said in done] == ["", ""]
    assert rows[0]["text"] == rows[1]["text"]
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"]


def test_the_other_commands_say_the_same(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    subprocess.run([sys.executable, "-m", "llava_mini_cli.demo", film], check=True, stdout=subprocess.DEVNULL)
    said: dict[str, list[Any]] = {"own": [], "vllm": []}
    for llm, found in said.items():
        index = tmp_path / f"{llm}.index"
        done = Command("index", str(film), "-o", str(index), "--features", "--caption-every", "2", "-q", llm=llm)
        assert done.end() == (0, "")
        found.append(pq.read_table(index / "captions").to_pylist())
        for asked in (
            ("caption", str(film)),
            ("when", str(film), "-p", "seen=Is it moving?"),
            ("ask", "--index", str(index), "What is moving?"),
        ):
            code, out, told = Command(*asked, "-f", "jsonl", "-o", "-", "-q", llm=llm).end_with_output()
            assert (code, told) == (0, "")
            rows = [json.loads(line) for line in out.splitlines()]
            found.append([(row["text"], row["start"], row["end"], row["fingerprint"]) for row in rows])
    assert all(said["own"])
    assert said["own"] == said["vllm"]


def test_both_are_measured_where_a_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of benchmarks/gpu/measure.py, with smaller tasks."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    for folder in (benchmarks, benchmarks / "gpu"):
        monkeypatch.syspath_prepend(folder)
    measure, language_models = import_module("measure"), import_module("language_models")
    task = language_models.Task
    monkeypatch.setattr(language_models, "TASKS", {"questions": task(1, 40, 6), "captions": task(5, 1, 1)})
    note, *lines = measure.vllm(torch.device("cpu"))
    assert note["note"].startswith("vLLM ")
    assert [line["task"] for line in lines] == ["questions", "captions"]
    for line, answers in zip(lines, (6, 5), strict=True):
        assert line["same"] == line["answers"] == 2 * 4 * answers  # whole and the language model alone, four rounds
        assert min(line["own_s"], line["vllm_s"], line["own_llm_s"], line["vllm_llm_s"]) > 0
    assert lines[0]["known"] > 0.4  # five of six questions find the frames there


class Command:
    """The program in a process and a session of its own."""

    def __init__(self, *arguments: str, llm: str = "vllm", more: Sequence[str] = ()) -> None:
        self.arguments = arguments
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llava_mini_cli", *arguments, *DEMO, "--llm", llm, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def vllm(self) -> psutil.Process | None:
        """The process that vLLM is in."""
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "llava_mini_cli.engine.vllm.server" in child.cmdline():
                    return child
        return None

    def is_loading(self) -> bool:
        """True once there is vLLM's process for two seconds; it takes longer to load."""
        found = self.vllm()
        return found is not None and time.time() - found.create_time() > 2

    def end_with_output(self) -> tuple[int, str, str]:
        out, said = self.process.communicate(timeout=300)
        return self.process.returncode, out, said

    def end(self) -> tuple[int, str]:
        code, _, said = self.end_with_output()
        return code, said
