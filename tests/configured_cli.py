"""The command with a double of the engine, in a working directory and with a config folder of its own."""

from pathlib import Path

import pytest
from cli_doubles import EchoEngine, open_made_clip
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.config import ModelOptions


def echo_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EchoEngine]:
    """Every engine that was loaded; the working directory holds one medium, and the user's config folder is empty."""
    loaded: list[EchoEngine] = []

    def load_echo(options: ModelOptions, **wishes: bool) -> EchoEngine:
        loaded.append(EchoEngine(options, **wishes))
        return loaded[-1]

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", load_echo)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "llava-mini").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("a.mp4").write_text("4")
    return loaded


def llava_mini(*arguments: str) -> Result:
    """A run of the command."""
    return CliRunner().invoke(app, list(arguments))
