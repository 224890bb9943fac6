"""A long run over made media, 30 of them broken in ten ways: rows, seconds, and how memory and speed go on.

    python benchmarks/batch_run.py [--pictures 1000] [--videos 40] [--model demo] [--timeout 10]

Runs the installed command on the CPU and prints one JSON object. Speed is that of each fifth of the rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from broken_media import make_batch, without_privilege  # noqa: E402  # the tests make the same media


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--timeout", default="10", help="--decode-timeout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "media").mkdir()
        expected = make_batch(folder / "media", arguments.pictures, arguments.videos)
        print(json.dumps(run(folder, expected, arguments.model, arguments.timeout), indent=2))


def run(folder: Path, expected: dict[str, str | None], model: str, timeout: str) -> dict[str, Any]:
    """The command's exit code, and what its rows and its memory were."""
    command = [str(Path(sys.executable).parent / "llava-mini"), "caption", "media", "-m", model, "-o", "out.parquet"]
    command += ["--max-new-tokens", "8", "--decode-timeout", timeout, "--device", "cpu", "-q"]
    began = time.monotonic()
    samples: list[tuple[int, int]] = []  # bytes of the process, and of it and its children
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, preexec_fn=without_privilege) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            if (folder / "out.parquet.parts").exists():
                samples.append(sizes(watched))
            time.sleep(0.2)
    seconds = time.monotonic() - began
    rows = pq.read_table(folder / "out.parquet").to_pylist()
    own = [size for size, _ in samples]
    return {
        "exit_code": process.returncode,
        "media": len(expected),
        "rows": len(rows),
        "rows_of_the_right_type": sum(expected[row["file_name"]] == row["error_type"] for row in rows),
        "seconds": round(seconds, 1),
        "media_per_second_by_fifths": speeds([row["created_at"] for row in rows]),
        "megabytes_at_first_part": own[0] >> 20 if own else None,
        "megabytes_at_most": max(own) >> 20 if own else None,
        "megabytes_at_most_with_decoders": max(whole for _, whole in samples) >> 20 if samples else None,
    }


def sizes(watched: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process, and of it with all that it started."""
    own = watched.memory_info().rss
    whole = own
    for child in watched.children(recursive=True):
        try:
            whole += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return own, whole


def speeds(times: list[datetime]) -> list[float]:
    """Rows a second in each fifth of the rows."""
    ordered = sorted(times)
    marks = [ordered[min(len(ordered) - 1, len(ordered) * part // 5)] for part in range(6)]
    return [
        round(len(ordered) / 5 / max(1e-6, (after - before).total_seconds()), 1) for before, after in pairwise(marks)
    ]


if __name__ == "__main__":
    main()
