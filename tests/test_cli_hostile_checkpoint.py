"""Every command with a checkpoint of somebody who means ill: one line on stderr, exit code 1, no question, no code run.

A traceback is for -v alone.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from archive_films import run
from PIL import Image
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.formats.archive.layout import ArchiveHeader
from llava_mini_cli.hub import model_digest

MINE = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def here(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a picture, a file of conversations, and the checkpoint `evil`, which is whole so far."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "evil")
    Image.new("RGB", (32, 32), "red").save("a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    Path("data.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}]))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    return tmp_path


def edit(name: str, **fields: object) -> None:
    path = Path("evil", name)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def needs_code() -> str:
    for name in ("evil/mine.py", "evil/clip/mine.py"):
        Path(name).write_text(MINE.format(str(Path("pwned").absolute())))
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    edit("config.json", auto_map={"AutoConfig": "mine.Mine"})
    return "tokenizer_config.json: auto_map: the tokenizer needs code of its own, which is not run"


def act() -> str:
    edit("config.json", hidden_act="__import__")
    return "config.json: hidden_act '__import__': must be one of"


def deep() -> str:
    Path("evil/config.json").write_text('{"a":' * 100_000)
    return "config.json: cannot be read (lists or objects too deep inside each other)"


def many_layers() -> str:
    edit("config.json", num_hidden_layers=10**6)
    return "config.json: num_hidden_layers 1000000: must be a whole number"


def pipe() -> str:
    Path("evil/config.json").unlink()
    os.mkfifo("evil/config.json")
    return "config.json: not a regular file"


def weights() -> str:
    Path("evil/model.safetensors").write_bytes(b"\xff" * 64)
    return "model.safetensors: damaged or unreadable ("


def list_of_shards() -> str:
    Path("evil/model.safetensors.index.json").write_text('{"weight_map": ["/etc/passwd"]}')
    return "weight_map ['/etc/passwd']: must be an object"


COMMANDS = {
    "ask": ["ask", "a.png", "What?", "-m", "evil"],
    "caption": ["caption", "a.png", "-m", "evil", "-o", "rows.jsonl"],
    "index": ["index", "a.png", "-o", "new.index", "-m", "evil"],
    "train": ["train", "--data", "data.json", "-m", "evil", "-o", "run"],
}


@pytest.mark.parametrize("damage", [needs_code, act, deep, many_layers, pipe, weights, list_of_shards])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_in_one_line_what_is_wrong(here: Path, command: str, damage: Callable[[], str]) -> None:
    words = damage()
    done = run(*COMMANDS[command])
    assert (done.exit_code, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if line.startswith("llava-mini: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert "fault of llava-mini" not in done.stderr
    assert not Path("pwned").exists()


@pytest.mark.parametrize("damage", [act, deep, pipe])
def test_doctor_and_an_estimate_do_without_the_checkpoint(here: Path, damage: Callable[[], str]) -> None:
    damage()
    done = run("doctor", "-m", "evil")
    assert (done.exit_code, "Traceback" in done.stderr) == (1, False)  # it looks at the model that was named
    done = run("ask", "a.png", "What?", "-m", "evil", "--dry-run")
    assert (done.exit_code, "Traceback" in done.stderr) == (0, False)


def search(archive: Path) -> str:
    """What `search` says of an archive that was made with `evil`, which was given."""
    replace(ArchiveHeader.read(archive), model_digest=model_digest("evil")).write(archive)
    done = run("search", archive, "a circle", "-m", "evil")
    assert (done.exit_code, done.stdout, "Traceback" in done.stderr) == (1, "", False)
    assert not Path("pwned").exists()
    return done.stderr


def test_search_runs_no_code_of_a_tower(here: Path, archive: Path) -> None:
    copy = Path(shutil.copytree(archive, here / "copy"))
    demo = Path(sys.modules["llava_mini_cli.demo"].__file__ or "").parent / "model"
    shutil.rmtree("evil")
    shutil.copytree(demo, "evil")
    Path("evil/clip/mine.py").write_text(MINE.format(str(here / "pwned")))
    edit("clip/tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]}, tokenizer_class="Mine")
    assert "clip/tokenizer_config.json: auto_map: the tokenizer needs code of its own" in search(copy)
    edit("clip/config.json", text_config={"hidden_size": 96, "num_hidden_layers": 10**6})
    assert "clip/config.json: text_config: num_hidden_layers 1000000: must be" in search(copy)
    edit("clip/config.json", text_config=[])
    assert "clip/config.json: text_config []: must be an object" in search(copy)
    edit("config.json", mm_vision_tower=7)
    assert "config.json: mm_vision_tower 7: must be a text of at most" in search(copy)


def test_standard_input_is_the_lists_alone(here: Path, warm_command: Path) -> None:
    """Entries named `y` are media; nobody takes them for an answer."""
    needs_code()
    shutil.copy("a.png", "y")
    done = subprocess.run(
        [warm_command / "llava-mini", "ask", "--files-from", "-", "What?", "-m", "evil"],
        input="y\n" * 40, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "which is not run" in done.stderr
    assert "[y/N]" not in done.stderr
    assert not Path("pwned").exists()


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust."""


def test_a_panic_of_a_library_is_one_line_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Panic.__name__ = "PanicException"

    def panics(*_: object) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr("llava_mini_cli.pipelines.health.examine", panics)
    done = run("doctor")
    assert (done.exit_code, done.stderr) == (
        1, "llava-mini: error: PanicException: index out of bounds; this is a fault of llava-mini, -v shows where\n",
    )  # fmt: skip
    with pytest.raises(Panic):
        run("doctor", "-v")


def test_the_commands_leave_standard_input_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.StringIO("y\n" * 40)
    monkeypatch.setattr("sys.stdin", stdin)
    needs_code()
    assert run(*COMMANDS["ask"]).exit_code == 1
    assert stdin.tell() == 0
