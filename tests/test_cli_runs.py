"""How a run ends and what it says of itself: limits, the list of failures, the summary, the dry run. With doubles."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_doubles import EchoEngine, open_made_clip
from PIL import Image
from test_cli_process import DOUBLES, on_screen, run_at_terminal, start, wait_for
from typer.testing import CliRunner, Result

from llava_mini_cli import __version__
from llava_mini_cli.commands.main import app
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.errors import ModelNotFound


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load_echo(options: ModelOptions) -> EchoEngine:
        if options.model == "missing":
            raise ModelNotFound("model missing: no such directory")
        return EchoEngine(options)

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", load_echo)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.mp4": "4", "b.mp4": "broken", "c.mp4": "unopenable", "d.mp4": "2"}.items():
        Path(name).write_text(text)


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def ids(result: Result) -> list[str]:
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def test_limit_stops_with_101_when_work_is_left() -> None:
    stopped = llava_mini("ask", "a.mp4", "d.mp4", "-p", "What?", "--limit", "1")
    assert (stopped.exit_code, ids(stopped)) == (101, ["a.mp4"])
    whole = llava_mini("ask", "a.mp4", "d.mp4", "-p", "What?", "--limit", "2")
    assert (whole.exit_code, ids(whole)) == (0, ["a.mp4", "d.mp4"])


def test_max_failures_stops_with_101() -> None:
    media = ["a.mp4", *(f"gone{number}.mp4" for number in range(9)), "d.mp4"]
    result = llava_mini("ask", *media, "-p", "What?", "-p", "Why?", "--max-failures", "2", "--fail-on", "never")
    assert result.exit_code == 101
    failed = [name for name in ids(result) if name != "a.mp4"]  # which was being answered meanwhile
    assert failed == ["gone0.mp4", "gone0.mp4", "gone1.mp4", "gone1.mp4"]
    assert result.stderr.splitlines()[-1].endswith(", stopped by --max-failures")


@pytest.mark.parametrize("flag", ["--limit", "--max-failures"])
def test_limits_are_checked(flag: str) -> None:
    result = llava_mini("ask", "a.mp4", "What?", flag, "0")
    assert (result.exit_code, result.stderr) == (2, f"llava-mini: error: {flag} must be at least 1, not 0\n")


def test_failed_media_are_listed_at_the_end_twenty_at_most() -> None:
    gone = [f"gone{number:02}.mp4" for number in range(33)]
    result = llava_mini("ask", *gone, "a.mp4", "-p", "What?", "-p", "Why?", "-q")
    assert result.exit_code == 3
    listed = [f"llava-mini: error: {name}: no such file" for name in gone[:20]]
    assert result.stderr.splitlines() == [*listed, "llava-mini: error: and 13 more failed"]


def test_a_run_without_anything_to_do_says_so() -> None:
    Path("list.txt").touch()
    result = llava_mini("caption", "--files-from", "list.txt")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "llava-mini: there is nothing to do\n")
    assert llava_mini("caption", "--files-from", "list.txt", "-q").stderr == ""


def test_failures_are_said_as_they_come_with_v() -> None:
    lines = llava_mini("ask", "c.mp4", "a.mp4", "-p", "What?", "-p", "Why?", "-v").stderr.splitlines()
    assert lines.count("c.mp4: failed: holds no video") == 1
    assert lines.index("c.mp4: failed: holds no video") < lines.index("a.mp4: video, 64x48, 4.0 s, made")


def test_warnings_are_counted_beyond_twenty() -> None:
    for number in range(30):
        Path(f"w{number:02}.mp4").write_text("1")
    lines = llava_mini("caption", *(f"w{number:02}.mp4" for number in range(30))).stderr.splitlines()
    assert lines[:20] == [f"llava-mini: warning: w{number:02}.mp4: read 1 frames" for number in range(20)]
    assert lines[20] == "llava-mini: warning: and 10 more warnings; they stand in their rows"


def summary_of(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = llava_mini(*arguments, "--summary-json", "summary.json")
    return result.exit_code, json.loads(Path("summary.json").read_text())


def test_the_summary_counts_a_run() -> None:
    media = ["a.mp4", "b.mp4", "c.mp4", "gone.mp4", "d.mp4"]
    code, told = summary_of("ask", *media, "-p", "What?", "-p", "Why?", "-o", "out.jsonl", "--fps", "2")
    assert code == told["exit_code"] == 3
    assert told["version"] == __version__
    assert (told["media"], told["media_failed"], told["rows_answered"], told["rows_failed"]) == (5, 3, 4, 6)
    assert told["failures"] == {"corrupt": 2, "no_video": 2, "not_found": 2}
    assert [failed["id"] for failed in told["failed"]] == ["b.mp4", "c.mp4", "gone.mp4"] or len(told["failed"]) == 3
    assert told["failed"][-1].keys() == {"id", "error_type", "error"}
    assert (told["frames"], told["output"], told["error"], told["stopped_by"]) == (7, "out.jsonl", None, None)
    assert told["settings"]["frames"]["fps"] == 2
    assert told["seconds"] >= 0


@pytest.mark.parametrize(
    ("arguments", "code", "stopped_by", "error"),
    [
        (["-m", "missing"], 1, None, "model missing: no such directory"),
        (["--limit", "1"], 101, "limit", None),
    ],
)
def test_the_summary_is_written_whichever_way_a_run_ends(
    arguments: list[str], code: int, stopped_by: str | None, error: str | None
) -> None:
    got, told = summary_of("ask", "a.mp4", "d.mp4", "-p", "What?", *arguments)
    assert (got, told["exit_code"], told["stopped_by"], told["error"]) == (code, code, stopped_by, error)


def test_an_interrupted_run_writes_its_summary(tmp_path: Path) -> None:
    Path("slow.mp4").write_text("slow")
    process = start(
        tmp_path, "ask", "a.mp4", "slow.mp4", "-p", "What?", "-o", "out.jsonl", "--summary-json", "summary.json"
    )
    wait_for(Path("out.jsonl"), "\n")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (143, b""), err
    told = json.loads(Path("summary.json").read_text())
    assert (told["exit_code"], told["error"]) == (143, "interrupted by SIGTERM")
    assert told["rows_answered"] == 1


def test_the_summary_goes_to_stdout_only_where_rows_do_not() -> None:
    result = llava_mini("ask", "a.mp4", "What?", "-o", "out.jsonl", "--summary-json", "-")
    assert json.loads(result.stdout)["rows_answered"] == 1
    refused = llava_mini("ask", "a.mp4", "What?", "--summary-json", "-")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "standard output holds the rows" in refused.stderr
    assert llava_mini("ask", "a.mp4", "What?", "--summary-json", "gone/x.json").exit_code == 2


def test_failures_at_a_terminal_are_a_table(tmp_path: Path) -> None:
    seen, code = run_at_terminal(tmp_path, "ask", "c.mp4", "gone.mp4", "a.mp4", "-p", "What?", TERM="dumb")
    assert code == 3
    lines = [line.rstrip() for line in on_screen(seen)]
    table = lines[next(at for at, line in enumerate(lines) if line.startswith("failed ")) :]
    assert [line.split() for line in table[1:3]] == [
        ["c.mp4", "no_video", "holds", "no", "video"],
        ["gone.mp4", "not_found", "no", "such", "file"],
    ]
    assert "3 media, 4 frames, 1 answers, 2 failed" in lines[-2]


# The dry run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("x", "y"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"")
    return tmp_path / "photos"


def test_a_dry_run_counts_and_does_nothing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(options: ModelOptions) -> EchoEngine:
        raise AssertionError

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", load)
    arguments = ["ask", "photos", "gone.mp4", "-p", "What?", "-p", "Why?", "-m", "demo", "-o", "out.parquet"]
    result = llava_mini(*arguments, "--dry-run", "--device", "cpu")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["media"], told["images"], told["videos"], told["rows"], told["rows_done"]) == (4, 2, 0, 8, 0)
    assert told["unreadable"] == {"empty": 1, "not_found": 1}
    assert (told["frames"], told["vision_tokens"]) == (2, 2)
    assert told["weights_bytes"] > 10_000_000
    # 4 layers x 6 heads x 32 x keys and values x 4 bytes, for 1 frame and 2 x 512 new tokens; and the token itself
    assert told["longest"]["memory_bytes"] == (1 + 2 * 512) * 6144 + 192 * 4
    assert not Path("out.parquet").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "photos"]


def test_a_dry_run_without_the_model_says_what_it_can(pictures: Path) -> None:
    told = json.loads(llava_mini("caption", "photos", "--dry-run", "--limit", "1").stdout)
    assert (told["media"], told["vision_tokens"], told["weights_bytes"]) == (1, None, None)


def test_a_dry_run_loads_no_torch(pictures: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llava_mini_cli.commands.main import app\n"
        "try:\n    app(['caption', 'photos', '--dry-run', '-m', 'demo'])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_at_a_terminal_is_a_table(pictures: Path, tmp_path: Path) -> None:
    seen, code = run_at_terminal(tmp_path, "caption", "photos", "--dry-run", "-m", "demo", TERM="dumb")
    assert code == 0
    assert ["media", "3", "(2", "images,", "0", "videos)"] in [line.split() for line in on_screen(seen)]


# The end


def test_a_run_ends_though_its_input_does_not(tmp_path: Path) -> None:
    """A picture that nobody can stop reading does not keep the process: here a double that sleeps for a minute."""
    Path("hang.mp4").write_text("hang")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, DOUBLES, "ask", "a.mp4", "hang.mp4", "d.mp4", "-p", "What?", "--decode-timeout", "0.5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["error_type"]) for row in rows] == [
        ("a.mp4", None),
        ("hang.mp4", "timeout"),
        ("d.mp4", None),
    ]
    assert done.returncode == 3
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_folders_hold_and_is_passed_over_is_said_once(more: tuple[str, ...]) -> None:
    for name in ("in/@eaDir/x.jpg", "in/y.psd", "in/sub/z.psd"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("a.mp4").rename("in/a.mp4")
    said = "llava-mini: passed over in folders: 2 .psd, 1 .jpg in @eaDir"
    result = llava_mini("ask", "in", "-p", "What?", *more)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"{said} (-v lists them)"
    assert result.stderr.count("passed over") == 1
    assert "passed over" not in llava_mini("ask", "in", "-p", "What?", "-q", *more).stderr
    verbose = [
        line for line in llava_mini("ask", "in", "-p", "What?", "-v", *more).stderr.splitlines() if "over" in line
    ]
    files = ["in/y.psd (.psd)", "in/@eaDir/x.jpg (.jpg in @eaDir)", "in/sub/z.psd (.psd)"]
    assert verbose == [*(f"passed over: {each}" for each in files), said]
