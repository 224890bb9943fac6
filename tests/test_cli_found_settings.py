"""A llava-mini.toml that lies in the working directory neither writes nor loads anything, whoever put it there."""

import json
import os
from pathlib import Path

import pytest
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from typer.main import get_command

from llava_mini_cli.commands.config_files import MOST_BYTES
from llava_mini_cli.commands.configured import harmless_options, options_of
from llava_mini_cli.commands.main import app

# Every option that is not here, nor in EXCLUDED, makes a test fail: whoever adds one says to which it belongs.
HARMLESS_WORDS = """
after allow-truncated approximate average batch before bf16 caption-prompt check-margin choice-prior choice-score
choices decoder dedupe device dry-run dtype edl-rate end end-column epochs exclude fail-on find fit fps frames
gradient-checkpointing id-column include keep-columns layers learning-rate limit max-failures max-frames max-new-tokens
merge min-length min-score min-yes most null off on path paths-only prefix prompt prompt-column prompt-layout quiet
recursive repetition-penalty retry-errors schema-by seed skip-bad stage start start-column style suffix temperature top
top-p verbose yes-no
"""
HARMLESS = frozenset(HARMLESS_WORDS.split())
EXCLUDED_WORDS = """
ann batch-size cache-dir cache-size caption-every check column compact compile csv-safe data decode-timeout
device-batch every evidence evidence-spans existing features features-dtype fetch-timeout files-from format gpu-memory
hosts html image index llm lora-rank max-file-size media media-root min-scene-len model netrc output overwrite plot
port prepared-size preset prompt-file prune quantize ray revision save-every scene-threshold scenes scenes-from schema
shard ship-media stride summary-json tensor-parallel thumbnails track whole window worker-cpus worker-gpus
worker-timeout workers
"""
EXCLUDED = frozenset(EXCLUDED_WORDS.split())
FOUND = "a config file that is only found in the working directory may neither write nor load"


engines = pytest.fixture(autouse=True)(echo_engines)


def test_every_option_is_harmless_or_left_out() -> None:
    commands = {name: one for name, one in get_command(app).commands.items() if name != "config"}  # type: ignore[attr-defined]
    assert set().union(*(harmless_options(command) for command in commands.values())) == HARMLESS
    for command in commands.values():
        assert options_of(command).keys() - harmless_options(command) <= EXCLUDED
        assert not harmless_options(command) & EXCLUDED


def test_the_documentation_names_every_harmless_option() -> None:
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    listed = text.partition("<!-- harmless -->")[2].partition("<!-- end -->")[0]
    assert {word.strip("`.,\n") for word in listed.split() if word.startswith("`")} == HARMLESS


def test_no_file_is_written_and_no_model_chosen(engines: list[EchoEngine], tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    Path("llava-mini.toml").write_text(
        f"summary-json = '{target}'\nmodel = 'evil'\nseed = 3\nmax_new_tokens = 9\n"
        f"[ask]\noutput = '{target}.jsonl'\noverwrite = true\n[index]\noutput = 'x'\nprune = true"
    )
    result = llava_mini("ask", "a.mp4", "What?")
    assert (result.exit_code, json.loads(result.stdout)["text"]) == (0, "What? [4]")
    assert result.stderr.splitlines()[0] == (
        "llava-mini: warning: llava-mini.toml: summary-json, model, [ask] output, [ask] overwrite: left out, as "
        f"{FOUND}; --config llava-mini.toml makes it count"
    )
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob("precious.*"))
    assert engines[-1].options.model == "ICTNLP/llava-mini-llama-3.1-8b"
    generation = engines[-1].requests[-1].generation
    assert (generation.seed, generation.max_new_tokens) == (3, 9)


def test_named_it_counts_as_a_whole(engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llava-mini.toml").write_text("model = 'mine'\nquiet = true\noutput = 'rows.jsonl'")
    assert llava_mini("ask", "a.mp4", "What?", "--config", "llava-mini.toml").stderr == ""
    assert engines[-1].options.model == "mine"
    assert json.loads(Path("rows.jsonl").read_text())["text"] == "What? [4]"
    Path("rows.jsonl").unlink()
    monkeypatch.setenv("LLAVA_MINI_CONFIG", "llava-mini.toml")
    assert llava_mini("ask", "a.mp4", "What?").stderr == ""
    assert Path("rows.jsonl").exists()


def test_what_is_left_out_does_not_hide_the_users_own(engines: list[EchoEngine], tmp_path: Path) -> None:
    (tmp_path / "home" / "llava-mini" / "config.toml").write_text("model = 'mine'\nbatch-size = 3\nfps = 3")
    Path("llava-mini.toml").write_text("model = 'evil'\n[ask]\nbatch_size = 999\nfps = 2")
    result = llava_mini("ask", "a.mp4", "What?", "-q")
    assert "llava-mini.toml: model, [ask] batch_size: left out" in result.stderr
    assert (engines[-1].options.model, engines[-1].options.batch_size) == ("mine", 3)


def test_config_names_what_is_left_out_once() -> None:
    Path("llava-mini.toml").write_text("model = 'evil'\nfps = 2\n[index]\noutput = 'x'")
    result = llava_mini("config")
    assert result.exit_code == 0
    assert result.stderr.count("model") == 1
    assert "[index] output" in result.stderr
    values = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(line["option"], line["place"]) for line in values if line["source"] == "file"} == {
        ("fps", "llava-mini.toml: fps")
    }


def test_a_link_to_another_file_counts_no_more_than_a_file(engines: list[EchoEngine], tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("model = 'evil'\nseed = 2")
    Path("llava-mini.toml").symlink_to(tmp_path / "other.toml")
    assert "llava-mini.toml: model: left out" in llava_mini("ask", "a.mp4", "What?").stderr
    assert engines[-1].options.model != "evil"


def test_a_folder_of_the_parent_is_not_looked_at(engines: list[EchoEngine]) -> None:
    Path("../llava-mini.toml").write_text("seed = 3")
    assert llava_mini("ask", "a.mp4", "What?", "-q").stderr == ""
    assert engines[-1].requests[-1].generation.seed == 0


def test_a_pipe_or_a_folder_of_that_name_is_passed_by() -> None:
    os.mkfifo("llava-mini.toml")
    assert llava_mini("ask", "a.mp4", "What?", "-q").exit_code == 0
    Path("llava-mini.toml").unlink()
    Path("llava-mini.toml").mkdir()
    assert llava_mini("ask", "a.mp4", "What?", "-q").exit_code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#" * (MOST_BYTES + 1), "llava-mini.toml: larger than 64 KiB, which no config file is"),
        (b"\xff\xfe", "llava-mini.toml: not a TOML file: "),
        (b"a = " + b"[" * 9000, "llava-mini.toml: not a TOML file: lists or tables too deep inside each other"),
        (b"seed = 0x" + b"f" * 9000, "llava-mini.toml: seed: the number is too large"),
        (b"seed = " + b"9" * 9000, "llava-mini.toml: not a TOML file: "),
        (b'"a\\u001b[2Jb\\nc" = 1', "llava-mini.toml: a\\x1b[2Jb c: not a flag of any command"),
    ],
)
def test_a_hostile_file_is_one_line(content: bytes, words: str) -> None:
    Path("llava-mini.toml").write_bytes(content)
    result = llava_mini("ask", "a.mp4", "What?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"llava-mini: error: {words}")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 300


def test_a_file_of_a_terabyte_is_not_read() -> None:
    with Path("llava-mini.toml").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    assert "larger than 64 KiB" in llava_mini("ask", "a.mp4", "What?").stderr
