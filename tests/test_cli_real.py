"""The installed command with the real parts: a tiny model, real decoders, real files."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.formats.row import COLUMNS
from llava_mini_cli.media.child import Command
from llava_mini_cli.media.decoders import DECODERS

LLAVA_MINI = str(Path(sys.executable).with_name("llava-mini"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a short and a long video, a picture and some bad files."""
    from tiny_checkpoints import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("place")
    write_tiny_checkpoint(folder / "tiny")
    for name, seconds in {"clip.mp4": 3, "long.mp4": 120}.items():
        source = f"testsrc2=duration={seconds}:size=160x120:rate=10"
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", source]
        quick = ["-preset", "ultrafast", "-pix_fmt", "yuv420p"]
        subprocess.run([*ffmpeg, *quick, str(folder / name)], check=True)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    (folder / "text.mp4").write_text("hello\n" * 100)
    (folder / "empty.mp4").touch()
    return folder


def said(stderr: str) -> list[str]:
    """The lines on standard error, without those that tell how far a slow machine is."""
    return [line for line in stderr.splitlines() if " media/s" not in line]


def run(folder: Path, *arguments: str, command: str | Path = LLAVA_MINI) -> subprocess.CompletedProcess[str]:
    return subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_ask_about_everything_at_once(place: Path) -> None:
    media = ["clip.mp4", "red.png", "text.mp4", "empty.mp4", "gone.mp4"]
    done = run(place, "ask", *media, "-p", "what=What is shown?", "-p", "Why?", "-m", "tiny", "--max-new-tokens", "4")
    assert done.returncode == 3
    parsed = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(list(row) == [column.name for column in COLUMNS] for row in parsed)
    assert sorted((row["file_name"], row["media"], row["frame_count"], row["error_type"]) for row in parsed) == [
        ("clip.mp4", "video", 3, None),
        ("clip.mp4", "video", 3, None),
        ("empty.mp4", None, None, "empty"),
        ("empty.mp4", None, None, "empty"),
        ("gone.mp4", None, None, "not_found"),
        ("gone.mp4", None, None, "not_found"),
        ("red.png", "image", 1, None),
        ("red.png", "image", 1, None),
        ("text.mp4", None, None, "unreadable"),
        ("text.mp4", None, None, "unreadable"),
    ]
    for row in parsed:
        if row["status"] == "ok":
            assert row["model"] == "tiny"
            assert row["completion_tokens"] == 4 or row["finish_reason"] != "length"
            assert isinstance(row["text"], str)
    *errors, summary = said(done.stderr)
    assert sorted(line.split(": ")[2] for line in errors) == ["empty.mp4", "gone.mp4", "text.mp4"]
    assert "4 answers, 6 failed" in summary


@pytest.fixture(scope="module")
def warm(warm_command: Path) -> Path:
    """The command without its cold start, which the tests above and below show."""
    return warm_command / "llava-mini"


def test_a_damaged_checkpoint_is_one_line_and_exit_1(place: Path, warm: Path) -> None:
    broken = place / "broken"
    broken.mkdir()
    for path in (place / "tiny").iterdir():
        if path.name != "model.safetensors":
            (broken / path.name).symlink_to(path)
    (broken / "model.safetensors").write_bytes((place / "tiny" / "model.safetensors").read_bytes()[:1000])
    done = run(place, "ask", "red.png", "What?", "-m", "broken", command=warm)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llava-mini: error: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_hub_id_fails_offline_sooner_than_an_answer_comes(place: Path, warm: Path) -> None:
    """Within 5 seconds beside that, by the same clock, since the machine may be busy with other things."""
    began = time.monotonic()
    asked = ("ask", "red.png", "What?", "--max-new-tokens", "1")
    assert run(place, *asked, "-m", "tiny", command=warm).returncode == 0
    answered = time.monotonic()
    done = run(place, *asked, "-m", "nobody/no-such-model", command=warm)
    assert time.monotonic() - answered < answered - began + 5
    assert (done.returncode, done.stdout) == (1, "")
    assert "hf download nobody/no-such-model" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_leaves_no_child_and_no_shared_memory(place: Path) -> None:
    before = shared_memory()
    command = [LLAVA_MINI, "ask", "long.mp4", "What?", "-m", "tiny", "--fps", "10"]
    process = psutil.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (children := process.children(recursive=True)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)
    children = process.children(recursive=True) or children
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "llava-mini: error: interrupted by SIGINT\n")
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    new, deadline = shared_memory() - before, time.monotonic() + 60
    while left := new & shared_memory():  # what tests beside this one have there goes away
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def shared_memory() -> set[str]:
    """The names of what lies in shared memory."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()


def test_a_decoder_that_never_returns_becomes_a_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders hang, deaf to SIGTERM; each is killed at the deadline."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    for name, decoder in dict(DECODERS).items():
        hung = replace(decoder, command=lambda plan: Command((sys.executable, "-c", code)))
        monkeypatch.setitem(DECODERS, name, hung)  # pyright: ignore[reportArgumentType]
    monkeypatch.chdir(place)
    others = psutil.Process().children(recursive=True)  # such as the fork server of the tests before
    began = time.monotonic()
    result = CliRunner().invoke(app, ["ask", "clip.mp4", "What?", "-m", "tiny", "--decode-timeout", "2"])
    assert time.monotonic() - began < 2 * 2 + 30  # two decoders, and the time it takes to load a model
    assert result.exit_code == 3
    row = json.loads(result.stdout)
    assert (row["status"], row["error_stage"], row["error_type"]) == ("error", "decode", "timeout")
    assert len(said(result.stderr)) == 1
    assert not set(psutil.Process().children(recursive=True)) - set(others)


def test_a_decoder_that_reads_what_is_not_its_own_becomes_a_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux" or ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 1:
        pytest.skip("this kernel has no Landlock")
    (place / "secret.txt").write_text("a secret")
    code = f"open('clip.mp4').close(); print(open({str(place / 'secret.txt')!r}).read())"
    nosy = replace(DECODERS["decord"], command=lambda plan: Command((sys.executable, "-c", code), reads=(plan.path,)))
    monkeypatch.setitem(DECODERS, "decord", nosy)  # pyright: ignore[reportArgumentType]
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, ["ask", "clip.mp4", "What?", "-m", "tiny", "--decoder", "decord"])
    assert result.exit_code == 3
    row = json.loads(result.stdout)
    assert (row["status"], row["error_stage"], row["error_type"]) == ("error", "decode", "corrupt")
    assert row["error"] == f"PermissionError: [Errno 13] Permission denied: '{place}/secret.txt'"


def test_a_prompt_too_long_says_how_many_frames_would_fit(place: Path, warm: Path) -> None:
    done = run(place, "ask", "clip.mp4", "Why?", "-m", "tiny", "--max-new-tokens", "16380", command=warm)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error_type"] == "too_long"
    assert len(said(done.stderr)) == 1
    assert "fit" in done.stderr


def test_doctor_reports_what_is_here(place: Path, warm: Path) -> None:
    done = run(place, "doctor", "-m", "tiny", command=warm)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert {"llava-mini", "python", "torch", "device", "decord", "ffmpeg", "model"} <= set(names)


def test_doctor_works_without_torch(place: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from llava_mini_cli.__main__ import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "-m", "tiny"], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "llava-mini: error: torch cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr
