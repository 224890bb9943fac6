"""What ask, caption and train hand on of their arguments, with doubles of what does the work."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.ask import split_question
from llava_mini_cli.commands.main import app
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT, STYLES
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.train.train_options import TrainOptions


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_question_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_question(["a", "b", "Why?"], alone=False) == (["a", "b"], (Prompt("Why?"),))
    assert split_question(["Why?"], alone=True) == ([], (Prompt("Why?"),))
    Path("file").touch()
    for arguments, alone, words in (
        ([], True, "there is no question: llava-mini ask MEDIA... QUESTION, or -p"),
        (["Why?"], False, "there is no medium: llava-mini ask MEDIA... QUESTION (got only 'Why?')"),
        (["file"], True, "'file' is a file, not a question: the question comes last, or with -p"),
        (["a", "."], False, "'.' is a folder, not a question: the question comes last, or with -p"),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
            split_question(arguments, alone=alone)


def test_what_ask_is_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr("llava_mini_cli.commands.ask.run_questions", lambda *given: asked.append(given[:2]) or 4)
    monkeypatch.setattr(
        "llava_mini_cli.commands.ask.ask_archive", lambda *given: asked.append((given[0], given[3])) or 5
    )
    monkeypatch.chdir(tmp_path)
    question = (Prompt("Why?"),)
    for arguments, code, what in (
        (["a", "Why?"], 4, (["a"], question)),
        (["a", "b", "-p", "Why?"], 4, (["a", "b"], question)),
        (["a", "--prompt-column", "q"], 4, (["a"], ())),
        (["--files-from", "list", "Why?"], 4, ([], question)),
        (["--files-from", "list", "-p", "Why?"], 4, ([], question)),
        (["--index", "archive", "Why?", "--fps", "2"], 5, (question, {"index", "fps"})),
    ):
        assert llava_mini("ask", *arguments).exit_code == code
        assert asked.pop() == what
    for arguments, words in (
        (["-p", "Why?"], "there is no medium: llava-mini ask MEDIA... QUESTION, or --files-from"),
        (["--index", "archive", "a", "Why?"], "'a': --index takes no MEDIA; --path says which of the archive's"),
    ):
        assert llava_mini("ask", *arguments).stderr == f"llava-mini: error: {words}\n"
    assert not asked


def test_what_caption_is_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr("llava_mini_cli.commands.caption.run_questions", lambda *given: asked.append(given[:2]) or 4)
    for arguments, what in (
        (["a"], (["a"], (CAPTION_PROMPT,))),
        (["--files-from", "list", "-p", "Why?"], ([], (Prompt("Why?"),))),
        (["a", "--style", "tags", "-p", "Why?"], (["a"], (STYLES["tags"], Prompt("Why?")))),
        (["a", "--prompt-column", "q"], (["a"], ())),
    ):
        assert llava_mini("caption", *arguments).exit_code == 4
        assert asked.pop() == what
    assert llava_mini("caption").stderr == (
        "llava-mini: error: there is no medium: llava-mini caption MEDIA..., or --files-from\n"
    )


# train, with a double of what trains


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What was trained: options of a data file, or the folder of the demo model."""
    asked: list[object] = []

    def train(what: object, say: Any) -> Path:
        asked.append(what)
        say("3 records")
        return Path("run/model")

    for name, function in {"finetune": "finetune", "demo_preset.stages": "train_demo_model"}.items():
        double = ModuleType(f"llava_mini_cli.train.{name}")
        setattr(double, function, train)
        monkeypatch.setitem(sys.modules, double.__name__, double)
    monkeypatch.setattr("llava_mini_cli.needs.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    return asked


def test_train_hands_every_option_on(trained: list[object]) -> None:
    arguments = (
        "-o run --data d.json -m base --stage 1 --media-root r --skip-bad --learning-rate 0.1 --batch 8 --epochs 2"
    )
    more = "--device-batch 2 --average answer --gradient-checkpointing --bf16 --workers 3 --save-every 5 --seed 6"
    result = llava_mini("train", *arguments.split(), *more.split())
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "3 records\nthe model is in run/model\n")
    assert trained == [
        TrainOptions(
            Path("d.json"),
            "base",
            Path("run"),
            1,
            Path("r"),
            True,
            0.1,
            8,
            2,
            2.0,
            0.03,
            "answer",
            0,
            True,
            True,
            3,
            5,
            6,
        )
    ]
    assert llava_mini("train", "-o", "run", "--data", "d", "-m", "m", "--lora-rank", "4", "-q").stderr == ""
    assert trained[1:] == [TrainOptions(Path("d"), "m", Path("run"), lora_rank=4)]


def test_train_takes_variables_and_config_files_as_the_others_do(
    trained: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("llava-mini.toml").write_text(
        "model = 'base'\nseed = 2\n[train]\nstage = 1\nbf16 = true\ndata = 'd.json'\nquiet = true"
    )
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "llava-mini.toml")  # named: found there, it could not choose a model
    monkeypatch.setenv("LLAVA_MINI_EPOCHS", "3")
    assert llava_mini("train", "-o", "run", "--seed", "4").stderr == ""
    assert llava_mini("train", "-o", "run", "--no-bf16").exit_code == 0
    options = TrainOptions(Path("d.json"), "base", Path("run"), 1, epochs=3.0, bf16=True, seed=4)
    assert trained == [options, TrainOptions(Path("d.json"), "base", Path("run"), 1, epochs=3.0, seed=2)]
    shown = [json.loads(line) for line in llava_mini("config").stdout.splitlines()]
    assert [(line["value"], line["place"]) for line in shown if line["option"] == "stage"] == [
        (1, "llava-mini.toml: [train] stage")
    ]
    monkeypatch.setenv("LLAVA_MINI_EPOCHS", "0")
    assert llava_mini("train", "-o", "run").stderr == (
        "llava-mini: error: LLAVA_MINI_EPOCHS: --epochs must be above 0, not 0\n"
    )
    Path("llava-mini.toml").write_text("[train]\nstage = 3")
    refused = llava_mini("train", "-o", "run")
    assert (refused.exit_code, refused.stderr) == (
        2, "llava-mini: error: llava-mini.toml: [train] stage: '3' is not one of '1', '2'.\n",
    )  # fmt: skip


def test_train_makes_the_demo_model(trained: list[object]) -> None:
    result = llava_mini("train", "-o", "work", "--preset", "demo")
    assert (result.exit_code, result.stderr) == (0, "3 records\nthe model is in run/model\n")
    assert trained == [Path("work")]


def test_train_says_what_it_needs(trained: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.needs.find_spec", lambda name: None if name == "peft" else name)
    result = llava_mini("train", "-o", "work", "--preset", "demo")
    assert (result.exit_code, result.stderr) == (
        2, "llava-mini: error: train needs peft: pip install 'llava-mini-cli[train]'\n",
    )  # fmt: skip
    assert not trained
