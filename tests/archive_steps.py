"""Steps that change an archive, each ended by SIGKILL at one of its file operations after the other.

Run as a program of its own, so that each step is a fork in which no library has begun a thread yet. Prints a line of
JSON for each end: what a reader found after it, and what was left after the next run.
"""

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas  # noqa: F401 - pyarrow imports both when it writes a table; here once for all forks
import pyarrow.pandas_compat  # noqa: F401
from test_formats_archive import add, header

from llava_mini_cli.formats.archive import part, writer
from llava_mini_cli.formats.archive.compact import compact
from llava_mini_cli.formats.archive.manifest import MANIFEST
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.writer import open_for_writing
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, search

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
SCANNER = Scanner(
    lambda path, rows, query, check: np.fromfile(path, "<f2").reshape(rows, -1).astype(np.float32) @ query,
    lambda batches, query: np.concatenate([batch.astype(np.float32) @ query for batch in batches]),
)


def index(folder: Path) -> None:
    """A changed medium, a new one and one that failed."""
    with open_for_writing(folder) as archive:
        archive.start(header("float32"))
        add(archive, "/x/2", seed=12, mtime=8)
        add(archive, "/x/new", seed=13)
        row = {"path": "/x/bad", "file_name": "bad", "size": 1, "mtime": 1, "status": "error"}
        archive.finish(archive.begin(), {**row, "error": "no", "error_type": "corrupt", "error_stage": "decode"})


def prune(folder: Path) -> None:
    """Two media of four, in parts that are full with one row."""
    writer.PART_ROWS = 1
    with open_for_writing(folder) as archive:
        archive.start(header("float32"))
        archive.drop(["/x/0", "/x/1"])


STEPS: dict[str, Callable[[Path], object]] = {"index": index, "prune": prune, "compact": compact}


def make(folder: Path) -> None:
    """Four media in as many parts; one of them was replaced, and a fifth was dropped."""
    part.GROUP_BYTES = 100
    for number in (*range(5), 1):
        with open_for_writing(folder) as archive:
            archive.start(header("float32"))
            add(archive, f"/x/{number}", seed=number, mtime=7)
    with open_for_writing(folder) as archive:
        archive.start(header("float32"))
        archive.drop(["/x/4"])


def seen(folder: Path) -> object:
    """All that searches and questions read."""
    with open_archive(folder) as archive:
        found = search(archive, np.array([0.5, -0.5, 0.5, 0.5], np.float32), SearchOptions(100), SCANNER)
        media = [
            (
                m.path,
                m.mtime_ns,
                [np.asarray(f).tolist() for f, _ in archive.features(m)],
                archive.captions(m)[0]["text"],
            )
            for m in archive.each_medium()
        ]
        moments = [[m.path, m.time, m.start, m.end, round(m.score, 5)] for m in found]
        return [moments, media, [f.path for f in archive.each_failure()], [d.file for d in archive.damage]]


def forked(act: Callable[[], object], told: Path | None = None) -> int:
    """How a fork ended that did something; what came of it is in `told`."""
    child = os.fork()
    if child == 0:
        try:
            result = act()
            if told is not None:
                told.write_text(json.dumps(result, default=str))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a fork must not go on as the program
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, folder: Path, act: Callable[[Path], object]) -> None:
    """Does something and kills this process before its file operation of that number."""
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        name = arguments[0] if event in OPERATIONS else None
        if isinstance(name, str | bytes | os.PathLike) and str(folder) in os.fsdecode(name):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    act(folder)


def main(base: Path, every: int) -> None:
    """The ends of every step, at each or at some of its operations."""
    gc.freeze()  # a collection in a fork would copy all that it looks at
    told = base / "told.json"
    forked(lambda: make(base / "made"))
    for name, act in STEPS.items():
        for number in range(1, 10_000, every):
            folder = base / "x"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(base / "made", folder)
            ended = forked(lambda: killed_at(number, folder, act))  # noqa: B023
            line = {"step": name, "number": number, "ended": ended}
            for when in ("after", "later"):
                if when == "later":  # the next run, which changes nothing by itself
                    forked(lambda: open_for_writing(folder).__enter__().close())  # noqa: B023
                    parts = json.loads((folder / MANIFEST).read_text())["parts"]
                    files = {f"{table}/part-{int(n):06d}" for n, facts in parts.items() for table in facts}
                    there = {f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*")}
                    line["strays"] = sorted(there ^ files) + sorted(path.name for path in folder.rglob("*.tmp"))
                line[when] = told.read_text() if forked(lambda: seen(folder), told) == 0 else None  # noqa: B023
            print(json.dumps(line), flush=True)
            if ended == 0:
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
