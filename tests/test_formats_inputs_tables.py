"""Tables -> jobs: every format, questions and columns, bad rows, odd texts, bounded memory."""

import csv
import json
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_doubles import WHAT, asked, faults, inputs, jobs_of, touch

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.tables import MOST_ROWS
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question, make_job, make_prompt, make_question
from llava_mini_cli.formats.row import KeptColumn

Rows = Sequence[dict[str, Any]]


def write_csv(path: Path, rows: Rows, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=3)  # pyright: ignore
    return path


def write_parts(path: Path, rows: Rows) -> Path:
    path.mkdir()
    for number, begin in enumerate(range(0, len(rows), 2)):
        write_parquet(path / f"part-{number:03}.parquet", rows[begin : begin + 2])
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "t.csv": write_csv,
    "t.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "t.jsonl": write_jsonl,
    "t.NDJSON": write_jsonl,
    "t.parquet": write_parquet,
    "parts": write_parts,
}
ROWS = [
    {"path": "a.mp4", "name": "Ann", "q": "Who?", "n": 1},
    {"path": "a.mp4", "name": "Bob", "q": "Why?", "n": 2},
    {"path": "/x/b.jpg", "name": "{Eve}", "q": "", "n": 3},
    {"path": "sub/c.jpg", "name": 'Zoë, "Z"', "q": "Two\nlines?", "n": 4},
    {"path": "a.mp4", "name": "Ann", "q": "Who?", "n": 5},
]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_gives_the_same_jobs(tmp_path: Path, name: str) -> None:
    table = WRITERS[name](tmp_path / name, ROWS)
    folder = table if table.is_dir() else tmp_path
    options = InputOptions(prompt_columns=("q",), id_column="n", keep_columns=("name",))
    prompts = [Prompt("Is {name} {{here}}?", "who")]
    with inputs(table, prompts=prompts, options=options) as opened:
        assert opened.kept == (KeptColumn("name", "string"),)
        jobs = list(opened.jobs)
    assert asked(jobs) == [
        (f"{folder}/a.mp4", ["Is Ann {here}?", "Who?", "Is Bob {here}?", "Why?"]),  # consecutive rows, one medium
        ("/x/b.jpg", ["Is {Eve} {here}?"]),  # an empty cell asks nothing
        (f"{folder}/sub/c.jpg", ['Is Zoë, "Z" {here}?', "Two\nlines?"]),
        (f"{folder}/a.mp4", ["Is Ann {here}?", "Who?"]),  # order and duplicates stay
    ]
    assert [job.file_name for job in jobs] == ["a.mp4", "b.jpg", "sub/c.jpg", "a.mp4"]
    assert [question.id for question in jobs[0].questions] == ["1", "1", "2", "2"]
    assert [question.prompt.name for question in jobs[0].questions] == ["who", "q", "who", "q"]
    assert [dict(question.kept) for question in jobs[0].questions] == [{"name": "Ann"}] * 2 + [{"name": "Bob"}] * 2


@pytest.mark.parametrize("name", WRITERS)
def test_a_constant_question_asks_once_a_row(tmp_path: Path, name: str) -> None:
    table = WRITERS[name](tmp_path / name, ROWS)
    jobs = jobs_of(table)
    assert [len(job.questions) for job in jobs] == [2, 1, 1, 1]
    assert all(question.prompt is jobs[0].questions[0].prompt for job in jobs for question in job.questions)
    assert [job.questions[0].id for job in jobs] == [job.path for job in jobs]


def test_rows_about_one_medium_are_bounded(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"path": "a.mp4", "q": f"{number}?"} for number in range(MOST_ROWS + 5)])
    jobs = jobs_of(table, prompts=(), options=InputOptions(prompt_columns=("q",)))
    assert [len(job.questions) for job in jobs] == [MOST_ROWS, 5]
    assert [question.prompt.text for job in jobs for question in job.questions] == [
        f"{number}?" for number in range(MOST_ROWS + 5)
    ]


CELLS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
PATHS = CELLS.filter(lambda text: bool(text.strip()) and "://" not in text)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_any_text_survives_a_table(tmp_path: Path, name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(PATHS, CELLS.filter(str.strip)), min_size=1, max_size=8))
    def check(cells: list[tuple[str, str]]) -> None:
        table = WRITERS[name](tmp_path / name, [{"video": path, "q": question} for path, question in cells])
        jobs = jobs_of(table, prompts=(), options=InputOptions(prompt_columns=("q",)))
        got = [(job.path, question.prompt.text) for job in jobs for question in job.questions]
        assert got == [(path if path.startswith("/") else f"{tmp_path}/{path}", question) for path, question in cells]

    check()


def test_file_names_that_are_no_utf8_survive_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,q\n\xff.jpg,What?\nb.jpg,\xfe?\n")
    jobs = jobs_of(tmp_path / "t.csv", prompts=(), options=InputOptions(prompt_columns=("q",), keep_all=True))
    assert os.fsencode(jobs[0].path) == os.fsencode(tmp_path) + b"/\xff.jpg"
    assert jobs[0].questions[0].id == f"{tmp_path}/\\xff.jpg"
    assert jobs[0].questions[0].kept == {"path": "\\xff.jpg", "q": "What?"}
    assert faults(jobs) == [("input", "bad_row", f"{tmp_path}/t.csv, line 3: column 'q' is not valid UTF-8")]


def test_csv_as_it_is_found(tmp_path: Path) -> None:
    """A byte order mark, CRLF, quoted newlines, blank lines, and a field larger than csv's own limit."""
    huge = "x" * 200_000
    text = f'\ufeffpath,q\r\n"a\n1.jpg","two\r\nlines"\r\n\r\nb.jpg,{huge}\r\n'
    (tmp_path / "t.csv").write_text(text, newline="")
    jobs = jobs_of(tmp_path / "t.csv", prompts=(), options=InputOptions(prompt_columns=("q",)))
    assert asked(jobs) == [(f"{tmp_path}/a\n1.jpg", ["two\r\nlines"]), (f"{tmp_path}/b.jpg", [huge])]


def test_bad_rows_name_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(
        'path,name\na.jpg,Ann\nb.jpg\n,Bob\n"x\ny.jpg",\nc.jpg,"Eve" x\nd.jpg,Zoe\ne.jpg,"no end\n'
    )
    Path("t.jsonl").write_text('\n{"path": "a.jpg", "name": "Ann"}\n{"path": "b\n[1]\n{"name": "Bob"}\n{"path": 7}\n')
    jobs = jobs_of("t.csv", "t.jsonl", prompts=[Prompt("{name}?")])
    assert asked([job for job in jobs if job.fault is None]) == [
        ("a.jpg", ["Ann?"]), ("d.jpg", ["Zoe?"]), ("a.jpg", ["Ann?"]),
    ]  # fmt: skip
    assert [(stage, kind) for stage, kind, _ in faults(jobs)] == [("input", "bad_row")] * 9
    messages = [message for _, _, message in faults(jobs)]
    for message, words in zip(messages, [
        "t.csv, line 3: 1 fields where the first line has 2",
        "t.csv, line 4: nothing in column 'path'",
        "t.csv, line 5: nothing in column 'name'",
        "t.csv, line 7: ',' expected after '\"'",
        "t.csv, line 9: unexpected end of data",
        "t.jsonl, line 3: not valid JSON: ",
        "t.jsonl, line 4: not an object",
        "t.jsonl, line 5: nothing in column 'path'",
        "t.jsonl, line 6: column 'path' holds no path",
    ], strict=True):  # fmt: skip
        assert message.startswith(words)
    bad = next(job for job in jobs if job.fault is not None)
    assert (bad.questions[0].id, bad.item) == ("t.csv:3", (f"{tmp_path}/t.csv:3", None, None))
    unnamed = next(job for job in jobs if job.fault is not None and "line 5" in job.fault.message)
    assert (unnamed.path, unnamed.questions[0].prompt.text) == ("x\ny.jpg", "{name}?")


def test_media_that_are_no_paths_are_bad_rows(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "t.jsonl", [{"path": "a\0b.jpg"}, {"path": "\ud800.jpg"}, {"path": " "}])
    assert [kind for _, kind, _ in faults(jobs_of(table))] == ["bad_row"] * 3


def test_a_row_without_id_or_question_is_bad(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "t.jsonl", [{"path": "a.jpg", "q": "x?", "n": None}, {"path": "b.jpg", "n": 1}])
    jobs = jobs_of(table, prompts=(), options=InputOptions(id_column="n", prompt_columns=("q",)))
    assert [message.partition(": ")[2] for _, _, message in faults(jobs)] == [
        "nothing in column 'n'", "no question in column 'q'",
    ]  # fmt: skip
    assert [job.questions[0].id for job in jobs] == [f"{tmp_path}/a.jpg", "1"]


def test_a_parquet_file_that_breaks_off_is_one_bad_row_and_the_next_part_is_read(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", ROWS)
    (parts / "part-001.parquet").write_bytes(b"PAR1 not really PAR1")
    jobs = jobs_of(parts)
    assert [job.path for job in jobs] == [f"{parts}/a.mp4", str(parts), f"{parts}/a.mp4"]
    assert jobs[1].fault is not None
    assert f"{parts}, row 3: cannot read the table '{parts}/part-001.parquet'" in jobs[1].fault.message


def test_pictures_inside_parquet_as_hugging_face_stores_them(tmp_path: Path) -> None:
    cells = [{"bytes": b"one", "path": "x/1.png"}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"three", "path": None}]
    table = write_parquet(tmp_path / "t.parquet", [{"image": cell} for cell in cells])
    jobs = jobs_of(table)
    assert [job.file_name for job in jobs] == ["1.png", "b.jpg", "3"]
    assert jobs[0].path == f"{table}/1/1.png"
    assert jobs[0].item is not None
    assert jobs[0].item[:2] == (f"{table}/1", 3)
    assert 0 <= (jobs[0].item[2] or 0) < 2**48
    assert [job.source is None for job in jobs] == [False, True, False]
    raw = write_parquet(tmp_path / "raw.parquet", [{"image": b"bytes"}])
    assert [job.source is None for job in jobs_of(raw)] == [False]


def test_kept_columns_and_their_types(tmp_path: Path) -> None:
    rows = [
        {"path": "a.jpg", "i": 1, "f": 0.5, "b": True, "s": "x", "mixed": 1, "deep": {"k": [1, "é"]}, "text": "t"},
        {"path": "b.jpg", "i": None, "f": 2, "b": False, "s": "y", "mixed": "two", "deep": None, "text": "u"},
    ]
    table = write_jsonl(tmp_path / "t.jsonl", rows)
    with inputs(table, options=InputOptions(keep_all=True)) as opened:
        first, second = (job.questions[0].kept for job in opened.jobs)
    assert dict(opened.kept) == {
        "path": "string", "i": "int64", "f": "float64", "b": "bool", "s": "string", "mixed": "string",
        "deep": "string", "input_text": "string",
    }  # fmt: skip
    assert first == {
        "path": "a.jpg", "i": 1, "f": 0.5, "b": True, "s": "x", "mixed": "1", "deep": '{"k": [1, "é"]}',
        "input_text": "t",
    }  # fmt: skip
    assert second["i"] is None
    assert second["f"] == 2.0
    assert isinstance(second["f"], float)


def test_kept_columns_that_differ_by_case_only(tmp_path: Path) -> None:
    columns = {"path": "a.jpg", "Text": "t", "STATUS": "s", "Name": "1", "name": "2", "NAME": "3", "input_text": "4"}
    table = write_csv(tmp_path / "t.csv", [columns])
    other = write_jsonl(tmp_path / "t.jsonl", [{"path": "b.jpg", "PATH": "p", "Text": 5, "Digest": "d"}])
    with inputs(table, other, options=InputOptions(keep_all=True)) as opened:
        first, second = (dict(job.questions[0].kept) for job in opened.jobs)
    nothing = dict.fromkeys(["input_PATH", "input_Digest"])
    assert first == nothing | {
        "path": "a.jpg", "input_Text": "t", "input_STATUS": "s", "Name": "1", "input_name": "2",
        "input_input_NAME": "3", "input_input_text": "4",
    }  # fmt: skip
    assert {name: value for name, value in second.items() if value} == {
        "path": "b.jpg", "input_PATH": "p", "input_Text": "5", "input_Digest": "d",
    }  # fmt: skip
    assert [column.name for column in opened.kept] == list(first)


def test_types_of_parquet_are_kept_where_json_has_them(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = pa.table({
        "path": ["a.jpg"], "small": pa.array([7], pa.uint8()), "half": pa.array([float("nan")], pa.float32()),
        "when": [moment], "list": [[1, 2]], "raw": [b"\0"], "big": pa.array([2**64 - 1], pa.uint64()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")  # pyright: ignore
    with inputs(tmp_path / "t.parquet", options=InputOptions(keep_all=True)) as opened:
        (job,) = opened.jobs
    assert [kind for _, kind in opened.kept] == ["string", "int64", "float64", "string", "string", "string", "string"]
    assert list(job.questions[0].kept.values()) == [
        "a.jpg", 7, None, "2026-01-02T03:04:05+00:00", "[1, 2]", "AA==", str(2**64 - 1),
    ]  # fmt: skip


def test_kept_columns_of_several_inputs(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "1.jsonl", [{"path": "a.jpg", "n": 1, "x": "only here"}])
    two = write_csv(tmp_path / "2.csv", [{"path": "b.jpg", "n": "two"}])
    touch(tmp_path, "c.jpg")
    options = InputOptions(keep_columns=("n", "x"))
    with inputs(one, two, tmp_path / "c.jpg", options=options) as opened:
        kept = [dict(job.questions[0].kept) for job in opened.jobs]
    assert dict(opened.kept) == {"n": "string", "x": "string"}
    assert kept == [{"n": "1", "x": "only here"}, {"n": "two", "x": None}, {"n": None, "x": None}]


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("{nme}?", {}, "the prompt: 't.csv' has no column 'nme'; its columns are: path, name"),
        ("{name?", {}, "a single '{' in the prompt; {{ stands for it"),
        ("name}?", {}, "a single '}' in the prompt; }} stands for it"),
        ("x", {"column": "file"}, "--column: 't.csv' has no column 'file'; its columns are: path, name"),
        ("x", {"id_column": "id"}, "--id-column: 't.csv' has no column 'id'"),
        ("x", {"prompt_columns": ("q",)}, "--prompt-column: 't.csv' has no column 'q'"),
        ("x", {"keep_columns": ("k",)}, "--keep-columns: 'the input' has no column 'k'"),
    ],
)
def test_unknown_columns_are_usage_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, options: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(Path("t.csv"), [{"path": "a.jpg", "name": "Ann"}])
    with pytest.raises(UsageError) as error:
        jobs_of("t.csv", prompts=[Prompt(prompt)], options=InputOptions(**options))
    assert str(error.value).startswith(words)


def test_which_column_holds_the_media(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"clip": "a.mp4", "url": "b.mp4", "file": "c.mp4"}])
    assert [job.file_name for job in jobs_of(table)] == ["c.mp4"]
    assert [job.file_name for job in jobs_of(table, options=InputOptions(column="clip"))] == ["a.mp4"]
    with pytest.raises(UsageError, match=r"Name it with --column; there are: clip"):
        jobs_of(write_csv(tmp_path / "u.csv", [{"clip": "a.mp4"}]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "is empty: its first line must name its columns"),
        ("t.csv", "path,a,a\n", "has two columns named 'a'"),
        ("t.jsonl", "path\na.jpg\n", r"is not JSONL, an object a line \(line 1: not valid JSON"),
        ("t.parquet", "PAR1", "cannot read the table"),
        ("t.parquet", None, "cannot read the table '.*t.parquet': "),
        ("t.csv", None, "cannot read the table '.*t.csv': no such file"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=words):
        jobs_of(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_table_without_rows_gives_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("path\n" if name == "t.csv" else "\n")
    assert jobs_of(tmp_path / name) == []


def test_flags_of_tables_need_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="--keep-columns needs a table or a shard"):
        jobs_of(tmp_path, options=InputOptions(keep_all=True))


def test_braces_mean_columns_only_where_there_are_some(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    table = write_csv(tmp_path / "t.csv", [{"path": "b.jpg", "name": "Ann"}])
    prompt = [Prompt('Answer as {"n": 1} or {name}')]
    assert asked(jobs_of(tmp_path / "a.jpg", prompts=prompt)) == [(f"{tmp_path}/a.jpg", [prompt[0].text])]
    with pytest.raises(UsageError, match="names the column 'name', and some of the inputs are no tables"):
        jobs_of(tmp_path / "a.jpg", table, prompts=[Prompt("{name}?")])
    both = jobs_of(tmp_path / "a.jpg", table, prompts=[Prompt("{{x}}?")])
    assert [questions for _, questions in asked(both)] == [["{x}?"], ["{x}?"]]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, name: str) -> None:
    """The second half of 60,000 rows costs no memory that the first did not."""
    rows = [{"path": f"{number:07}.jpg", "q": f"Is it number {number}?"} for number in range(60_000)]
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=5000)  # pyright: ignore
    else:
        WRITERS[name](tmp_path / name, rows)
    del rows
    with inputs(tmp_path / name, prompts=(), options=InputOptions(prompt_columns=("q",))) as opened:
        tracemalloc.start()
        for number, _ in enumerate(opened.jobs):
            if number == 30_000:
                half = tracemalloc.get_traced_memory()[1]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert number == 59_999
    assert peak < half + (1 << 19)
    assert peak < 8 << 20


def test_what_is_asked_of_files_is_what_was_typed() -> None:
    (job,) = jobs_of("a.mp4")
    assert tuple(question.prompt for question in job.questions) == WHAT


def test_what_is_made_quickly_is_what_the_constructors_make() -> None:
    prompt = make_prompt("What?", "what")
    assert prompt == Prompt("What?", "what")
    question = make_question(prompt, "id", {"split": "train"})
    assert question == Question(prompt, "id", {"split": "train"})
    fault = Fault("input", "bad_row", "line 7")
    assert make_job("a.jpg", "a.jpg", (question,), fault, ("/a.jpg", 1, 2), None) == Job(
        "a.jpg", "a.jpg", (question,), fault, ("/a.jpg", 1, 2)
    )
