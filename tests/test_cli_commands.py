"""The commands in this process, with doubles of the engine and of clips: arguments, words, rows and exit codes."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, open_made_clip
from output_rows import FAILED, ROW
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.commands.reporter import Reporter
from llava_mini_cli.commands.stderr import terminal_line
from llava_mini_cli.commands.terminal import BlockWriter, PlainWriter
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import GenerationOptions, ModelOptions
from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT, STYLES
from llava_mini_cli.formats.row import COLUMNS
from llava_mini_cli.formats.row import Row as FormatRow
from llava_mini_cli.pipelines.health import Fact
from llava_mini_cli.pipelines.tally import Tally

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EchoEngine]:
    """Every engine that a command loaded; the working directory holds a few media."""
    loaded: list[EchoEngine] = []

    def load_echo(options: ModelOptions) -> EchoEngine:
        if options.model == "missing":
            raise ModelNotFound("model missing: no such directory")
        loaded.append(EchoEngine(options))
        return loaded[-1]

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", load_echo)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name, text in {"a.mp4": "4", "b.mp4": "broken", "photos/c.jpg": "1", "photos/deep/d.mkv": "2"}.items():
        (tmp_path / name).write_text(text)
    return loaded


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def rows(result: Result) -> list[Row]:
    """The rows on stdout, which must hold nothing else."""
    parsed = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(row) == [column.name for column in COLUMNS] for row in parsed)
    return parsed


def test_ask_with_the_question_last() -> None:
    result = llava_mini("ask", "a.mp4", "What?")
    assert result.exit_code == 0
    assert [(row["id"], row["text"]) for row in rows(result)] == [("a.mp4", "What? [4]")]
    assert result.stderr == "llava-mini: warning: a.mp4: read 4 frames\n"


def test_ask_many_questions_about_many_media() -> None:
    result = llava_mini("ask", "photos", "a.mp4", "gone.jpg", "-p", "topic=What?", "--prompt", "Why?", "-q")
    assert result.exit_code == 3
    got = [(row["file_name"], row["prompt_name"], row["text"], row["error_type"]) for row in rows(result)]
    assert sorted(got, key=str) == [
        ("a.mp4", "topic", "What? [4]", None),
        ("a.mp4", None, "Why? [4]", None),
        ("c.jpg", "topic", "What? [1]", None),
        ("c.jpg", None, "Why? [1]", None),
        ("deep/d.mkv", "topic", "What? [2]", None),
        ("deep/d.mkv", None, "Why? [2]", None),
        ("gone.jpg", "topic", None, "not_found"),
        ("gone.jpg", None, None, "not_found"),
    ]  # fmt: skip
    assert result.stderr == "llava-mini: error: gone.jpg: no such file\n"  # once for both questions


def test_caption_asks_the_built_in_prompt_unless_told_otherwise() -> None:
    (built_in,) = rows(llava_mini("caption", "a.mp4"))
    assert (built_in["prompt_name"], built_in["prompt"]) == ("caption", CAPTION_PROMPT.text)
    (own,) = rows(llava_mini("caption", "a.mp4", "-p", "Describe the sky."))
    assert (own["prompt_name"], own["prompt"]) == (None, "Describe the sky.")


def test_caption_styles_and_the_text_around_answers() -> None:
    (row,) = rows(llava_mini("caption", "a.mp4", "--style", "tags", "--prefix", "sks, ", "--suffix", " x"))
    assert (row["prompt_name"], row["prompt"]) == ("tags", STYLES["tags"].text)
    assert row["text"] == f"sks, {STYLES['tags'].text} [4] x"
    (other,) = rows(llava_mini("caption", "a.mp4", "--style", "tags"))
    assert row["fingerprint"] != other["fingerprint"]  # another text is other work
    both = rows(llava_mini("caption", "a.mp4", "--style", "brief", "-p", "sky=How is the sky?"))
    assert [row["prompt_name"] for row in both] == ["brief", "sky"]


def test_a_table_through_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,name,q,id\na.mp4,Ann,Who?,7\nphotos/c.jpg,,Why?,8\n")
    (tmp_path / "prompts.txt").write_text("who=Is {name} here?\n")
    flags = ["--prompt-file", "prompts.txt", "--prompt-column", "q", "--id-column", "id", "--keep-columns", "name, id"]
    result = llava_mini("ask", "t.csv", *flags)
    assert result.exit_code == 3
    got = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted((row["input_id"], row["prompt_name"], row["text"], row["error"]) for row in got) == [
        ("7", "q", "Who? [4]", None),
        ("7", "who", "Is Ann here? [4]", None),
        ("8", "q", "Why? [1]", None),
        ("8", "who", None, "t.csv, line 3: nothing in column 'name'"),
    ]
    assert [list(row)[-2:] for row in got] == [["name", "input_id"]] * 4
    assert (
        llava_mini("caption", "t.csv", "--prompt-column", "q", "-o", "out.parquet", "--keep-columns", "all").exit_code
        == 0
    )
    assert pq.read_table("out.parquet").column("name").to_pylist() == ["Ann", ""]


def test_options_reach_the_engine(engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MINI_MODEL", "from-environment")
    arguments = ["--device", "cpu", "--dtype", "bfloat16", "--prompt-layout", "reference", "--batch-size", "3"]
    assert llava_mini("ask", "a.mp4", "What?", *arguments, "--revision", "r1", "--start", "1m30s").exit_code == 0
    assert engines[0].options == ModelOptions("from-environment", "r1", "cpu", "bfloat16", "reference", 3)


def test_defaults_are_those_of_the_dataclasses(engines: list[EchoEngine]) -> None:
    assert llava_mini("ask", "a.mp4", "What?").exit_code == 0
    assert engines[0].options == ModelOptions("ICTNLP/llava-mini-llama-3.1-8b")
    assert engines[0].requests[0].generation == GenerationOptions()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "What?"], "there is no medium"),
        (["ask"], "there is no question: llava-mini ask MEDIA... QUESTION, or -p"),
        (["ask", "a.mp4"], "'a.mp4' is a file, not a question"),
        (["ask", "a.mp4", "photos"], "'photos' is a folder, not a question"),
        (["ask", "a.mp4", ""], "the prompt is empty"),
        (["caption", "--files-from", "gone"], "--files-from cannot read 'gone': no such file"),
        (["caption", "a.mp4", "-0"], "-0 needs --files-from"),
        (["caption", "a.mp4", "--column", "x"], "--column needs a table or a shard among the inputs"),
        (["caption", "a.mp4", "--cache-size", "much"], "'much' is not a size such as 500MB or 10GB"),
        (["caption", "a.mp4", "--fetch-timeout", "0"], "--fetch-timeout must be above 0 seconds"),
        (["ask", "empty", "What?"], "no images or videos in the folder 'empty'"),
        (["ask", "a.mp4", "-p", "x=A", "-p", "x=B"], "two prompts have the name 'x'"),
        (["ask", "a.mp4", "What?", "-o", "x.xls"], "the suffix must be one of .jsonl, .ndjson, .parquet, .csv"),
        (["ask", "a.mp4", "What?", "-f", "parquet"], "--format parquet needs a file"),
        (
            ["ask", "a.mp4", "What?", "-f", "xls"],
            "Invalid value for '-f' / '--format': 'xls' is not one of 'jsonl', 'parquet', 'csv', 'txt', 'hf', 'srt', "
            "'vtt', 'tsv'.",
        ),
        (["ask", "a.mp4", "What?", "-o", "photos", "-f", "csv"], "is a folder; name a file, such as photos/out.csv"),
        (["ask", "a.mp4", "What?", "-o", "x.csv", "--shard", "3/2"], "--shard 3/2: I/N counts from 1/2 to N/N"),
        (["ask", "a.mp4", "What?", "--fps", "0"], "--fps must be above 0"),
        (["ask", "a.mp4", "What?", "--start", "2", "--end", "1:"], "'1:' is not a time"),
        (["ask", "a.mp4", "What?", "--start", "1:30", "--end", "90"], "--end (90 s) must come after --start (90 s)"),
        (["ask", "a.mp4", "What?", "--fps", "inf"], "--fps must be above 0 and finite"),
        (["ask", "a.mp4", "What?", "--temperature", "-1"], "--temperature must be 0 or above"),
        (["ask", "a.mp4", "What?", "--temperature", "nan"], "--temperature must be 0 or above"),
        (["ask", "a.mp4", "What?", "--seed", "99999999999999999999"], "--seed must be"),
        (["ask", "a.mp4", "What?", "-q", "-v"], "-q and -v exclude each other"),
        (["ask", "a.mp4", "What?", "--fail-on", "some"], "Invalid value for '--fail-on'"),
        (["caption"], "there is no medium: llava-mini caption MEDIA..."),
        (["look"], "No such command 'look'."),
        (["--nope"], "No such option: --nope"),
        ([], "a command is missing"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments: list[str], words: str, engines: list[EchoEngine]) -> None:
    result = llava_mini(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("llava-mini: error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not engines


def test_a_failed_run_is_one_line_and_exit_1() -> None:
    for arguments in (["-m", "missing"], ["-o", "gone/x.jsonl"]):
        result = llava_mini("ask", "a.mp4", "What?", *arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("fail_on", "media", "code"),
    [
        ("any", ["a.mp4", "gone.mp4"], 3),
        ("all", ["a.mp4", "gone.mp4"], 0),
        ("all", ["b.mp4", "gone.mp4"], 3),
        ("never", ["b.mp4", "gone.mp4"], 0),
    ],
)
def test_fail_on(fail_on: str, media: list[str], code: int) -> None:
    assert llava_mini("ask", *media, "-p", "What?", "--fail-on", fail_on).exit_code == code


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_the_same_command_again_is_safe(name: str, tmp_path: Path, engines: list[EchoEngine]) -> None:
    result = llava_mini("ask", "a.mp4", "b.mp4", "-p", "What?", "-o", name, "-m", "echo")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[-1].startswith("llava-mini: 2 media, 5 frames, 1 answers, 1 failed, ")
    assert result.stderr.endswith(f" s, written to {name}\n")
    before = (tmp_path / name).read_bytes()
    again = llava_mini("ask", "a.mp4", "b.mp4", "-p", "What?", "-o", name, "-m", "echo")
    assert again.exit_code == 3  # one of the items still has no answer
    assert " 2 were there (1 failed; --retry-errors tries them again), " in again.stderr
    assert not engines[1:]
    assert (tmp_path / name).read_bytes() == before
    changed = llava_mini("ask", "a.mp4", "-p", "What?", "-o", name, "-m", "echo", "--fps", "2")
    assert (changed.exit_code, changed.stderr) == (
        2,
        f"llava-mini: error: '{name}': --fps was 1, is 2; --overwrite starts anew, or name another output\n",
    )
    assert (tmp_path / name).read_bytes() == before
    failed = llava_mini("ask", "a.mp4", "-p", "What?", "-o", name, "--overwrite", "-m", "missing")
    assert failed.exit_code == 1
    assert (tmp_path / name).read_bytes() == before
    assert llava_mini("ask", "a.mp4", "-p", "What?", "-o", name, "--overwrite").exit_code == 0
    if name == "out.parquet":
        assert pq.read_table(name).column("text").to_pylist() == ["What? [4]"]
    else:
        assert [json.loads(line)["text"] for line in Path(name).read_text().splitlines()] == ["What? [4]"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_odd_file_names_stay_one_line_of_valid_utf8(tmp_path: Path) -> None:
    name = "two\nlines \x1b[31m\udcff.mp4"
    (tmp_path / name).write_text("unopenable")
    result = llava_mini("ask", name, "What?")
    assert result.exit_code == 3
    assert result.stderr == "llava-mini: error: two lines \\x1b[31m\\xff.mp4: holds no video\n"
    assert rows(result)[0]["id"] == "two\nlines \x1b[31m\\xff.mp4"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.5", 90.5), ("1:30", 90), ("1:02:03.5", 3723.5), ("1m30s", 90), ("2h", 7200), ("100:00", 6000)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_terminal_line() -> None:
    assert terminal_line(" a\n\tb \x07 é 日本") == "a b \\x07 é 日本"


def write_all(writer: PlainWriter | BlockWriter, *written: FormatRow) -> None:
    with writer as opened:
        for row in written:
            opened.write(row)


def test_one_answer_at_a_terminal_is_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 1, quiet=False, verbose=False) as reporter:
        write_all(PlainWriter(reporter), ROW, FAILED)
    assert capsys.readouterr() == (f"{ROW.text}\n", "")


def test_several_answers_at_a_terminal_are_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    other = FormatRow(**ROW.as_dict() | {"id": "in/[b].mp4", "prompt_name": "why", "text": "Because [it] is."})
    with Reporter(Tally(), 2, quiet=False, verbose=False) as reporter:
        write_all(BlockWriter(reporter, 2), other, FAILED, other, ROW)
    block = "  why\n    Because [it] is.\n"
    assert capsys.readouterr().out.startswith(f"in/[b].mp4\n{block}{block}\nin/a.mp4\n")


def test_doctor_exits_1_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Fact("torch", "2.13.0"), Fact("model", "x (missing)", "get it")]
    monkeypatch.setattr("llava_mini_cli.pipelines.health.examine", lambda model: facts)
    result = llava_mini("doctor")
    assert (result.exit_code, result.stdout) == (1, "torch  2.13.0\nmodel  x (missing)\n")
    assert result.stderr == "llava-mini: error: get it\n"
    facts.pop()
    assert llava_mini("doctor").exit_code == 0
