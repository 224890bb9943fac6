"""Config files, environment variables and flags: which wins, what is refused, and `llava-mini config`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from test_cli_words import Screen
from typer.main import get_command
from typer.testing import Result

from llava_mini_cli.commands.config_files import Kind, config_files, read_settings, user_file
from llava_mini_cli.commands.configured import options_of
from llava_mini_cli.commands.main import app
from llava_mini_cli.engine.estimate import Outlook
from llava_mini_cli.errors import UsageError
from llava_mini_cli.pipelines.health import Fact

engines = pytest.fixture(autouse=True)(echo_engines)


def write_user_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "home" / "llava-mini" / "config.toml").write_text(text)


def seed_asked_for(engines: list[EchoEngine]) -> int:
    return engines[-1].requests[-1].generation.seed


def test_a_file_may_begin_with_a_byte_order_mark(engines: list[EchoEngine]) -> None:
    Path("llava-mini.toml").write_bytes(b"\xef\xbb\xbfseed = 7\r\n")
    assert llava_mini("ask", "a.mp4", "What?").exit_code == 0
    assert seed_asked_for(engines) == 7


def test_a_flag_wins_over_the_environment_over_files(
    engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(*flags: str) -> int:
        assert llava_mini("ask", "a.mp4", "What?", *flags).exit_code == 0
        return seed_asked_for(engines)

    assert ask() == 0
    write_user_file("seed = 1\ntemperature = 0.5\n", tmp_path)
    assert ask() == 1
    Path("llava-mini.toml").write_text("seed = 2")
    assert ask() == 2
    assert engines[-1].requests[-1].generation.temperature == 0.5  # which only the user's file sets
    Path("llava-mini.toml").write_text("seed = 2\n[ask]\nseed = 3\n[caption]\nseed = 9")
    assert ask() == 3
    Path("own.toml").write_text("max-new-tokens = 7")
    assert ask("--config", "own.toml") == 0
    assert engines[-1].requests[-1].generation.max_new_tokens == 7
    monkeypatch.setenv("LLAVA_MINI_SEED", "4")
    assert ask() == 4
    assert ask("--seed", "5") == 5
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "own.toml")
    assert (ask(), engines[-1].requests[-1].generation.max_new_tokens) == (4, 7)


def test_a_commands_table_is_for_it_alone(engines: list[EchoEngine]) -> None:
    Path("llava-mini.toml").write_text("[caption]\nseed = 9\nprompt = ['sky=How is it?', 'Why?']")
    assert llava_mini("ask", "a.mp4", "What?").exit_code == 0
    assert seed_asked_for(engines) == 0
    result = llava_mini("caption", "a.mp4", "-q")
    assert seed_asked_for(engines) == 9
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["How is it? [4]", "Why? [4]"]


def test_values_are_read_as_if_they_were_typed(engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    # --compile is tried, here without the C++ compiler, with which `test_engine` compiles
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    Path("llava-mini.toml").write_text("end = '1m30s'\nstart = 80\ncompile = true\nprompt = 'x=Is it?'\nquiet = true")
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "llava-mini.toml")  # named: found there, it could not set all of these
    result = llava_mini("caption", "a.mp4")
    row = json.loads(result.stdout)
    assert (row["start"], row["end"], row["prompt_name"], row["prompt"]) == (80, 90, "x", "Is it?")
    assert engines[-1].options.compile
    assert result.stderr == ""
    monkeypatch.setenv("LLAVA_MINI_PROMPT", "Where is it?\nwho=Who is it?")
    monkeypatch.setenv("LLAVA_MINI_COMPILE", "no")
    lines = llava_mini("caption", "a.mp4").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["Where is it?", "Who is it?"]
    assert not engines[-1].options.compile
    assert llava_mini("caption", "a.mp4", "--no-quiet").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fps = 'fast'", "llava-mini.toml: fps: Input should be a valid number"),
        ("fps = 0", "llava-mini.toml: fps: --fps must be above 0"),
        ("[ask]\nmax-frames = 0", "llava-mini.toml: [ask] max-frames: --max-frames must be at least 1"),
        ("[ask]\nstart = 9\nend = 8", "llava-mini.toml: [ask] "),
        ("fsp = 1", "llava-mini.toml: fsp: not a flag of any command"),
        ("[doctor]\nfps = 1", "llava-mini.toml: [doctor] fps: not a flag of 'doctor'"),
        ("[look]\nfps = 1", "llava-mini.toml: [look]: no command has this name"),
        ("config = 'x.toml'", "llava-mini.toml: config: not a flag"),
        ("overwrite = 'yes'", "llava-mini.toml: overwrite: must be true or false, not 'yes'"),
        ("seed = true", "llava-mini.toml: seed: must be a text or a number, not True"),
        ("seed = [1, 2]", "llava-mini.toml: seed: takes one value, not a list"),
        ("prompt = [1979-05-27]", "llava-mini.toml: prompt: must be a text or a number"),
        ("fail-on = 'some'", "llava-mini.toml: fail-on: "),
        ("seed =", "llava-mini.toml: not a TOML file"),
    ],
)
def test_a_bad_file_is_a_usage_error_that_names_file_and_key(text: str, words: str, engines: list[EchoEngine]) -> None:
    Path("llava-mini.toml").write_text(text)
    result = llava_mini("ask", "a.mp4", "What?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"llava-mini: error: {words}")
    assert result.stderr.count("\n") == 1
    assert not engines


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, words in {"x": "Input should be a valid number", "0": "--fps must be above 0"}.items():
        monkeypatch.setenv("LLAVA_MINI_FPS", value)
        result = llava_mini("ask", "a.mp4", "What?")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"llava-mini: error: LLAVA_MINI_FPS: {words}")
    result = llava_mini("ask", "a.mp4", "What?", "--fps", "-1")
    assert result.stderr.startswith("llava-mini: error: --fps must be above 0")


def test_a_config_file_that_is_not_there_is_refused() -> None:
    result = llava_mini("ask", "a.mp4", "What?", "--config", "gone.toml")
    assert (result.exit_code, result.stderr) == (2, "llava-mini: error: --config 'gone.toml': no such file\n")


def test_doctor_reads_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "llava_mini_cli.pipelines.health.examine", lambda model: asked.append(model) or [Fact("model", model)]
    )
    measured = Outlook("cpu", None, "float32", ())
    monkeypatch.setattr(
        "llava_mini_cli.pipelines.model_outlook.measured_outlook", lambda model: asked.append(model) or measured
    )
    Path("llava-mini.toml").write_text("model = 'demo'")
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "llava-mini.toml")  # named: found there, it could not set all of these
    assert llava_mini("doctor").exit_code == 0
    assert asked == ["demo", "demo"]


def shown(result: Result) -> dict[tuple[str, str], dict[str, Any]]:
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {(line["option"], command): line for line in lines for command in line["commands"]}


def test_config_says_where_each_value_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_user_file("fps = 2\nmodel = 'demo'", tmp_path)
    Path("llava-mini.toml").write_text("[ask]\nfps = 4")
    monkeypatch.setenv("LLAVA_MINI_SEED", "7")
    monkeypatch.setenv("LLAVA_MINI_SEEED", "7")
    result = llava_mini("config")
    assert result.exit_code == 0
    assert result.stderr == "llava-mini: warning: LLAVA_MINI_SEEED is set, but no option has this name\n"
    values = shown(result)
    own = str(tmp_path / "home" / "llava-mini" / "config.toml")
    for option, command, *expected in (
        ("fps", "ask", 4.0, "file", "llava-mini.toml: [ask] fps"),
        ("fps", "caption", 2.0, "file", f"{own}: fps"),
        ("model", "doctor", "demo", "file", f"{own}: model"),
        ("seed", "ask", 7, "environment", "LLAVA_MINI_SEED"),
        ("top-p", "ask", 1.0, "default", None),
        ("output", "index", None, "required", None),
    ):
        line = values[option, command]
        assert [line["value"], line["source"], line["place"]] == expected


def test_config_reads_the_named_file_alone_and_refuses_a_bad_one(tmp_path: Path) -> None:
    write_user_file("fps = 2", tmp_path)
    Path("own.toml").write_text("seed = 3")
    values = shown(llava_mini("config", "--config", "own.toml"))
    assert (values["fps", "ask"]["source"], values["seed", "ask"]["value"]) == ("default", 3)
    Path("own.toml").write_text("seed = 'x'")
    result = llava_mini("config", "--config", "own.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("llava-mini: error: own.toml: seed: ")


def test_required_options_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "llava-mini.toml")  # named: found there, it could not set all of these
    Path("llava-mini.toml").write_text("[index]\noutput = 'archive'")
    value = shown(llava_mini("config"))["output", "index"]
    assert (value["value"], value["place"]) == ("archive", "llava-mini.toml: [index] output")


@pytest.mark.parametrize("command", ["ask", "caption", "when", "index", "search"])
def test_help_does_not_swallow_the_names_of_extras(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "needs the  extra" not in llava_mini(command, "--help").stdout


@pytest.mark.parametrize("command", ["ask", "caption", "when", "index", "search", "view", "train", "bench", "doctor"])
def test_every_switch_that_a_file_may_set_can_be_undone(command: str) -> None:
    options = options_of(get_command(app).commands[command])  # type: ignore[attr-defined]
    switches = {key: option for key, option in options.items() if option.is_flag}
    assert switches or command == "doctor"
    assert {key: option.secondary_opts for key, option in switches.items()} == {
        key: [f"--no-{key}"] for key in switches
    }


def test_help_and_completion_survive_a_bad_file() -> None:
    Path("llava-mini.toml").write_text("nonsense")
    for arguments in (["ask", "--help"], ["--help"], ["--version"]):
        assert llava_mini(*arguments).exit_code == 0


# The files by themselves

FLAGS = {"ask": {"fps": Kind(False, False), "prompt": Kind(False, True), "quiet": Kind(True, False)}, "doctor": {}}


def settings(text: str, command: str = "ask") -> dict[str, object]:
    Path("f.toml").write_text(text)
    return {key: setting.value for key, setting in read_settings((Path("f.toml"),), FLAGS, command)[0].items()}


def test_values_become_the_texts_that_would_be_typed() -> None:
    assert settings("fps = 2\nprompt = 'x'\nquiet = false") == {"fps": "2", "prompt": ["x"], "quiet": False}
    assert settings("fps = 0.5\nprompt = ['x', 3]\n[ask]\nfps = 1\nquiet = true") == {
        "fps": "1", "prompt": ["x", "3"], "quiet": True,
    }  # fmt: skip
    assert settings("fps = 2", "doctor") == {}
    assert settings("[doctor]") == {}


def test_later_files_win_and_say_where_a_value_stands() -> None:
    Path("a.toml").write_text("fps = 1\n[ask]\nprompt = 'a'")
    Path("b.toml").write_text("fps = 2")
    found, _ = read_settings((Path("a.toml"), Path("b.toml")), FLAGS, "ask")
    assert {key: str(setting) for key, setting in found.items()} == {
        "fps": "b.toml: fps", "prompt": "a.toml: [ask] prompt",
    }  # fmt: skip


def test_underscores_are_as_good_as_dashes(engines: list[EchoEngine]) -> None:
    Path("llava-mini.toml").write_text("max_new_tokens = 3")
    assert llava_mini("ask", "a.mp4", "What?").exit_code == 0
    assert engines[-1].requests[-1].generation.max_new_tokens == 3


def test_which_files_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "home" / "llava-mini" / "config.toml"
    assert config_files(None) == ()
    assert user_file() == own
    own.touch()
    Path("llava-mini.toml").touch()
    assert config_files(None) == (own, Path("llava-mini.toml"))
    assert config_files("llava-mini.toml") == (Path("llava-mini.toml"),)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_file() == tmp_path / ".config" / "llava-mini" / "config.toml"

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert user_file() is None
    assert config_files(None) == (Path("llava-mini.toml"),)


def test_a_file_that_cannot_be_read_is_named() -> None:
    Path("f.toml").mkdir()
    with pytest.raises(UsageError, match=r"^f.toml: cannot be read: is a directory$"):
        read_settings((Path("f.toml"),), FLAGS, "ask")
    Path("g.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"^g.toml: not a TOML file: "):
        read_settings((Path("g.toml"),), FLAGS, "ask")


def test_where_a_value_comes_from_and_how_it_is_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llava-mini.toml").write_text("quiet = true\nfps = 3")
    monkeypatch.setenv("LLAVA_MINI_CACHE_DIR", "/tmp/x")
    values = shown(llava_mini("config"))
    assert values["cache-dir", "ask"] == {
        "option": "cache-dir", "value": "/tmp/x", "source": "environment", "place": "LLAVA_MINI_CACHE_DIR",
        "commands": ["ask", "caption", "when", "index"],
    }  # fmt: skip
    every = ["ask", "caption", "when", "index", "search", "view", "inspect", "train", "bench"]
    assert values["quiet", "train"]["commands"] == every
    assert values["verbose", "doctor"]["source"] == "default"
    lines = [json.loads(line) for line in llava_mini("config").stdout.splitlines()]
    assert [line["commands"] for line in lines if line["option"] == "model"] == [
        ["ask", "caption", "when", "index", "inspect", "doctor"], ["search", "train", "bench"],
    ]  # fmt: skip


def test_config_at_a_terminal_is_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lines() -> tuple[dict[tuple[str, ...], list[str]], str]:
        """Words of each line by the first and the last, and what is said beside them."""
        out, err = Screen(), Screen()
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", out)
            patched.setattr("sys.stderr", err)
            with pytest.raises(SystemExit):
                app(["config"])
        rows = [line.split() for line in out.getvalue().splitlines()]
        return {tuple(row[:1] + row[-1:]): row[1:-1] for row in rows}, err.getvalue()

    table, said = lines()
    own = tmp_path / "home" / "llava-mini" / "config.toml"
    assert said == f"no config file; the usual ones are {own} and llava-mini.toml\n"
    assert table["option", "for"] == ["value", "from"]
    assert (table["--recursive", "default"], table["--include", "default"]) == (["true"], [])
    Path("llava-mini.toml").write_text("fps = 3\n[ask]\nprompt = ['a', 'b c']")
    table, said = lines()
    assert said == "config files: llava-mini.toml\n"
    assert table["--fps", "llava-mini.toml:"] == ["3.0"]
    assert table["--prompt", "ask"] == ["a,", "b", "c", "llava-mini.toml:"]
    assert table["--prompt", "when"] == ["default", "caption,"]
