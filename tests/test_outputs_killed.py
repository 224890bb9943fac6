"""Runs that are killed, at random moments and at every file operation, and the same command after them.

Whatever happened before: exactly one row for each item and prompt, and no file that does not belong there.
"""

import csv
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import killed_runs
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

MEDIA = 30
KILLS = 10
PROMPTS = ("-p", "what=What?", "-p", "Why?")
BROKEN = {3: "broken", 7: "", 11: "unopenable"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with media, and beside it what runs say."""
    folder = tmp_path / "work"
    (folder / "media").mkdir(parents=True)
    for number in range(MEDIA):
        (folder / "media" / f"{number:02}.mp4").write_text(BROKEN.get(number, "2"))
    return folder


def command(output: str, *more: str) -> Sequence[str]:
    return ("ask", "media", *PROMPTS, "-m", "echo", "-o", output, *more)


def rows(folder: Path, output: str) -> list[dict[str, Any]]:
    path = folder / output
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))
    return pq.read_table(path).to_pylist()


def check_finished(folder: Path, output: str) -> None:
    """Every item and prompt once, with the status it should have; nothing else is left."""
    got = Counter((row["file_name"], row["prompt"], row["status"]) for row in rows(folder, output))
    assert got == Counter(
        (f"{number:02}.mp4", prompt, "error" if number in BROKEN else "ok")
        for number in range(MEDIA)
        for prompt in ("What?", "Why?")
    )
    name = output.rstrip("/")
    companions = set() if output.endswith("/") else {f".{name}.llava-mini"}
    assert {path.name for path in folder.iterdir()} == {"media", name} | companions
    if output.endswith("/"):
        hidden = sorted(path.name for path in (folder / name).glob(".*"))
        assert hidden == [".llava-mini"]
        assert sorted(path.name for path in (folder / name / ".llava-mini").iterdir()) == ["lock", "run"]
    if "parquet" in output or output.endswith("/"):
        files = f"{output}*.parquet" if output.endswith("/") else output
        counted = duckdb.sql(f"SELECT count(DISTINCT fingerprint), count(*) FROM '{folder}/{files}'").fetchall()
        assert counted == [(MEDIA * 2, MEDIA * 2)]
    assert not (folder.parent / "stdout").read_text()
    assert "Traceback" not in (folder.parent / "stderr").read_text()


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "media":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_finished(folder: Path, output: str) -> None:
    """Runs the command to its end, and keeps what it wrote beside the folder, for `put_finished`."""
    assert killed_runs.run(folder, *command(output)) == 3, (folder.parent / "stderr").read_text()
    shutil.copytree(folder, folder.parent / "finished", ignore=shutil.ignore_patterns("media"))
    clear(folder)


def put_finished(folder: Path) -> None:
    """What the finished run wrote, with its times."""
    shutil.copytree(folder.parent / "finished", folder, dirs_exist_ok=True)


PACE = 0.004  # seconds a medium: a run takes about a quarter of a second


def length_of_a_run(folder: Path, output: str) -> float:
    """Seconds, without the start of the server, for which the very first run waits; the output is taken away again."""
    assert killed_runs.run(folder, *command(output)) == 3, (folder.parent / "stderr").read_text()
    clear(folder)
    began = time.monotonic()
    process = killed_runs.start(folder, *command(output), pace=PACE)
    process.join(60)
    assert process.exitcode == 3, (folder.parent / "stderr").read_text()
    seconds = time.monotonic() - began
    check_finished(folder, output)
    clear(folder)
    return seconds


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("out.parquet", signal.SIGKILL),
        ("out.jsonl", signal.SIGKILL),
        ("out/", signal.SIGKILL),
        ("out.parquet", signal.SIGTERM),
    ],
)
def test_killed_at_random_moments(folder: Path, output: str, number: signal.Signals) -> None:
    """Two chains of five killed runs, each with a run that comes to its end behind it; all moments are tried below."""
    seconds = length_of_a_run(folder, output)
    moments = random.Random(f"{output}{number}")
    codes: set[int | None] = set()
    for kill in range(1, KILLS + 1):
        process = killed_runs.start(folder, *command(output), pace=PACE)
        time.sleep(moments.uniform(0.02, seconds))
        if process.is_alive() and process.pid is not None:
            (process.kill if number == signal.SIGKILL else process.terminate)()
        process.join(60)
        codes.add(process.exitcode)
        if kill % 5 == 0:
            assert killed_runs.run(folder, *command(output)) == 3, (folder.parent / "stderr").read_text()
            check_finished(folder, output)
            clear(folder)
    # 3: it was over before; -15: the signal came before the run had taken it into its own hands
    assert codes <= ({3, -9} if number == signal.SIGKILL else {3, 143, -15})
    assert codes & {-9, 143}


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl", "out.csv", "out/"])
@pytest.mark.parametrize("again", ["anew", "grown"])
def test_killed_at_every_file_operation(folder: Path, output: str, again: str) -> None:
    """A run that begins, or one that goes on with a finished output and replaces rows in it."""
    for path in sorted((folder / "media").iterdir())[6:]:
        path.rename(folder.parent / path.name)
    later = [folder.parent / f"{number:02}.mp4" for number in range(6, MEDIA)]
    keep_finished(folder, output)
    operations = 0
    while True:
        operations += 1
        if again == "grown":
            put_finished(folder)
            (folder / "media" / "03.mp4").write_text("3")  # a file that changes
            shutil.copy(later[0], folder / "media")
        code = killed_runs.run(folder, *command(output, "--retry-errors"), kill_at=operations)
        assert code in (-9, 0, 3), (folder.parent / "stderr").read_text()
        assert killed_runs.run(folder, *command(output)) in (0, 3), (folder.parent / "stderr").read_text()
        names = [path.name for path in (folder / "media").iterdir()]
        got = Counter((row["file_name"], row["prompt"]) for row in rows(folder, output))
        assert got == Counter((name, prompt) for name in names for prompt in ("What?", "Why?")), operations
        assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".parts")], operations
        if again == "grown":
            assert {row["text"] for row in rows(folder, output) if row["file_name"] == "03.mp4"} == {
                "What? [3]",
                "Why? [3]",
            }
            (folder / "media" / later[0].name).unlink()
            (folder / "media" / "03.mp4").write_text("broken")
        clear(folder)
        if code != -9:  # there are no more operations
            break
    assert operations > 5


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl", "out.csv", "out/"])
def test_killed_between_the_stretches_of_a_video(folder: Path, output: str) -> None:
    """A run that is killed again and again, each time a few answers on, asks about each stretch once."""
    for path in (folder / "media").iterdir():
        path.unlink()
    seconds = {"a.mp4": 23, "b.mp4": 12}
    for name, length in seconds.items():
        (folder / "media" / name).write_text(str(length))
    asked, steps = command(output, "--every", "2s", "--whole"), iter((1, 2, 4, 3, 5))
    codes = [killed_runs.run(folder, *asked, kill_at_step=step) for step in steps]
    assert codes == [-9] * 5, (folder.parent / "stderr").read_text()
    assert killed_runs.run(folder, *asked) == 0, (folder.parent / "stderr").read_text()
    assert "were there" in (folder.parent / "stderr").read_text().splitlines()[-1]
    got = Counter((row["file_name"], row["prompt"], int(row["segment"] or 0)) for row in rows(folder, output))
    assert got == Counter(
        (name, prompt, number)
        for name, length in seconds.items()
        for number in range(1 + -(-length // 2))
        for prompt in ("What?", "Why?")
    )


@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_overwrite_killed_at_every_file_operation_goes_on_without_the_flag(folder: Path, output: str) -> None:
    for path in sorted((folder / "media").iterdir())[6:]:
        path.unlink()
    keep_finished(folder, output)
    operations, code = 0, -9
    while code == -9:
        operations += 1
        put_finished(folder)
        code = killed_runs.run(folder, *command(output, "--overwrite"), kill_at=operations)
        assert code in (-9, 3), (folder.parent / "stderr").read_text()
        assert killed_runs.run(folder, *command(output)) == 3, (folder.parent / "stderr").read_text()
        got = Counter((row["file_name"], row["prompt"]) for row in rows(folder, output))
        assert got == Counter((f"{n:02}.mp4", prompt) for n in range(6) for prompt in ("What?", "Why?")), operations
        assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".parts")], operations
        clear(folder)
    assert operations > 5


def test_two_shards_at_once_killed_at_random_moments(folder: Path) -> None:
    seconds = length_of_a_run(folder, "out/") / 2
    moments = random.Random(7)
    for kill in range(1, KILLS // 2 + 1):
        shards = [killed_runs.start(folder, *command("out/", "--shard", f"{n}/2"), pace=PACE) for n in (1, 2)]
        for shard in moments.sample(shards, 2):
            time.sleep(moments.uniform(0.0, seconds))
            shard.kill()
        for shard in shards:
            shard.join(60)
            assert shard.exitcode in (-9, 0, 3), (folder.parent / "stderr").read_text()
        if kill % 5 == 0:
            shards = [killed_runs.start(folder, *command("out/", "--shard", f"{n}/2")) for n in (1, 2)]
            for shard in shards:
                shard.join(60)
                assert shard.exitcode in (0, 3), (folder.parent / "stderr").read_text()
            names = [path.name for path in (folder / "out").glob("*.parquet")]
            assert any("-1of2-" in name for name in names)
            assert any("-2of2-" in name for name in names)
            assert killed_runs.run(folder, *command("out/")) == 3  # nothing left to do
            check_finished(folder, "out/")
            clear(folder)


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_rows_can_be_read_while_a_run_goes_on(folder: Path, output: str) -> None:
    """As `jq` would read the lines, and any reader of a folder the parts."""
    process = killed_runs.start(folder, *command(output), pace=0.02)
    seen: list[int] = []
    texts: list[str] = []
    parts = folder / f"{output}.parts"
    while process.is_alive():
        if output == "out.jsonl" and (folder / output).exists():
            texts.append((folder / output).read_text())  # for a moment the system may show a line up to a page's end
            seen.append(len([json.loads(line) for line in texts[-1].split("\n")[:-1]]))
        elif output == "out.parquet" and list(parts.glob("*.parquet")):
            try:
                count = ds.dataset(parts).count_rows()
            except FileNotFoundError:
                count = 0
            if (folder / output).exists():  # the parts have become the file, and go
                break
            seen.append(count)
        time.sleep(0.005)
    process.join(60)
    assert process.exitcode == 3
    assert len(set(seen)) > 3
    assert seen == sorted(seen)
    assert all((folder / output).read_text().startswith(text) for text in texts)
    check_finished(folder, output)
