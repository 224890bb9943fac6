"""Very many stretches of a few videos, asked about by runs that are killed again and again, until one comes to its end.

    python benchmarks/span_resume.py [--videos 2] [--spans 10000] [--kills 20] [--write FILE]

The command line as it is, with doubles of the engine and of clips (`tests/cli_doubles.py`), which play no part in what
is done and what is not. Each run is killed with SIGKILL once it has written some rows more. In JSON lines and in
Parquet every stretch then has one row with its own times. Says how many kills there were and how long the run takes
that only finds out that all is done. Ends with a message where a row is wrong, lost or doubled.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

import pyarrow.parquet as pq  # noqa: E402
from cli_doubles import EchoEngine  # noqa: E402

from llava_mini_cli.config import ModelOptions  # noqa: E402
from llava_mini_cli.engine.request import Answer, Failure, Request  # noqa: E402
from llava_mini_cli.formats.outputs import parquet_parts  # noqa: E402

ANSWERS_A_STEP = 16
FLUSH_ROWS = 500
POLL_S = 0.02


class SteadyEngine(EchoEngine):
    """Answers a few questions a step, so that a run may end between any two of them."""

    def __init__(self, options: ModelOptions, *, yes_no: bool = False) -> None:
        super().__init__(options, yes_no=yes_no)
        self._saying: Iterator[Answer] = iter(())
        self._is_saying = False

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self._is_saying

    def step(self) -> list[Answer | Failure]:
        if not self._is_saying:
            self._saying, self._is_saying = self._said_of(self._waiting.pop(0)), True
        now: list[Answer | Failure] = list(islice(self._saying, ANSWERS_A_STEP))
        self._is_saying = bool(now)
        return now

    @staticmethod
    def _said_of(request: Request) -> Iterator[Answer]:
        times = [float(time) for chunk in request.frames for time in chunk.times]
        request.frames.close()
        for number, window in enumerate(request.windows):
            first, behind = (bisect_left(times, moment) for moment in (window.start, window.end))
            text = f"{times[first]:g}"
            yield Answer(request.key, 0, text, (1,), "stop", behind - first, 5, behind - first, 1, number)


def started(output: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "ask", "videos", "What?", "--every", "2s", "-m", "echo", "-q", "-o", output]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def written(output: Path) -> int:
    """Rows so far, or parts of some hundred."""
    if output.suffix == ".jsonl":
        return output.read_bytes().count(b"\n") if output.exists() else 0
    return FLUSH_ROWS * len(list(output.parent.glob(f"{output.name}.parts/*.parquet")))


def rows_of(output: Path) -> list[dict[str, Any]]:
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    return pq.read_table(output).to_pylist()


def check(output: Path, videos: int, spans: int) -> None:
    """Raises `SystemExit` unless each stretch has one row, which is its own."""
    got = sorted((row["file_name"], row["segment"], row["start"], row["end"], row["text"]) for row in rows_of(output))
    wanted = [
        (f"{video}.mp4", number, 2.0 * (number - 1), 2.0 * number, f"{2 * (number - 1):g}")
        for video in range(videos)
        for number in range(1, spans + 1)
    ]
    if got != wanted:
        different = [pair for pair in zip(got, wanted, strict=False) if pair[0] != pair[1]]
        raise SystemExit(f"{len(got)} rows, {len(wanted)} wanted; the first that differs: {different[:1]}")


def killed_again_and_again(output: Path, videos: int, spans: int, kills: int) -> dict[str, Any]:
    chosen = random.Random(output.name)
    done = 0
    while done < kills:
        process, before = started(output.name), written(output)
        enough = before + chosen.randint(1, max(2, 2 * videos * spans // kills))
        while process.poll() is None and written(output) < enough:
            time.sleep(POLL_S)
        time.sleep(chosen.uniform(0, POLL_S))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done += 1
    seconds: list[float] = []
    for _ in range(2):
        began = time.monotonic()
        process = started(output.name)
        _, said = process.communicate()
        seconds.append(time.monotonic() - began)
        if process.returncode:
            raise SystemExit(said.decode())
        check(output, videos, spans)
    return {"output": output.name, "rows": videos * spans, "kills": done, "nothing_left_s": round(seconds[1], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--spans", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    target = given.write and given.write.absolute()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("videos").mkdir()
        for video in range(given.videos):
            Path("videos", f"{video}.mp4").write_text(str(2 * given.spans))
        for name in ("rows.jsonl", "rows.parquet"):
            results.append(killed_again_and_again(Path(name), given.videos, given.spans, given.kills))
            print(json.dumps(results[-1]), flush=True)
    if target:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "date": date.today().isoformat()}
        target.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def run_command() -> None:
    """The command line with the doubles of this file."""
    import cli_doubles

    cli_doubles.EchoEngine = SteadyEngine  # pyright: ignore[reportPrivateImportUsage]
    parquet_parts.FLUSH_ROWS = FLUSH_ROWS
    cli_doubles.main()


if __name__ == "__main__":
    run_command() if sys.argv[1:2] == ["ask"] else main()
