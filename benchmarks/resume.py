"""What it costs to find out that everything is done: a table of questions whose rows are all in the output.

    python benchmarks/resume.py --rows 1000000 --write benchmarks/results/resume.json

Makes the table and the output through the project's own parts (the answers are made up), then measures the command
`llava-mini ask table.csv -o output` in a process of its own: wall time, processor time and the most memory. In one
shape each row has a medium of its own, in the other ten rows share one. The media are not there, which costs the
same look at the disk as one that is.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.fetch.file_cache import FetchOptions, FileCache
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.read import open_inputs
from llava_mini_cli.formats.outputs import parquet_parts
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.open import is_media_path
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

COLUMNS = ["--column", "video", "--id-column", "id", "--prompt-column", "question"]


def write_table(path: Path, rows: int, rows_per_medium: int) -> None:
    """Rows with a video, an id and a question."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["video", "id", "question"])
        table.writerows([f"clips/{n // rows_per_medium:07d}.mp4", n, f"What is in part {n}?"] for n in range(rows))


def write_output(table: Path, output: Path) -> None:
    """A finished row for each of the table's."""
    parquet_parts.FLUSH_ROWS = 20_000
    options = RunOptions(ModelOptions("echo"), SamplingOptions(), GenerationOptions())
    row = Row(id="", file_name="", prompt="", status="ok", model="echo", fingerprint="", created_at=datetime.now(UTC))
    columns = InputOptions(column="video", id_column="id", prompt_columns=("question",))
    with (
        FileCache(FetchOptions()) as cache,
        open_output(OutputOptions.parse(str(output), None), options.run_info()) as rows,
    ):
        jobs = open_inputs([str(table)], (), is_media_path, cache, columns).jobs
        for job in left_to_do(jobs, options.row_keys(), rows.done, Tally()):
            for question in job.questions:
                asked = {"id": question.id, "file_name": job.file_name, "prompt": question.prompt.text}
                text = f"The answer to question {question.id}, in a sentence."
                rows.write(replace(row, **asked, text=text, fingerprint=question.key, digest=question.digest))


def measure(table: Path, output: Path) -> dict[str, float]:
    """One run of the command with nothing left to do."""
    command = [sys.executable, "-m", "llava_mini_cli", "ask", table.name, *COLUMNS, "-m", "echo", "-o", output.name]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=table.parent, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0, said
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-medium", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--formats", nargs="+", default=["parquet", "jsonl"])
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    target = arguments.write and arguments.write.absolute()
    results: list[dict[str, Any]] = []
    for rows_per_medium in arguments.rows_per_medium:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            table = Path(folder, "table.csv")
            write_table(table, arguments.rows, rows_per_medium)
            for suffix in arguments.formats:
                output = Path(folder, f"rows.{suffix}")
                write_output(table, output)
                shape = {"rows": arguments.rows, "rows_per_medium": rows_per_medium, "format": suffix}
                results.append(shape | measure(table, output))
                print(json.dumps(results[-1]), flush=True)
                output.unlink()
    if target:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "date": date.today().isoformat()}
        target.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
