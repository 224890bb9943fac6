"""Tokenizers and chat templates of somebody who means ill: one line, in time, and no code of theirs runs."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import byte_tokenizer, write_tiny_checkpoint
from transformers import CLIPConfig, PreTrainedTokenizerFast

from llava_mini_cli.demo import model_dir
from llava_mini_cli.errors import CheckpointError, PromptError
from llava_mini_cli.model import LlavaMiniProcessor, tokenizer_files, tokenizer_trial
from llava_mini_cli.model.prompt_layouts import PromptBuilder
from llava_mini_cli.model.tokenizer_files import load_tokenizer

# Which bound a trial meets first depends on how fast the system hands out memory.
FULL = "MemoryError|it does not come to an end"
CODE = "from pathlib import Path\nPath('pwned').touch()\nclass Mine: pass\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer's files in the working directory."""
    byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenizer_files, "TRIAL_SECONDS", 60.0)  # of a machine that does much else
    return tmp_path


def edit(name: str, **fields: object) -> None:
    Path(name).write_text(json.dumps(json.loads(Path(name).read_text()) | fields))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()
    return str(caught.value).removeprefix(f"{folder}")


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}},
        {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}, "tokenizer_class": "LlamaTokenizer"},
        {"auto_map": ["mine.Mine", None], "tokenizer_class": "Mine"},
        {"auto_map": {"AutoTokenizer": "somebody/repository--mine.Mine"}},
    ],
)
def test_code_of_a_checkpoint_does_not_run_and_nobody_is_asked(
    folder: Path, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(CODE)
    edit("tokenizer_config.json", **fields)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    words = "/tokenizer_config.json: auto_map: the tokenizer needs code of its own, which is not run"
    assert refused(folder) == words
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["Mine", "AutoModel", "RagTokenizer", "pipeline", "os", "MistralCommonBackend", 7])
def test_only_known_tokenizers_are_named(folder: Path, name: object) -> None:
    edit("tokenizer_config.json", tokenizer_class=name)
    assert refused(folder).startswith(f"/tokenizer_config.json: tokenizer_class {name!r}: must be one of ")


def test_a_configuration_beside_the_tokenizer_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(CODE)
    fields = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}, "tokenizer_class": "Mine"}
    Path("config.json").write_text(json.dumps(fields))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for config in (None, CLIPConfig()):
        assert load_tokenizer(folder, config).get_vocab() == byte_tokenizer().get_vocab()
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("tokenizer_config.json", {"gguf_file": "/x.gguf"}, "gguf_file '/x.gguf': must be null"),
        ("tokenizer_config.json", {"init_inputs": ["/x.model"]}, "init_inputs ['/x.model']: must be a list of 0 to 0"),
        ("tokenizer_config.json", {"tokenizer_object": "x"}, "tokenizer_object 'x': must be null"),
        ("tokenizer_config.json", {"chat_template": 7}, "chat_template 7: must be a text"),
        ("tokenizer_config.json", {"bos_token": ["x"]}, "bos_token ['x']: must be a text"),
        ("special_tokens_map.json", {"vocab_file": "/x.model"}, "'vocab_file' is no special token"),
        ("special_tokens_map.json", {"gguf_file": "/x.model"}, "'gguf_file' is no special token"),
        ("added_tokens.json", [1], "not a JSON object"),
        ("tokenizer_config.json", [1], "not a JSON object"),
    ],
)
def test_files_that_a_field_names_are_not_opened(folder: Path, file: str, fields: Any, words: str) -> None:
    if isinstance(fields, dict) and Path(file).exists():
        edit(file, **fields)
    else:
        Path(file).write_text(json.dumps(fields))
    assert refused(folder).startswith(f"/{file}: {words}")


def test_a_vocabulary_of_pieces_that_panics_is_one_line(folder: Path) -> None:
    Path("tokenizer.json").unlink()
    Path("vocab.json").write_text('{"a": 0}')
    Path("merges.txt").write_text("a a\n")
    assert refused(folder).startswith("/vocab.json: the tokenizer cannot be read (")


def split_at(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pre_tokenizer": split_at("(a|aa)+$")}, "retry-limit-in-match"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}}, "out of range"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap"),
        ({"model": 7}, "Exception: "),
    ],
)
def test_a_tokenizer_that_panics_is_one_line(folder: Path, fields: dict[str, Any], words: str) -> None:
    edit("tokenizer.json", **fields)
    line = refused(folder)
    assert line.startswith("/tokenizer.json: the tokenizer cannot be read (")
    assert words in line


@pytest.mark.parametrize("letter", ["y", "Q", "~", "7"])
def test_a_tokenizer_that_makes_very_much_of_one_letter_is_refused(folder: Path, letter: str) -> None:
    edit("tokenizer.json", normalizer={"type": "Replace", "pattern": {"String": letter}, "content": "q " * 3000})
    assert "tokens of" in refused(folder)


def test_a_tokenizer_that_fills_the_memory_is_ended(folder: Path) -> None:
    grows = {"type": "Replace", "pattern": {"Regex": "a"}, "content": "a" * 2000}
    edit("tokenizer.json", normalizer={"type": "Sequence", "normalizers": [grows] * 4})
    assert refused(folder).startswith("/tokenizer.json: the tokenizer cannot be read (its process ended with ")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", FULL),
        ("{% for i in range(90000) %}{{ 'x' * 99999 }}{% endfor %}", "it writes more than 1048576 characters"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system message') }}", "ValueError: no system message"),
        ("{{ open('/etc/passwd') }}", "UndefinedError"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(folder: Path, template: str, words: str) -> None:
    edit_template(template)
    line = refused(folder)
    assert line.startswith("/tokenizer_config.json: chat_template: cannot be used (")
    assert re.search(words, line)


def edit_template(template: object) -> None:
    Path("chat_template.jinja").unlink(missing_ok=True)
    edit("tokenizer_config.json", chat_template=template)


def test_a_template_without_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}"
    edit_template(loop * 4 + "{% endfor %}" * 4)
    monkeypatch.setattr(tokenizer_files, "TRIAL_SECONDS", 2.0)
    began = time.monotonic()
    words = "/tokenizer_config.json: chat_template: cannot be used (it does not come to an end)"
    assert refused(folder) == words
    assert time.monotonic() - began < 20
    monkeypatch.setattr(tokenizer_files, "TRIAL_SECONDS", 300.0)  # of its own time it has less
    Path("chat_template.jinja").write_text(loop * 4 + "{% endfor %}" * 4)
    assert refused(folder) == "/chat_template.jinja: chat_template: cannot be used (it does not come to an end)"


def test_templates_may_be_several_and_use_what_transformers_gives(folder: Path) -> None:
    good = "{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}{{ messages | tojson }}{% break %}"
    good = "{% for m in messages %}" + good + "{% endfor %}{{ bos_token }}"
    edit_template([{"name": "default", "template": good}, {"name": "tools", "template": "{% if %}"}])
    assert "<|begin_of_text|>" in load_tokenizer(folder).apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, chat_template=good
    )
    edit_template({"default": 7})
    assert refused(folder) == "/tokenizer_config.json: chat_template 7: must be a text"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "x.jinja"])
def test_pipes_are_not_opened(folder: Path, name: str) -> None:
    Path(name).unlink(missing_ok=True)
    os.mkfifo(name)
    assert refused(folder) == f"/{name}: not a regular file"


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    Path("additional_chat_templates").mkdir()
    Path("additional_chat_templates/tools.jinja").symlink_to(secret)
    assert "tools.jinja: a link that leaves the checkpoint" in refused(folder)


def test_a_file_of_a_terabyte_is_not_read(folder: Path) -> None:
    with Path("tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    assert refused(folder) == "/tokenizer.json: larger than 256 MiB"


def test_a_machine_that_starts_no_process_is_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    assert "no process to try the tokenizer in" in refused(folder)


def test_the_demo_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "_try", lambda *_: pytest.fail("tried"))
    assert "<|eot_id|>" in load_tokenizer(model_dir()).get_vocab()
    assert "<|eot_id|>" in load_tokenizer(model_dir() / "clip", CLIPConfig()).get_vocab()


def test_the_trial_renders_what_transformers_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    turns = tokenizer_trial.conversation(has_image=False)
    tokenizer_trial.try_template(str(tokenizer.chat_template), {"bos_token": "<b>"}, turns)
    assert tokenizer_trial.try_tokenizer(folder)
    assert json.loads(capsys.readouterr().out) == ["begins", str(folder / "tokenizer.json")]


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust."""


class PanickingTokenizer:
    """A tokenizer that fails at one question."""

    bos_token_id = None
    chat_template = "x"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [Panic("retry-limit"), ValueError("retry-limit"), OverflowError("retry-limit")])
def test_a_question_that_breaks_the_tokenizer_is_that_questions_error(error: BaseException) -> None:
    Panic.__name__ = "PanicException"
    with pytest.raises(PromptError, match=r"the model's tokenizer fails at it: retry-limit"):
        PromptBuilder(PanickingTokenizer(error)).question_ids("What?")
    with pytest.raises(KeyboardInterrupt):
        PromptBuilder(PanickingTokenizer(KeyboardInterrupt())).question_ids("What?")


def test_a_template_that_fails_at_one_question_fails_that_question() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if 'cat' in messages[1].content %}{{ 1 / 0 }}{% endif %}{{ messages[1].content }}"
    prompts = PromptBuilder(tokenizer)
    assert prompts.question_ids("Is it a dog?")
    with pytest.raises(PromptError, match=r"the model's chat template fails at it: division by zero"):
        prompts.question_ids("Is it a cat?")


def test_a_token_that_the_model_does_not_have_is_the_questions_error() -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.add_tokens(["<pad-to-64>"])
    prompts = PromptBuilder(tokenizer, vocabulary=262)
    assert prompts.question_ids("What?")
    with pytest.raises(PromptError, match=r"token 262, which the model does not have"):
        prompts.question_ids("What is <pad-to-64>?")


def test_a_processor_needs_a_template_where_prompts_are_made_by_one(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    shutil.rmtree(checkpoint / "x", ignore_errors=True)
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: no chat_template"):
        LlavaMiniProcessor.from_pretrained(checkpoint)
