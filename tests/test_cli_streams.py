"""Standard streams that are closed or full, a working directory that is gone: one line or none, never a traceback."""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli_doubles import EchoEngine, open_made_clip
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO
from llava_mini_cli.media.child import Child, Command

COMMAND = shlex.join([sys.executable, str(Path(__file__).parent / "cli_doubles.py")])


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_text("3")
    return tmp_path


def shell(folder: Path, line: str) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on standard output and lines on standard error of a shell's line."""
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2> >(head -n 1 >/dev/null)", "2>&- <&-"])
def test_rows_come_when_nobody_hears_what_is_said(media: Path, redirected: str) -> None:
    code, out, _ = shell(media, f"{COMMAND} ask a.mp4 gone.mp4 b.mp4 -p What? -v {redirected}")
    assert code == 3
    assert sorted(json.loads(line)["status"] for line in out) == ["error", "ok", "ok"]


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "arguments", ["ask a.mp4 What?", "ask a.mp4 What? --dry-run", "config", "doctor -m demo", "--help", "--version"]
)
def test_results_that_cannot_be_written_are_one_line(media: Path, arguments: str, redirected: str) -> None:
    code, out, err = shell(media, f"{COMMAND} {arguments} {redirected}")
    assert (code, out) == (1, [])
    said = [line for line in err if "standard output" in line]
    assert len(said) == 1
    assert said[0].startswith("llava-mini: error: cannot write ")
    assert "Traceback" not in "".join(err)


def test_a_summary_for_a_full_standard_output_is_one_line(media: Path) -> None:
    code, _, err = shell(media, f"{COMMAND} ask a.mp4 What? -o rows.jsonl --summary-json - -q >/dev/full")
    assert code == 1
    assert err == ["llava-mini: error: cannot write standard output: no space left on device"]
    assert len((media / "rows.jsonl").read_text().splitlines()) == 1


def test_all_streams_closed_end_with_an_exit_code(media: Path) -> None:
    assert shell(media, f"{COMMAND} ask a.mp4 What? -o rows.jsonl <&- >&- 2>&-")[0] == 0
    assert len((media / "rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("arguments", ["ask /a.mp4 What?", "config", "caption /photos --dry-run"])
def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "gone").mkdir()
    code, out, err = shell(tmp_path, f"cd gone && rmdir ../gone && {COMMAND} {arguments}")
    assert (code, out) == (1, [])
    assert err == ["llava-mini: error: the working directory is not there any more; change to one that is"]


class Faulty(EchoEngine):
    """An engine with a mistake of ours in it."""

    def step(self) -> list:  # pyright: ignore
        raise LookupError("no such thing")


def test_a_fault_of_ours_is_one_line_and_a_traceback_with_v(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", Faulty)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(media)
    result = CliRunner().invoke(app, ["ask", "a.mp4", "What?"])
    assert result.exit_code == 1
    assert result.stderr == (
        "llava-mini: error: LookupError: no such thing; this is a fault of llava-mini, -v shows where\n"
    )
    assert isinstance(CliRunner().invoke(app, ["ask", "a.mp4", "What?", "-v"]).exception, LookupError)


def test_an_error_of_the_system_is_not_blamed_on_standard_output(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(engine: EchoEngine) -> list[object]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.setattr(EchoEngine, "step", refuse)
    monkeypatch.chdir(media)
    result = CliRunner().invoke(app, ["ask", "a.mp4", "What?"])
    assert result.exit_code == 1
    assert "Too many open files; this is a fault of llava-mini" in result.stderr
    assert "standard output" not in result.stderr


@pytest.mark.parametrize(("more", "said"), [((), [KNOWN_TO_DEMO]), (("-q",), [])])
def test_the_demo_model_says_what_it_knows(
    media: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], said: list[str]
) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(media)
    known = [
        CliRunner().invoke(app, ["ask", "a.mp4", "What?", "-m", model, *more]) for model in ("demo", "other/model")
    ]
    assert [[line for line in done.stderr.splitlines() if "demo model" in line] for done in known] == [said, []]


def test_a_decoder_is_started_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    child = Child(Command((sys.executable, "-c", code), stdin=b"abc"), timeout=30)
    try:
        assert child.read_some() == b"cba"
    finally:
        child.close()
