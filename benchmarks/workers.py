"""Workers on Ray: how much quicker two are than one, how many rows the command takes in, and what deaths cost.

    python benchmarks/workers.py speed    # an engine that waits as long as work takes
    python benchmarks/workers.py rows     # workers that answer at once
    python benchmarks/workers.py deaths   # of a worker, a node and the command, at ten random moments each

Runs small Ray clusters on this machine. Media and engines are doubles (`tests/cli_doubles.py`); processes, Ray, the
command and its outputs are real. `deaths` ends with a message where a row is missing or doubled.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import cli_doubles  # noqa: E402
import psutil  # noqa: E402
from ray_clusters import cluster, kill, wait_for_workers, worker_processes  # noqa: E402
from warm_command import DOUBLES, warm_command  # noqa: E402

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions  # noqa: E402
from llava_mini_cli.formats.job import Job, Prompt, Question  # noqa: E402
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output  # noqa: E402
from llava_mini_cli.formats.outputs.output import Output  # noqa: E402
from llava_mini_cli.formats.outputs.parquet_folder import ParquetFolderOutput  # noqa: E402
from llava_mini_cli.formats.row import Row  # noqa: E402
from llava_mini_cli.media.clip import ClipInfo  # noqa: E402
from llava_mini_cli.pipelines import answer  # noqa: E402
from llava_mini_cli.pipelines.of_media import Came, MediumOver, WorkEvent  # noqa: E402
from llava_mini_cli.pipelines.rows import RowBuilder  # noqa: E402
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts  # noqa: E402
from llava_mini_cli.pipelines.settings import RunOptions  # noqa: E402
from llava_mini_cli.workers.crew import Crew  # noqa: E402
from llava_mini_cli.workers.options import WorkerOptions  # noqa: E402
from llava_mini_cli.workers.ray_hands import RayHands  # noqa: E402

INFO = ClipInfo("x", "video", 64, 48, 1.0, 1, 1.0, "made")
PLACE = ParquetFolderOutput.place
OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(), GenerationOptions())


def write_media(folder: Path, number: int, text: str) -> None:
    """So many files for doubles of clips."""
    folder.mkdir()
    for place in range(number):
        (folder / f"m{place:05}.mp4").write_text(text)


# Two workers against one


def speed(media: int, wait: float) -> None:
    """Media a second, told from when the rows were made, so that starting does not count."""
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as place, cluster(1, 1) as made, warm_command(DOUBLES) as binaries:
        write_media(Path(place, "in"), media, f"wait {wait}")
        for workers in (1, 2):
            shared = ["--ray", made.address, "--worker-gpus", "0", "--workers", str(workers)]
            command = [str(binaries / "llava-mini"), "caption", "in", "-q", "-f", "jsonl", *shared]
            text = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
            times = sorted(datetime.fromisoformat(json.loads(line)["created_at"]) for line in text.splitlines())
            rates.append(media / ((times[-1] - times[0]).total_seconds() + wait))
            print(f"{workers} workers: {rates[-1]:.1f} media/s")
    print(f"ratio {rates[1] / rates[0]:.2f}")


# Workers that answer at once


@dataclass(frozen=True)
class AtOnce(answer.Answering):
    """Rows of answers that nobody had to think of."""

    def run(self, jobs: Iterable[Job], load: Callable[[], AnswerEngine], parts: RunParts) -> Generator[WorkEvent[Row]]:
        builder = RowBuilder(self.options)
        for job in jobs:
            for index in range(len(job.questions)):
                said = cli_doubles.Answer("", index, "A street at night.", (1, 2), "stop", 60, 20, 60, 12)
                yield Came(job, builder.answer(job, said, INFO, []), fails_medium=False)
            yield MediumOver(job)


def jobs_of(media: int, questions: int) -> Iterator[Job]:
    """Jobs of files that are not there, as a list has them."""
    prompts = [Prompt(f"What is in part {number}?", f"q{number}") for number in range(questions)]
    for place in range(media):
        path = f"/videos/{place:07}.mp4"
        asked = tuple(Question(prompt, path) for prompt in prompts)
        yield Job(path, path, asked, item=(path, 1_000_000, 1))


def rows(total: int) -> None:
    """Rows a second from the first medium that was done to the last, and what the command took for each.

    Rows of folders are written by the command alone, and once more by the workers.
    """
    answer.Answering = AtOnce  # type: ignore[misc]
    with cluster(1, 1) as made, tempfile.TemporaryDirectory() as place:
        folders = [(number, f"{writer}{number}/") for number in (1, 16, 300) for writer in ("command", "workers")]
        for questions, target in ((1, "a.jsonl"), (16, "b.jsonl"), *folders):
            place_of = Output.place if target.startswith("command") else PLACE
            ParquetFolderOutput.place = place_of  # type: ignore[method-assign]
            options = WorkerOptions(2, made.address, 0.0)
            parts = RunParts(crew=Crew(RayHands(options, "cpu"), 600.0))
            came = TimedRows(parts)
            before = psutil.Process().cpu_times()
            answer.answer_into(
                lambda target=target: open_output(OutputOptions.parse(f"{place}/{target}", None), OPTIONS.run_info()),
                jobs_of(total // questions, questions),
                cli_doubles.EchoEngine,
                OPTIONS,
                parts,
            )
            after = psutil.Process().cpu_times()
            seconds = came.last - came.first
            used = after.user + after.system - before.user - before.system
            print(
                f"{questions} questions, {target}: {parts.tally.answered} rows, {parts.tally.answered / seconds:.0f}"
                f" rows/s, {used / parts.tally.answered * 1e6:.0f} us of processor time a row in the command"
            )


class TimedRows(cli_doubles.ProgressLog):
    """Knows when the first and the last row was written."""

    def __init__(self, parts: RunParts) -> None:
        super().__init__()
        self.first = self.last = 0.0
        object.__setattr__(parts, "progress", self)

    def item_done(self) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last

    def noted(self, text: str) -> None:
        print(text)


# Deaths


def deaths(times: int, seed: int) -> None:
    """Kills something at a random moment, then runs the same command until it ends well."""
    chance, numbers, media = random.Random(seed), count(), 200
    prompts = [f"--prompt=What is in part {number}?" for number in range(30)]  # enough for workers to write parts
    with tempfile.TemporaryDirectory() as place, cluster(0, 1, 1) as made, warm_command(DOUBLES) as binaries:
        write_media(Path(place, "in"), media, "wait 0.02")
        for what in ("worker", "command", "node"):
            runs: list[int] = []
            for _ in range(times):
                output = f"out{next(numbers)}/"
                asked = ["ask", "in", *prompts, "-q", "-o", output, "--ray", made.address, "--worker-gpus", "0"]
                command = [str(binaries / "llava-mini"), *asked, "--workers", "2"]
                codes = [_struck(what, command, place, made, chance.uniform(0.0, 4.0 if what == "command" else 2.0))]
                while codes[-1] != 0:
                    codes.append(subprocess.run(command, cwd=place, check=False, timeout=120).returncode)
                    if len(codes) > 4:
                        raise SystemExit(f"{what}: {codes}")
                _check(Path(place, output), media, len(prompts))
                wait_for_workers(0)
                runs.append(len(codes))
            print(f"{what}: {times} deaths, each row once; runs until all was done: {runs}", flush=True)


def _struck(what: str, command: list[str], place: str, made: Any, moment: float) -> int:
    """The exit code of a run in which something was killed."""
    with subprocess.Popen(command, cwd=place) as started:
        if what != "command":
            wait_for_workers(2)  # a moment before there are any says nothing
        time.sleep(moment)
        if what == "command":
            for child in psutil.process_iter():
                if _is_run_of(child, place):
                    kill(child)
        elif what == "worker":
            for process in worker_processes()[:1]:
                kill(process)
        else:
            made.remove_node(sorted(made.worker_nodes, key=id)[0], allow_graceful=False)
        code = started.wait(120)
    if what == "node":
        made.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 << 20, include_dashboard=False)
    return code


def _is_run_of(process: psutil.Process, place: str) -> bool:
    """True for the fork of the warm server that is the command."""
    try:
        return "warm_command.py" in " ".join(process.cmdline()) and process.cwd() == place
    except psutil.Error:
        return False


def _check(output: Path, media: int, questions: int) -> None:
    import pandas

    rows = pandas.read_parquet(output)
    ids, keys = rows["id"].nunique(), rows["fingerprint"].nunique()
    if len(rows) != media * questions or keys != len(rows) or ids != media:
        raise SystemExit(f"{output}: {len(rows)} rows, {keys} different ones, {ids} media")
    if left := list((output / ".llava-mini").glob("parts-*")):
        raise SystemExit(f"{output}: {left} are left")


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "rows", "deaths"])
    parser.add_argument("--media", type=int, default=300)
    parser.add_argument("--wait", type=float, default=0.05, help="seconds of work for a medium")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.media, given.wait)
    elif given.what == "rows":
        rows(given.rows)
    else:
        deaths(given.times, given.seed)


if __name__ == "__main__":
    import workers  # so that its classes have a name that workers know them by

    workers.main()
