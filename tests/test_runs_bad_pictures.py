"""400 pictures, of which one in twenty makes its decoder crash, hang or grow: 380 answers, 20 rows that say so."""

import json
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from child_processes import child_processes
from cli_doubles import EchoEngine
from picture_doubles import CRASH, GROW, HANG, acting_worker, decoded_by
from PIL import Image
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app

ACTS = {66: CRASH, 67: HANG, 68: GROW}
KINDS = {66: "corrupt", 67: "timeout", 68: "too_large"}


def used() -> int:
    """Resident bytes of this process and its children."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))


def test_one_in_twenty_pictures_misbehaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    widths = {f"{number:03d}.png": 66 + number // 20 % 3 if number % 20 == 7 else 60 for number in range(400)}
    for name, width in widths.items():
        Image.new("RGB", (width, 40)).save(tmp_path / name)
    sizes: list[int] = []
    done, before = threading.Event(), child_processes()

    def watch() -> None:
        while not done.wait(0.2):
            try:
                sizes.append(used())
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = set(threading.enumerate())
    with decoded_by(acting_worker(ACTS)):
        run = CliRunner().invoke(app, ["ask", str(tmp_path), "-p", "What?", "-q", "--decode-timeout", "3"])
        left = [process for process in child_processes() if process not in before]
        assert not left, [process.cmdline() for process in left]
    assert set(threading.enumerate()) <= threads
    done.set()
    watcher.join()
    assert run.exit_code == 3
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 400
    assert sum(row["status"] == "ok" for row in rows) == 380
    wrong = {row["file_name"]: row["error_type"] for row in rows if row["status"] == "error"}
    assert wrong == {name: KINDS[width] for name, width in widths.items() if width > 60}
    assert Counter(wrong.values()) == {"corrupt": 7, "timeout": 7, "too_large": 6}
    assert max(sizes[-10:]) < max(sizes[:10]) + (150 << 20)  # none of it is left
