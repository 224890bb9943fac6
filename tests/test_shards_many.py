"""Samples of shards that multiply: rows are made as they are reached, and are bounded for each medium."""

import json
import time
from itertools import islice
from pathlib import Path

import pytest
from hostile_tars import jsonl, member, write
from input_doubles import asked, faults, inputs, jobs_of
from peak_memory import forget_peak, peak

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.shards import MOST_QUESTIONS
from llava_mini_cli.formats.inputs.tables import MOST_ROWS
from llava_mini_cli.formats.job import Prompt

LAST = member(b"z.png", b"last")
BY_COLUMN = InputOptions(prompt_columns=("q",))


def test_five_texts_of_a_hundred_lines_are_ten_thousand_questions_and_an_error(tmp_path: Path) -> None:
    lines = [member(b"s.jsonl", jsonl(f"q{number}", 100)) for number in range(5)]
    shard = write(tmp_path / "a.tar", member(b"s.png", b"1"), *lines, LAST)
    begin, before = time.monotonic(), forget_peak()
    jobs = jobs_of(shard, prompts=[Prompt("{__key__}: {q0} {q4}")])
    assert time.monotonic() - begin < 5
    assert peak() - before < 50 << 10  # KiB
    of_sample = [job for job in jobs if job.path == f"{shard}/s.png" and job.fault is None]
    questions = [question.prompt.text for job in of_sample for question in job.questions]
    assert (len(questions), questions[101]) == (MOST_QUESTIONS, "s: Who is 0? Who is 1?")
    assert max(len(job.questions) for job in of_sample) == MOST_ROWS
    assert faults(jobs)[1:2] == [
        ("input", "bad_row", f"{shard}, sample s: more than {MOST_QUESTIONS} questions about s.png"),
    ]


def test_ten_thousand_questions_are_not_too_many(tmp_path: Path) -> None:
    notes = [member(b"%c.jsonl" % name, jsonl("q", MOST_QUESTIONS + number)) for number, name in enumerate(b"st")]
    shard = write(tmp_path / "a.tar", member(b"s.png", b"1"), notes[0], member(b"t.png", b"1"), notes[1])
    jobs = jobs_of(shard, options=BY_COLUMN, prompts=[])
    of_medium = [[job for job in jobs if job.path == f"{shard}/{name}.png"] for name in "st"]
    assert [sum(len(job.questions) for job in jobs) for jobs in of_medium] == [
        MOST_QUESTIONS,
        MOST_QUESTIONS + 1,
    ]  # the error is one, too
    assert [len(faults(jobs)) for jobs in of_medium] == [0, 1]


def test_rows_that_ask_nothing_count_as_well(tmp_path: Path) -> None:
    lines = [member(b"s.jsonl", jsonl(f"q{number}", 200)) for number in range(3)]
    shard = write(
        tmp_path / "a.tar", member(b"s.png", b"1"), *lines, member(b"z.png", b""), member(b"z.json", b'{"q7": 1}')
    )
    jobs = jobs_of(shard, options=InputOptions(id_column="q1"), prompts=[Prompt("{q7}{q0}")])
    found = [message for _, _, message in faults(jobs)]
    assert len(found) == MOST_QUESTIONS + 3
    assert found[-2].endswith(f"more than {MOST_QUESTIONS} questions about s.png")


TOO_MUCH = {
    "a text of 17 MB": (b"s.txt", b"x" * (17 << 20), "s.txt: 17825792 bytes are too many for a text"),
    "a JSON of depth 100,000": (b"s.json", b'{"a":' + b"[" * 100_000, "s.json: nested deeper than 100 levels"),
    "a JSON of depth 101": (
        b"s.json", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "s.json: nested deeper than 100 levels",
    ),
    "many texts": (
        b"s.json", json.dumps({"a": "x" * ((16 << 20) - 119_999 - 9)}).encode(),
        "s.text: 16777217 bytes are too many for a text",
    ),
    "a number of 200,000 digits": (
        b"s.json", b'{"a": ' + b"9" * 200_000 + b"}",
        "s.json: Exceeds the limit (4300 digits) for integer string conversion: value has 200000 digits",
    ),
    "a text that is no UTF-8": (b"s.txt", b"\xff", "s.txt: 'utf-8' codec can't decode byte 0xff"),
    "rows that repeat a large text": (
        b"s.jsonl", jsonl("q", 10_000) + json.dumps({"q": "x" * 100_000}).encode(), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_a_sample_cannot_hold_is_its_row(name: str, tmp_path: Path) -> None:
    note, data, why = TOO_MUCH[name]
    shard = write(
        tmp_path / "a.tar", member(b"s.png", b"1"), member(note, data), member(b"s.text", b"y" * 120_000), LAST
    )
    jobs = jobs_of(shard)
    ((stage, kind, message),) = faults(jobs)
    assert (stage, kind) == ("input", "bad_row")
    assert message.startswith(f"{shard}, sample s: {why or '10000 rows of 120'}")
    assert [job.path for job in jobs if job.fault is None] == [f"{shard}/good.png", f"{shard}/z.png"]


def test_a_json_of_depth_100_and_brackets_in_texts_are_read(tmp_path: Path) -> None:
    value = json.dumps({"name": '[{\\"' * 200, "deep": json.loads("[" * 99 + "7" + "]" * 99), "wide": [[1]] * 300})
    shard = write(tmp_path / "a.tar", member(b"s.png", b"1"), member(b"s.json", value.encode()))
    (_, (_, (question,))) = asked(jobs_of(shard, prompts=[Prompt("{name}{deep}")]))[-1:] * 2
    assert question == '[{\\"' * 200 + "[" * 99 + "7" + "]" * 99


def test_a_sample_of_too_many_members(tmp_path: Path) -> None:
    media = b"".join(member(b"s.%d.png" % number, b"") for number in range(10_001))
    notes = b"".join(member(b"t.txt", b"x") for number in range(101))
    shard = write(tmp_path / "a.tar", media, member(b"t.png", b"1"), notes, LAST)
    assert faults(jobs_of(shard)) == [
        ("input", "bad_row", f"{shard}, sample {key}: more than 10000 media or 100 texts") for key in "st"
    ]


def test_a_million_columns_are_not_kept(tmp_path: Path) -> None:
    record = json.dumps({f"c{number}": number for number in range(50_000)}).encode()
    parts = member(b"s.png", b"1"), member(b"s.jsonl", jsonl("q", 900)), member(b"s.json", record)
    shard = write(tmp_path / "a.tar", *parts)
    with inputs(shard, options=InputOptions(keep_columns=("c7",)), prompts=[Prompt("{q}")]) as opened:
        job = next(islice(opened.jobs, 1, None))
    assert job.questions[0].prompt.text == "Who is 0?"
    assert dict(job.questions[255].kept) == {"c7": "7"}
    with pytest.raises(UsageError, match=r"'c20000'; its columns are: __key__, q, c0, .*, c97 and 9900 more"):
        jobs_of(shard, prompts=[Prompt("{c20000}")])
