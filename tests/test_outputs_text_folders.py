"""Captions whose folders cannot be had: each is the error of its medium, and the others are written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_doubles import EchoEngine, open_made_clip
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app


@pytest.fixture(autouse=True)
def media(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    for folder in ("open", "sealed"):
        Path(folder).mkdir()
        Path(folder, "a.jpg").write_text("1")


def errors_of_run(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["ask", *arguments, "-m", "echo", "-f", "txt", "--summary-json", "s.json"])
    assert result.exit_code == 3, result.output
    summary = json.loads(Path("s.json").read_text())
    assert (summary["rows_failed"], summary["failures"]) == (1, {"not_writable": 1})
    return [line for line in result.stderr.splitlines() if "error" in line]


@pytest.mark.parametrize("target", ["sealed", "out/sealed"])
def test_a_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    can_access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != target and can_access(path, mode))
    output = () if target == "sealed" else ("-o", "out")
    name = f"{target}/a.txt"
    words = f"cannot write '{name}': the folder '{target}' cannot be written to"
    (error,) = errors_of_run(".", "What?", *output)
    assert error.endswith(f"sealed/a.jpg: {words}")
    place = Path("out") if output else Path()
    assert [path.parent.name for path in place.rglob("a.txt")] == ["open"]


def test_a_folder_whose_name_is_too_long_in_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("sealed")
    monkeypatch.setattr("llava_mini_cli.formats.outputs.text_files._LONGEST_NAME", 20)
    long = "n" * 21  # bytes: as a member of an archive may have more than any disk's 255
    Path(long).mkdir()
    Path(long, "a.jpg").write_text("1")
    (error,) = errors_of_run(".", "What?", "-o", "out")
    assert error.endswith(f": the name of the folder '{'n' * 20}...' is too long")
    assert [path.parent.name for path in Path("out").rglob("a.txt")] == ["open"]
