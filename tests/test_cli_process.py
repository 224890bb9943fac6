"""The command line in a process of its own, with doubles: signals, pipes and terminals."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DOUBLES = str(Path(__file__).parent / "cli_doubles.py")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name, text in {"a.mp4": "4", "b.mp4": "5", "slow.mp4": "slow"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, DOUBLES, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not (condition.exists() and text in condition.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_rows_so_far(media: Path, number: signal.Signals, code: int) -> None:
    process = start(media, "ask", "a.mp4", "slow.mp4", "-p", "What?", "-o", "out.jsonl")
    wait_for(media / "out.jsonl", "\n")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err.decode()
    assert out == b""
    assert err.decode().splitlines()[-1] == f"llava-mini: error: interrupted by {number.name}"
    (line,) = (media / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "What? [4]"


def test_a_signal_leaves_parts_that_can_be_read(media: Path) -> None:
    with start(media, "ask", "a.mp4", "slow.mp4", "-p", "What?", "-o", "out.parquet", "-v") as process:
        assert process.stderr is not None
        while b"slow.mp4" not in process.stderr.readline():
            pass
        time.sleep(0.3)  # a.mp4 is answered in the first step
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert b"written to out.parquet.parts" in err
    names = [".out.parquet.llava-mini", "a.mp4", "b.mp4", "out.parquet.parts", "slow.mp4"]
    assert sorted(path.name for path in media.iterdir()) == names
    code = "import pyarrow.parquet as pq; print(pq.read_table('out.parquet.parts').column('text').to_pylist())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=media, text=True) == "['What? [4]']\n"


def test_a_second_run_into_the_same_output_exits_75(media: Path) -> None:
    first = start(media, "ask", "a.mp4", "slow.mp4", "-p", "What?", "-o", "out.jsonl")
    wait_for(media / "out.jsonl", "\n")
    second = start(media, "ask", "a.mp4", "slow.mp4", "-p", "What?", "-o", "out.jsonl")
    out, err = second.communicate(timeout=20)
    assert (second.returncode, out) == (75, b"")
    assert err.decode() == f"llava-mini: error: another run (pid {first.pid}) is writing 'out.jsonl'\n"
    first.kill()
    first.communicate()
    third = start(media, "ask", "a.mp4", "b.mp4", "-p", "What?", "-o", "out.jsonl")  # the lock is gone with its holder
    _, err = third.communicate(timeout=20)
    assert third.returncode == 0, err
    assert len((media / "out.jsonl").read_text().splitlines()) == 2


def test_a_reader_that_goes_away_ends_the_run_quietly(media: Path) -> None:
    with start(media, "ask", *["a.mp4"] * 200, "-p", "What?", "-q") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=20) == 1


def run_at_terminal(folder: Path, *arguments: str, **environment: str) -> tuple[str, int]:
    """What a person sees on a terminal where both streams are shown, and the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, DOUBLES, *arguments], os.environ | environment)
    seen = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return seen.decode(), os.waitstatus_to_exitcode(status)


def on_screen(seen: str) -> list[str]:
    """The lines that stay: what a carriage return goes back over is overwritten."""
    lines = seen.replace("\r\n", "\n").split("\n")
    return [line.split("\r")[-1] for line in lines]


def test_one_answer_at_a_terminal_is_plain_text(media: Path) -> None:
    seen, code = run_at_terminal(media, "ask", "a.mp4", "What?", TERM="xterm")
    assert code == 0
    assert "frames" in seen  # the bar
    assert [line for line in on_screen(seen) if line.strip()] == [
        "What? [4]",
        "llava-mini: warning: a.mp4: read 4 frames",
    ]


@pytest.mark.parametrize(("environment", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False)])
def test_several_answers_at_a_terminal_are_blocks(media: Path, environment: dict[str, str], coloured: bool) -> None:
    seen, code = run_at_terminal(media, "ask", "a.mp4", "b.mp4", "-p", "who=Who?", "-p", "Why?", "-q", **environment)
    assert code == 0
    assert ("\x1b[1m" in seen) == coloured
    lines = [line.rstrip() for line in on_screen(re.sub(r"\x1b\[[0-9;]*m", "", seen))]
    assert [line for line in lines if line] == [
        "a.mp4", "  who", "    Who? [4]", "  Why?", "    Why? [4]",
        "b.mp4", "  who", "    Who? [5]", "  Why?", "    Why? [5]",
    ]  # fmt: skip


def test_no_color_is_honoured(media: Path) -> None:
    seen, _ = run_at_terminal(media, "ask", "a.mp4", "b.mp4", "-p", "Why?", "-q", TERM="xterm", NO_COLOR="1")
    assert "\x1b[3" not in seen


def test_rows_at_a_terminal_when_asked_for(media: Path) -> None:
    seen, _ = run_at_terminal(media, "ask", "a.mp4", "Why?", "-q", "-o", "-")
    assert json.loads(seen)["text"] == "Why? [4]"
