"""--schema on the command line: with the demo model as a user runs it, in archives, resumed, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from archive_films import rows, run
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from test_formats_schema import HOSTILE

from llava_mini_cli.formats.inputs.prompts import STYLES

SHAPE = "shape circle|square|triangle|cross: What shape is the shape?"
COLOUR = "colour red|green|blue|yellow|purple: What colour is the shape?"
LABELS = f"{SHAPE}, {COLOUR}, seen bool: Is there a red shape?"
COUNT = "count int 0..9: How many shapes are there?"
engines = pytest.fixture(echo_engines)


def test_fields_are_what_their_questions_say_alone(films: Path) -> None:
    """Labels have the probabilities that --choices gives them, a number is the one that the model writes anyway."""
    film = films / "green.mp4"
    (row,) = rows(run("ask", film, "--schema", f"{LABELS}, {COUNT}", "-m", "demo", "-q"))
    questions = ("-p", "shape=What shape is the shape?", "-p", "colour=What colour is the shape?")
    choices = ("--choices", "shape=circle,square,triangle,cross", "--choices", "colour=red,green,blue,yellow,purple")
    seen = ("-p", "seen=Is there a red shape?", "--choices", "seen=yes,no", "-p", "count=How many shapes are there?")
    alone = {one["prompt_name"]: one for one in rows(run("ask", film, *questions, *choices, *seen, "-m", "demo", "-q"))}
    fields = {"shape": "triangle", "colour": "green", "seen": False, "count": int(alone.pop("count")["text"])}
    assert (json.loads(row["json"]), row["fields"], row["text"]) == (fields, fields, row["json"])
    expected = {name: one["choice_probs"] for name, one in alone.items()}
    expected["seen"] = {"true": expected["seen"]["yes"], "false": expected["seen"]["no"]}
    assert list(row["field_probs"]) == ["shape", "colour", "seen"]
    for name, probs in row["field_probs"].items():
        assert probs == pytest.approx(expected[name], abs=1e-4)


def test_one_text_is_held_to_the_schema(films: Path) -> None:
    done = run("ask", films, "--schema", f"{SHAPE}, {COLOUR}", "--schema-by", "json", "-m", "demo", "-q")
    assert done.exit_code == 0
    for row in rows(done):
        assert list(row["fields"]) == ["shape", "colour"]
        assert row["text"] == row["json"] == json.dumps(row["fields"], separators=(",", ":"))
        assert "field_probs" not in row


def test_spans_of_an_archive_and_of_files_are_alike(films: Path, archive: Path) -> None:
    asked = ("--schema", f"{LABELS}, {COUNT}", "--every", "2s", "--whole", "-q")
    of_files = rows(run("ask", films, *asked, "-m", "demo"))
    of_archive = rows(run("ask", "--index", archive, *asked))
    keys = ("file_name", "segment", "start", "end", "json")
    assert sorted(str([row[key] for key in keys]) for row in of_files) == sorted(
        str([row[key] for key in keys]) for row in of_archive
    )
    seen = {row["segment"]: row["fields"]["colour"] for row in of_files if row["file_name"] == "red.mp4"}
    assert (seen[1], seen[3]) == ("red", "blue")


def test_fields_of_scenes_are_those_of_the_same_stretches(films: Path, tmp_path: Path) -> None:
    """Scenes are told while questions wait, of which each field is one; a list of them is known beforehand."""
    film, asked = films / "red.mp4", ("--schema", f"{LABELS}, {COUNT}", "--whole", "-m", "demo", "-q")
    scenes = rows(run("ask", film, *asked, "--scenes", "--min-scene-len", "1.5s", "--scene-threshold", "3"))
    stretches = sorted((row["start"], row["end"]) for row in scenes if row["segment"])
    assert len(stretches) > 1
    listed = tmp_path / "scenes.csv"
    numbered = (f"{number},{start},{end}" for number, (start, end) in enumerate(stretches, 1))
    listed.write_text("\n".join(["Scene Number,Start Time (seconds),End Time (seconds)", *numbered]) + "\n")
    of_list = rows(run("ask", film, *asked, "--scenes-from", listed))
    told = ("segment", "start", "json", "field_probs")
    assert sorted(str([row[name] for name in told]) for row in scenes) == sorted(
        str([row[name] for name in told]) for row in of_list
    )


def test_a_run_goes_on_and_another_schema_does_not_mix(films: Path, tmp_path: Path) -> None:
    command = ("ask", films, "-m", "demo", "-o", tmp_path / "rows.parquet", "--schema")
    assert run(*command, LABELS, "--limit", "1").exit_code == 101
    assert run(*command, LABELS).exit_code == 0
    assert "3 were there" in run(*command, LABELS).stderr
    refused = run(*command, f"{LABELS}, sure bool")
    assert (refused.exit_code, "--schema was " in refused.stderr, len(refused.stderr.splitlines())) == (2, True, 1)
    assert run("ask", films, "-m", "demo", "-o", tmp_path / "rows.parquet", "What?").exit_code == 2
    table = pq.read_table(tmp_path / "rows.parquet")
    assert str(table.schema.field("fields").type) == "struct<shape: string, colour: string, seen: bool>"
    file = tmp_path / "rows.parquet"
    found = duckdb.sql(f"SELECT fields.colour, json ->> 'colour' FROM '{file}' WHERE fields.shape = 'triangle'")
    assert found.fetchall() == [("green", "green")]


def test_errors_are_tried_again(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = ("ask", films / "green.mp4", "-m", "demo", "-o", output, "--schema", "tags str[]: What is shown?")
    first = run(*command, "--max-new-tokens", "1")
    assert first.exit_code == 3
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert (row["status"], row["error_type"], row["json"], row["fields"]) == ("error", "invalid_json", None, None)
    assert row["text"].startswith("tags: [")
    assert run(*command, "--max-new-tokens", "1").stderr.count("failed") >= 0
    again = run(*command, "--max-new-tokens", "1", "--retry-errors")
    assert (again.exit_code, len(output.read_text().splitlines())) == (3, 1)


# Without a model


def test_a_question_is_optional_with_a_schema(engines: list[EchoEngine]) -> None:
    for arguments, asked in (
        (("ask", "a.mp4"), ("What?",)),
        (("ask", "a.mp4", "-p", "Look at the car."), ("Look at the car. What?",)),
        (("caption", "a.mp4"), ("What?",)),
        (("caption", "a.mp4", "--style", "brief"), (f"{STYLES['brief'].text} What?",)),
    ):
        done = llava_mini(*arguments, "--schema", "a x|y: What?", "-o", "-")
        assert done.exit_code == 0
        (request,) = engines.pop().requests
        assert request.prompts == asked
        assert json.loads(done.stdout)["fields"] == {"a": "x"}
    Path("table.csv").write_text("file,q\na.mp4,The left one:\n")
    done = llava_mini("ask", "table.csv", "--prompt-column", "q", "--schema", "a x|y: What?", "-o", "-")
    assert (done.exit_code, engines.pop().requests[0].prompts) == (0, ("The left one: What?",))


def test_a_dry_run_counts_rows(engines: list[EchoEngine]) -> None:
    done = llava_mini("ask", "a.mp4", "--schema", "a x|y, b x|y, c int", "--dry-run")
    assert (done.exit_code, json.loads(done.stdout)["rows"], engines) == (0, 1, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schema", "a b"], "--schema 'a b': the field 'a': 'b' is no type"),
        (["--schema", ""], "it has no field"),
        (["--schema", "gone.json"], "--schema 'gone.json': there is no such file"),
        (["--schema", "a x|y", "--schema-by", "words"], "'words' is not one of"),
        (["--schema-by", "json", "What?"], "--schema-by goes with --schema"),
        (["--schema", "a x|y", "--yes-no"], "--yes-no is about answers as texts, and --schema asks for fields"),
        (["--schema", "a x|y", "--choices", "a,b"], "--choices is about answers as texts"),
        (["--schema", "a int", "--choice-score", "mean"], "--choice-score is about choices"),
        (["--schema", "a x|y", "--prompt-file", "questions.jsonl"], "--prompt-file has choices"),
        (
            ["--schema", '{"items": {"type": "string", "pattern": "(?=x)"}}'],
            "look-ahead and look-behind, is not supported",
        ),
        (["--schema", '{"type": "array", "uniqueItems": true}'], 'Unimplemented keys: ["uniqueItems"]'),
        (["--schema", '{"not": {}}'], 'Unimplemented keys: ["not"]'),
        (["--schema", '{"$ref": "https://example.org/car.json"}'], "https://example.org/car.json"),
        (["--schema", '{"$ref": "#/$defs/gone"}'], "/$defs/gone"),
        (
            ["--schema", "a str, b str", "--schema-by", "fields", "What is it?"],
            "with --schema a question is given with -p",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(engines: list[EchoEngine], arguments: list[str], words: str) -> None:
    Path("questions.jsonl").write_text('{"prompt": "When?", "choices": ["day", "night"]}\n')
    media = [] if "What is it?" in arguments else ["a.mp4"]
    done = llava_mini("ask", *media, *arguments, "-o", "rows.jsonl")
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in " ".join(done.stderr.split())
    assert not Path("rows.jsonl").exists()


def test_choice_options_go_with_labels_of_a_schema(engines: list[EchoEngine]) -> None:
    done = llava_mini("ask", "a.mp4", "--schema", "a x|y", "--choice-score", "mean", "-o", "-")
    assert (done.exit_code, engines[0].requests[0].generation.choice_score) == (0, "mean")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_ends_the_command_with_one_line(engines: list[EchoEngine], name: str) -> None:
    text, words = HOSTILE[name]
    Path("schema.json").write_text(text)
    done = llava_mini("ask", "a.mp4", "--schema", "schema.json")
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert done.stderr.startswith("llava-mini: error: --schema 'schema.json': ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


ENDLESS: dict[str, dict[str, Any]] = {
    "many labels": {"properties": {"a": {"properties": {"b": {"enum": [f"label {n}" for n in range(100_000)]}}}}},
    "itself": {"$ref": "#"},
    "itself, required": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "long text": {"type": "array", "items": {"type": "string", "minLength": 10**8}},
    "nothing": {"type": "object", "minProperties": 10**9},
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schema_that_no_answer_can_have_is_one_line(engines: list[EchoEngine], name: str) -> None:
    Path("schema.json").write_text(json.dumps(ENDLESS[name]))
    done = llava_mini("ask", "a.mp4", "--schema", "schema.json")
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert done.stderr.startswith("llava-mini: error: --schema")
    assert (len(done.stderr.splitlines()), len(done.stderr) < 500) == (1, True)


def test_labels_need_no_package_and_the_rest_says_which(
    engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert llava_mini("ask", "a.mp4", "--schema", "a x|y, b bool", "-o", "-").exit_code == 0
    done = llava_mini("ask", "a.mp4", "--schema", "a x|y, b str", "-o", "-")
    assert (done.exit_code, len(engines)) == (2, 1)
    assert done.stderr == "llava-mini: error: --schema needs llguidance: pip install 'llava-mini-cli[schema]'\n"


def test_moments_need_a_question(archive: Path) -> None:
    done = run("ask", "--index", archive, "--top", "2", "--schema", LABELS)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--top finds moments by the question, and there is none" in done.stderr
    found: list[dict[str, Any]] = rows(
        run("ask", "--index", archive, "--top", "1", "--find", "green triangle", "--schema", LABELS, "-q")
    )
    assert [row["fields"]["colour"] for row in found] == ["green"]
