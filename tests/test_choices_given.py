"""Choices from the command line and from files: which question has which, what is refused, where they are written."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.choices import MOST_CHOICES, ChoicesGiven, parse_choices
from llava_mini_cli.formats.inputs.prompts import read_prompt_file
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.outputs.row_keys import RowKeys

engines = pytest.fixture(echo_engines)

DAY = ("day", "night", "dusk")
EVEN = {"day": 0.5, "night": 0.25, "dusk": 0.25}


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("day,night,dusk", DAY),
        (" day , night,dusk\n", DAY),
        ("a b,c=d", ("a b", "c=d")),
        ('["red, green", "blue"]', ("red, green", "blue")),
        (' ["[x]", " ü "]', ("[x]", "ü")),
    ],
)
def test_lists_of_choices(text: str, choices: tuple[str, ...]) -> None:
    assert parse_choices(text) == choices


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "--choices '': a choice is empty"),
        ("a,,b", "--choices 'a,,b': a choice is empty"),
        ("a, ", "--choices 'a, ': a choice is empty"),
        ("a,b, a", "--choices 'a,b, a': the choice 'a' is there twice"),
        ("day night", "--choices 'day night': there must be two choices at least, with commas between them, and there "
         "is only 'day night'"),
        ("[]", "--choices '[]': there must be two choices at least, with commas between them, and there is none"),
        ("q=a", "--choices 'q=a': there must be two choices at least, with commas between them, and there is only 'a'"),
        ('["a"', "--choices '[\"a\"': not a JSON list such as [\"red, green\", \"blue\"]"),
        ("[" * 90000, f"--choices '{'[' * 40}...': not a JSON list such as [\"red, green\", \"blue\"]"),
        ("[1, 2]", "--choices '[1, 2]': choices are a list of texts"),
        ('["a", "\\ud800"]', "--choices '[\"a\", \"\\ud800\"]': a choice is not valid UTF-8"),
        (",".join(map(str, range(MOST_CHOICES + 1))), "--choices '0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16...': "
         "10,001 choices are more than 10,000"),
    ],
)  # fmt: skip
def test_unusable_choices_are_one_line(value: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        ChoicesGiven.parse([value])
    assert str(error.value) == words


def test_as_many_choices_as_there_may_be() -> None:
    assert len(parse_choices(",".join(map(str, range(MOST_CHOICES))))) == MOST_CHOICES


@pytest.mark.parametrize(("values", "whose"), [(["a,b", "c,d"], "all questions"), (["q=a,b", "q=a,b"], "'q'")])
def test_choices_are_given_once(values: list[str], whose: str) -> None:
    with pytest.raises(UsageError, match=f"given twice for {whose}"):
        ChoicesGiven.parse(values)


def test_each_question_has_the_choices_of_its_name_else_its_own_else_those_of_all() -> None:
    given = ChoicesGiven.parse(["sky=clear,cloudy", "yes,no"])
    prompts = [
        Prompt("Sky?", "sky", ("own", "other")),
        Prompt("Sky?", "own", ("own", "other")),
        Prompt("Sky?"),
        Prompt("Sky?", "rain"),
    ]
    job = Job("a", "a", tuple(Question(prompt, "a") for prompt in prompts))
    (found,) = given.put([job])
    assert [question.prompt.choices for question in found.questions] == [
        ("clear", "cloudy"),
        ("own", "other"),
        ("yes", "no"),
        ("yes", "no"),
    ]
    (some,) = ChoicesGiven.parse(["sky=clear,cloudy"]).put([job])
    assert [question.prompt.choices for question in some.questions][1:] == [("own", "other"), None, None]
    given.check_names([None, "sky"])
    with pytest.raises(UsageError, match=r"'sky=\.\.\.': no question has this name; names are rain, snow; a"):
        given.check_names(["rain", None, "snow"])
    with pytest.raises(UsageError, match="-p NAME=TEXT gives one a name"):
        given.check_names([None])


def test_prompt_files_hold_choices(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "When?", "choices": ["day", " night", "dusk"]}\n{"prompt": "b", "choices": null}')
    assert read_prompt_file(str(path)) == (Prompt("When?", None, DAY), Prompt("b"))
    for bad, words in (
        ('"day,night"', "line 1: choices are a list of texts"),
        ("[]", "line 1: there must be two choices at least"),
        ('["a", "a"]', "line 1: the choice 'a' is there twice"),
        ('[["a"], "b"]', "line 1: choices are a list of texts"),
    ):
        path.write_text(f'{{"prompt": "When?", "choices": {bad}}}')
        with pytest.raises(UsageError, match=words):
            read_prompt_file(str(path))


def test_keys_hold_the_choices_and_stay_what_they_were_without() -> None:
    keys = RowKeys("m", None, {"fps": 1.0})
    job = Job("a.mp4", "a.mp4", ())
    prompts = [
        Prompt("q"),
        Prompt("q", None, ("a", "b")),
        Prompt("q", None, ("b", "a")),
        Prompt("q", None, ("a, b", "")),
    ]
    asked = [Question(prompt, "a.mp4") for prompt in prompts]
    assert len({keys.work(("/a.mp4", 1, 2), "a.mp4", question) for question in asked}) == len(prompts)
    assert len({keys.asked(job, question) for question in asked}) == len(prompts)
    assert keys.work(("/a.mp4", 1, 2), "a.mp4", asked[0]).hex() == "e4af9cb6c0754ddea91c"


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_question_and_only_the_ones_that_are_meant(engines: list[EchoEngine]) -> None:
    Path("q.jsonl").write_text('{"name": "sky", "prompt": "Sky?", "choices": ["clear", "cloudy"]}')
    asked = ("ask", "a.mp4", "-p", "when=When?", "-p", "What?", "--prompt-file", "q.jsonl", "-f", "jsonl")
    rows = rows_of(llava_mini(*asked, "--choices", "when=day,night,dusk").stdout)
    assert [(row["prompt"], row["text"], row["choice"], row["choice_probs"]) for row in rows] == [
        ("When?", "day", "day", EVEN),
        ("What?", "What? [4]", None, None),
        ("Sky?", "clear", "clear", {"clear": 0.5, "cloudy": 0.5}),
    ]
    assert engines[-1].requests[-1].choices == (DAY, None, ("clear", "cloudy"))
    rows = rows_of(llava_mini(*asked, "--choices", "when=day,night,dusk", "--choices", "x,y").stdout)
    assert [row["choice"] for row in rows] == ["day", "x", "clear"]
    assert rows_of(llava_mini("caption", "a.mp4", "--choices", "x,y").stdout)[0]["choice"] == "x"
    assert rows_of(llava_mini("caption", "a.mp4").stdout)[0]["choice"] is None
    assert engines[-1].requests[-1].choices == ()


def test_questions_of_tables_have_choices(engines: list[EchoEngine]) -> None:
    Path("t.csv").write_text("path,who,q\na.mp4,Eve,Dark?\n")
    result = llava_mini(
        "ask",
        "t.csv",
        "-p",
        "in=Is {who} in?",
        "--prompt-column",
        "q",
        "--choices",
        "yes,no",
        "--choices",
        "q=dark,light",
    )
    assert [(row["prompt"], row["choice"]) for row in rows_of(result.stdout)] == [
        ("Is Eve in?", "yes"),
        ("Dark?", "dark"),
    ]
    refused = llava_mini("ask", "t.csv", "-p", "in=Is {who} in?", "--prompt-column", "q", "--choices", "p=yes,no")
    assert "no question has this name; names are in, q" in refused.stderr


def test_bad_choices_end_a_run_before_anything_is_opened(engines: list[EchoEngine]) -> None:
    result = llava_mini("ask", "a.mp4", "When?", "--choices", "day", "-o", "rows.jsonl")
    assert (result.exit_code, result.stderr.count("\n"), engines) == (2, 1, [])
    assert not Path("rows.jsonl").exists()
    Path("llava-mini.toml").write_text("choices = ['day']")
    assert "llava-mini.toml: choices: --choices 'day': there must be two" in llava_mini("ask", "a.mp4", "When?").stderr


def test_every_format_holds_them(engines: list[EchoEngine]) -> None:
    Path("photos").mkdir()
    Path("photos/b.jpg").write_text("1")
    asked = ("ask", "photos", "-p", "when=When?", "-p", "dark=Dark?", "--choices", "day,night,dusk")
    asked = (*asked, "--choices", 'dark=["yes, it is","no"]', "--prefix", "sks ")
    listed = [{"choice": choice, "probability": value} for choice, value in EVEN.items()]
    for target in ("r.jsonl", "r.csv", "r.parquet", "parts/", "photos/metadata.jsonl", "photos/metadata.parquet"):
        result = llava_mini(*asked, "-o", target, *(["-f", "hf"] if "meta" in target else []))
        assert result.exit_code == 0, result.stderr
        if target == "r.csv":
            with Path(target).open() as stream:
                rows = list(csv.DictReader(stream))
            assert json.loads(rows[0]["choice_probs"]) == EVEN
        elif target.endswith("jsonl"):
            rows = rows_of(Path(target).read_text())
            assert rows[0]["choice_probs"] == (listed if "meta" in target else EVEN)
        else:
            rows = pq.read_table(target).to_pylist()
            assert rows[0]["choice_probs"] == listed
        assert [(row["choice"], row["text"]) for row in rows] == [("day", "sks day"), ("yes, it is", "sks yes, it is")]
    assert llava_mini(*asked, "-f", "txt").exit_code == 0
    assert Path("photos/b.when.txt").read_text() == "sks day\n"


def test_other_choices_are_other_work(engines: list[EchoEngine]) -> None:
    def run(*choices: str) -> int:
        before = len(engines)
        assert llava_mini("ask", "a.mp4", "When?", "-o", "r.jsonl", *choices).exit_code == 0
        return len(engines) - before

    assert [run("--choices", "day,night"), run("--choices", " day, night "), run("--choices", "night,day"), run()] == [
        1, 0, 1, 1,
    ]  # fmt: skip
    assert [row["choice"] for row in rows_of(Path("r.jsonl").read_text())] == ["day", "night", None]
    Path("b.mp4").write_text(Path("a.mp4").read_text())
    Path("a.mp4").rename("gone.mp4")
    Path("b.mp4").rename("a.mp4")  # another time of change, the same content
    assert run("--choices", "day,night") == 0


def test_how_choices_are_scored_is_a_setting_of_the_rows(engines: list[EchoEngine]) -> None:
    asked = ("ask", "a.mp4", "When?", "--choices", "day,night", "-o", "r.jsonl")
    assert llava_mini(*asked).exit_code == 0
    refused = llava_mini(*asked, "--choice-score", "mean", "--choice-prior")
    assert (refused.exit_code, len(engines)) == (2, 1)
    assert "--choice-score was not set, is mean; --choice-prior was not set, is 1; --overwrite" in refused.stderr
    assert llava_mini(*asked, "--choice-score", "mean", "--choice-prior", "--overwrite").exit_code == 0
    options = engines[-1].requests[-1].generation
    assert (options.choice_score, options.choice_prior, options.yes_no) == ("mean", True, False)
    assert llava_mini(*asked, "--choice-score", "mean", "--choice-prior").exit_code == 0
    assert len(engines) == 2
    assert "--choice-score was mean, is not set; --choice-prior was 1, is not set" in llava_mini(*asked).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--choice-score", "mean"), "--choice-score is about choices, and no question has any; --choices gives them"),
        (("--choice-prior",), "--choice-prior is about choices, and no question has any; --choices gives them"),
        (("--choice-score", "best", "--choices", "a,b"), "'best' is not one of 'sum', 'mean'"),
    ],
)
def test_scores_of_no_choices_are_refused(engines: list[EchoEngine], arguments: tuple[str, ...], words: str) -> None:
    result = llava_mini("ask", "a.mp4", "When?", *arguments)
    assert (result.exit_code, engines) == (2, [])
    assert words in result.stderr.replace("\n", " ")
    Path("q.jsonl").write_text('{"prompt": "When?", "choices": ["day", "night"]}')
    again = llava_mini("ask", "a.mp4", "--prompt-file", "q.jsonl", *arguments[:2])
    assert again.exit_code == (2 if "best" in arguments else 0)


def test_scores_are_summed_or_averaged() -> None:
    with pytest.raises(UsageError, match="--choice-score must be sum or mean, not best"):
        GenerationOptions(choice_score="best")  # pyright: ignore[reportArgumentType]
    assert GenerationOptions().choosing() == {}
    assert GenerationOptions(choice_prior=True).choosing() == {"choice_prior": 1}
    assert GenerationOptions(choice_score="mean").choosing() == {"choice_score": "mean"}
