"""A run over many media, some broken in ten ways: one row each of the right type, no growth, no waiting for what hangs.

The engine alone is a double. `benchmarks/batch_run.py` does the same with a real model and more media.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from broken_media import make_batch, make_picture, without_privilege
from test_cli_process import DOUBLES

PICTURES, VIDEOS = 200, 6
MOST_GROWTH = 200 << 20  # bytes
HANG_S = 4  # --decode-timeout


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, DOUBLES, *arguments],
        cwd=folder,
        env=os.environ | {"CLIPS": "real"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=without_privilege,
    ) as process:
        yield process


def test_many_media_some_broken(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    expected = make_batch(tmp_path / "media", PICTURES, VIDEOS)
    sizes: list[int] = []
    arguments = ["ask", "media", "-p", "What?", "-p", "Why?", "--decode-timeout", str(HANG_S)]
    with running(tmp_path, *arguments, "-o", "out.jsonl", "--summary-json", "s.json") as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            if (tmp_path / "out.jsonl").exists():
                sizes.append(watched.memory_info().rss)
            time.sleep(0.05)
        said = (process.stderr.read() if process.stderr else b"").decode()
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert process.returncode == 3, said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted((row["file_name"], row["prompt"]) for row in rows) == sorted(
        (name, prompt) for name in expected for prompt in ("What?", "Why?")
    )
    assert {row["file_name"]: row["error_type"] for row in rows} == expected
    assert max(sizes) - sizes[0] < MOST_GROWTH
    told = json.loads((tmp_path / "s.json").read_text())
    assert (told["media"], told["media_failed"]) == (len(expected), 30)
    listed = [line for line in said.splitlines() if line.startswith("llava-mini: error: ")]
    assert len(listed) == 21
    assert listed[-1] == "llava-mini: error: and 10 more failed"
    order = [row["file_name"] for row in rows]
    hanging = sorted(name for name in expected if "hanging" in name)
    for name in hanging:  # what comes behind it does not wait for it
        behind = sorted(expected)[sorted(expected).index(name) + 1]
        assert order.index(behind) < order.index(name)


def cpu_seconds(run: Callable[[], object]) -> float:
    """Seconds of processor time that the processes take that `run` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


PLAIN = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
for path in sorted(Path("media").iterdir())[: int(sys.argv[1])]:
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((336, 336), Image.Resampling.BICUBIC)
    print(json.dumps({"path": str(path), "mean": float(np.asarray(small).mean())}))
"""


def test_a_picture_costs_at_most_three_times_what_plain_code_does(tmp_path: Path) -> None:
    """But for the model, and as a ratio of one run: seconds would measure the machine, and what else it does."""
    (tmp_path / "media").mkdir()
    for number in range(600):
        make_picture(tmp_path / "media" / f"{number:05}.jpg", number)

    def plain(count: int) -> None:
        subprocess.run([sys.executable, "-c", PLAIN, str(count)], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    def asked(media: str, output: str) -> None:
        with running(tmp_path, "ask", media, "-p", "What?", "-o", output) as process:
            process.communicate(timeout=300)
        assert process.returncode == 0

    for output in ("out.jsonl", "out.parquet"):
        start_up = cpu_seconds(lambda output=output: asked("media/00000.jpg", f"one-{output}"))
        whole = cpu_seconds(lambda output=output: asked("media", output))
        least = cpu_seconds(lambda: plain(600)) - cpu_seconds(lambda: plain(1))
        assert whole - start_up < 3 * least
