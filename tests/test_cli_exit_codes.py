"""Each exit code of the documentation, through the installed command; stdout holds rows and nothing else."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

COMMAND = str(Path(sys.executable).parent / "llava-mini")
QUICK = ["-m", "demo", "--max-new-tokens", "1"]


@pytest.fixture(autouse=True)
def media(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warm_command: Path) -> None:
    monkeypatch.setenv("PATH", f"{warm_command}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("a.png")
    Path("empty.mp4").touch()


def run(*arguments: str, stdin: str = "") -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, rows and what was said; every line of stdout must be a row."""
    done = subprocess.run(
        ["llava-mini", *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all({"id", "status", "fingerprint"} <= row.keys() for row in rows)
    return done.returncode, rows, done.stderr


def test_0_every_item_has_a_good_row_and_then_there_is_nothing_to_do() -> None:
    code, rows, said = run("caption", "a.png", *QUICK)
    assert (code, [row["status"] for row in rows]) == (0, ["ok"]), said
    again = ["caption", "a.png", *QUICK, "-o", "out.jsonl"]
    assert run(*again)[:2] == (0, [])
    before = Path("out.jsonl").read_bytes()
    assert run(*again)[:2] == (0, [])
    assert Path("out.jsonl").read_bytes() == before


def test_1_the_run_failed() -> None:
    code, rows, said = run("caption", "a.png", "-m", "no/such-model")
    assert (code, rows) == (1, [])
    assert said.startswith("llava-mini: error: model no/such-model: not in the cache")


def test_1_whoever_read_the_rows_went_away() -> None:
    Path("list").write_text("gone.png\n" * 5000)
    with subprocess.Popen(
        [COMMAND, "caption", "--files-from", "list", "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_2_usage() -> None:
    assert run("caption", "a.png", "--fps", "0")[:2] == (2, [])


def test_3_some_items_failed() -> None:
    code, rows, said = run("caption", "gone.png", "empty.mp4")
    assert (code, [row["error_type"] for row in rows]) == (3, ["not_found", "empty"]), said
    assert run("caption", "gone.png", "--fail-on", "never")[0] == 0


def test_75_another_run_holds_the_output() -> None:
    with subprocess.Popen(
        [COMMAND, "caption", "--files-from", "-", "-o", "out.jsonl", *QUICK], stdin=subprocess.PIPE
    ) as first:
        deadline = time.monotonic() + 60
        while not is_locked(Path(".out.jsonl.llava-mini")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code, rows, said = run("caption", "a.png", *QUICK, "-o", "out.jsonl")
        assert (code, rows) == (75, [])
        assert said.count("\n") == 1
        assert "out.jsonl" in said
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(timeout=60) == 0


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_101_stopped_by_a_limit() -> None:
    for flag in ("--limit", "--max-failures"):
        code, rows, said = run("caption", "gone.png", "a.png", "gone2.png", flag, "1")
        assert (code, [row["id"] for row in rows]) == (101, ["gone.png"]), said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_and_143_interrupted_while_waiting_for_input(number: signal.Signals, code: int) -> None:
    """The end must not wait for a line that never comes, though a thread does."""
    with subprocess.Popen(
        [COMMAND, "caption", "--files-from", "-", "-o", "out.jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"gone.png\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not is_locked(Path(".out.jsonl.llava-mini")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert time.monotonic() - began < 15
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b""
        assert process.stderr.read().decode().splitlines()[-1] == f"llava-mini: error: interrupted by {number.name}"


def test_a_second_signal_ends_the_run_at_once() -> None:
    os.mkfifo("pipe.mp4")  # ffmpeg waits for its first byte
    with subprocess.Popen(
        [COMMAND, "caption", "pipe.mp4", "-v", *QUICK], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert b"loading demo" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (-signal.SIGINT, 130)
