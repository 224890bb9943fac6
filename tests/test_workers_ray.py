"""Whole runs over a Ray cluster of two nodes on this machine, against runs without it: rows, deaths, signals, words."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas
import psutil
import pyarrow.parquet as parquet
import pytest
from http_server import QuietHandler, serving
from PIL import Image
from ray_clusters import cluster, free_port, kill, wait_for_workers, worker_processes

from llava_mini_cli.workers.worker import PART_ROWS

MEDIA = 300
# Bounds tell a run that hangs from one that ends; on a busy machine a worker alone takes minutes to start.
HANG_S = 600.0
QUESTIONS = ("-p", "what=What is it?", "-p", "who=Who is it?", "-p", "Where?")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes, each with room for one worker."""
    with cluster(1, 1) as made:
        yield made.address


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for number in range(MEDIA):
        (folder / f"m{number:03}.mp4").write_text(str(number % 7 + 1))
    for name, text in texts.items():
        (folder / f"{name}.mp4").write_text(text)
    return folder


def shared(address: str) -> tuple[str, ...]:
    return "--ray", address, "--worker-gpus", "0"


def run(binaries: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [binaries / "llava-mini", *arguments], cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False
    )


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def as_set(found: list[dict[str, Any]]) -> set[str]:
    """Rows without the time of day."""
    return {json.dumps({**row, "created_at": None}, sort_keys=True) for row in found}


def test_the_rows_are_those_of_a_run_without_workers(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", m007="broken", m011="unopenable")
    asked = ("ask", "in", *QUESTIONS, "--yes-no")
    alone = run(warm_doubles, tmp_path, *asked)
    done = run(warm_doubles, tmp_path, *asked, *shared(address), "--workers", "2", "-o", "out.jsonl")
    assert (alone.returncode, done.returncode, done.stdout) == (3, 3, ""), done.stderr
    found = rows((tmp_path / "out.jsonl").read_text())
    assert len(found) == 3 * MEDIA
    assert as_set(found) == as_set(rows(alone.stdout))
    assert f"{MEDIA} media, " in done.stderr.splitlines()[-1]
    again = run(warm_doubles, tmp_path, *asked, "--ray", "127.0.0.1:1", "-o", "out.jsonl")  # nobody is asked
    assert again.returncode == 3
    assert f"{3 * MEDIA} were there" in again.stderr


def test_events_are_those_of_a_run_without_workers(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    write(tmp_path / "in")
    for name, more in {"alone": (), "shared": shared(address)}.items():
        done = run(
            warm_doubles, tmp_path, "when", "in", "Is it?", "-o", f"{name}.jsonl", "--track", f"{name}.csv", *more
        )
        assert done.returncode == 0, done.stderr
    assert as_set(rows((tmp_path / "shared.jsonl").read_text())) == as_set(rows((tmp_path / "alone.jsonl").read_text()))
    tracks = [(tmp_path / name).read_text().splitlines() for name in ("alone.csv", "shared.csv")]
    assert len(tracks[0]) == len(tracks[1]) > MEDIA


def test_a_medium_that_ends_its_worker_is_one_error_row(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", m123="exit")
    done = run(warm_doubles, tmp_path, "caption", "in", *shared(address), "-o", "-", "-q")
    found = rows(done.stdout)  # and nothing of Ray's among them
    failed = [row for row in found if row["status"] == "error"]
    assert (done.returncode, len(found), len(failed)) == (3, MEDIA, 1), done.stderr
    assert failed[0]["id"].endswith("m123.mp4")
    assert (failed[0]["error_type"], failed[0]["error_stage"]) == ("worker_died", "worker")
    assert failed[0]["error"].startswith("a worker died 3 times over it")
    assert done.stderr.count("\n") == 1


def test_a_killed_worker_costs_nothing(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    for medium in write(tmp_path / "in").iterdir():
        medium.write_text("wait 0.005")  # and no warning, so that workers write the rows themselves
    (tmp_path / "in" / "m000.mp4").write_text("wait 1")
    prompts = [f"--prompt=What is in part {number}?" for number in range(30)]
    with subprocess.Popen(
        [warm_doubles / "llava-mini", "ask", "in", *prompts, *shared(address), "-o", "out/", "-v"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        kill(wait_for_workers(2)[0])
        said = started.communicate(timeout=HANG_S)[1]
    assert started.returncode == 0, said
    assert "lost: worker" in said
    assert "it sends its rows" not in said
    found = pandas.read_parquet(tmp_path / "out")
    assert (len(found), found["id"].nunique(), found["fingerprint"].nunique()) == (30 * MEDIA, MEDIA, 30 * MEDIA)
    sizes = [parquet.read_metadata(path).num_rows for path in (tmp_path / "out").glob("*.parquet")]
    assert sum(PART_ROWS <= size < PART_ROWS + 30 for size in sizes) > 1
    assert not list((tmp_path / "out" / ".llava-mini").glob("parts-*"))


@contextmanager
def begun(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A run in a session of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", "import cli_doubles; cli_doubles.main()", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    ) as started:
        yield started


def test_a_signal_ends_everything(address: str, tmp_path: Path) -> None:
    write(tmp_path / "in", **{f"slow{number}": "slow" for number in range(4)})
    with begun(tmp_path, "caption", "in", *shared(address), "-o", "out.jsonl") as started:
        wait_for_workers(2)
        os.killpg(started.pid, signal.SIGINT)
        said = started.communicate(timeout=HANG_S)[1]
    assert started.returncode == 128 + signal.SIGINT, said
    wait_for_workers(0, 50)  # sooner than their slow media would end by themselves
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]


def test_a_signal_ends_what_a_ray_that_starts_has_started(tmp_path: Path) -> None:
    write(tmp_path / "in")
    with begun(tmp_path, "caption", "in", "--workers", "2", "-o", "out.jsonl") as started:
        of_ray = children_of_ray(started.pid)
        os.kill(started.pid, signal.SIGINT)  # and no signal for its children
        said = started.communicate(timeout=HANG_S)[1]
    assert started.returncode == 128 + signal.SIGINT, said
    assert psutil.wait_procs(of_ray, timeout=50)[1] == []
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]


def children_of_ray(pid: int) -> list[psutil.Process]:
    """What a command has started of a Ray of its own, at the moment when there is something."""
    end = time.monotonic() + HANG_S
    while not (found := psutil.Process(pid).children(recursive=True)):
        assert time.monotonic() < end, "no Ray was started"
        time.sleep(0.02)
    return found


def test_shipped_media_need_no_disk_in_common(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    write(tmp_path / "in")
    asked = ("caption", "in", "--limit", "200", "-f", "jsonl")
    done = run(warm_doubles, tmp_path, *asked, *shared(address), "--ship-media")
    alone = run(warm_doubles, tmp_path, *asked)
    assert (done.returncode, alone.returncode) == (101, 101), done.stderr
    assert as_set(rows(done.stdout)) == as_set(rows(alone.stdout))
    assert len(rows(done.stdout)) == 200
    assert not worker_processes()


def test_failures_end_a_run(address: str, warm_doubles: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", **{f"m{number:03}": "unopenable" for number in range(100)})
    asked = ("caption", "in", "--max-failures", "7", "-q", "-o", "out/")
    assert run(warm_doubles, tmp_path, *asked, *shared(address)).returncode == 101
    found = pandas.read_parquet(tmp_path / "out")
    assert (found["status"] == "error").sum() == 7
    assert found["id"].is_unique


def test_a_real_model_says_the_same_over_a_ray_of_the_runs_own(warm_command: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (64, 48 + number), colour).save(tmp_path / "in" / f"{colour}.png")
    asked = ("ask", "in", "What colour?", "-m", "demo", "-q", "-f", "jsonl")
    alone = run(warm_command, tmp_path, *asked)
    done = run(warm_command, tmp_path, *asked, "--workers", "2", "--worker-gpus", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert as_set(rows(done.stdout)) == as_set(rows(alone.stdout))
    assert len(rows(done.stdout)) == 4


OTHER = "import llava_mini_cli as package; package.__version__ = '9'; import cli_doubles; cli_doubles.main()"


def test_what_is_wrong_is_one_line(address: str, warm_command: Path, warm_doubles: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("1")
    nobody, doubles = f"127.0.0.1:{free_port()}", [str(warm_doubles / "llava-mini")]
    one = ("--workers", "1")
    with serving(QuietHandler) as url:
        other = url.removeprefix("http://")
        said = run(warm_doubles, tmp_path, "caption", "a.mp4", "--ray", other)
    assert said.stderr.startswith(f"llava-mini: error: --ray {other}: what answers there is no Ray head")
    for command, more, words in (
        (doubles, ("--ray", nobody), f"--ray {nobody}: nobody answers there (connection refused)"),
        (doubles, ("--ray", address, "--worker-gpus", "2"), f"takes 2 GPU, and the Ray cluster at {address} has none"),
        (doubles, ("--ray", address, *one), "--worker-gpus 0 works without"),
        ([sys.executable, "-c", OTHER], (*shared(address), *one), "and this is 9: both have to be the same"),
        ([str(warm_command / "llava-mini")], (*shared(address), *one, "-m", "./gone"), "./gone"),
    ):
        done = subprocess.run(
            [*command, "caption", "a.mp4", "-q", *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
