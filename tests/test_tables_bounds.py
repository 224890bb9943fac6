"""Tables and lists of strangers: what never ends, repeats or is nested without end is a row, and costs little."""

import csv
import json
import os
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_doubles import asked, faults, inputs, jobs_of
from peak_memory import forget_peak, peak

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs import csv_table, listing
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.questions import LONGEST_QUESTION
from llava_mini_cli.formats.job import Prompt

GOOD = b'{"path": "/a.png"}\n'
BAD_LINES = {
    "a line of 17 MB": (b'{"path": "' + b"x" * (17 << 20) + b'"}\n', "not valid JSON: more than 16777216 bytes"),
    "a text of line ends": (b'{"' + b"\\n" * (9 << 20) + b"\n", "not valid JSON: more than 16777216 bytes"),
    "depth 100,000": (b"[" * 100_000 + b"\n", "not valid JSON: nested deeper than 100 levels"),
    "depth 101": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}\n", "not valid JSON: nested deeper than 100 levels"),
    "200,000 digits": (b'{"a":' + b"9" * 200_000 + b"}\n", "not valid JSON: Exceeds the limit (4300 digits)"),
    "no object": (b"[1]\n", "not an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_of_jsonl_that_cannot_be_held_is_a_row_and_the_next_ones_are_read(name: str, tmp_path: Path) -> None:
    line, why = BAD_LINES[name]
    (tmp_path / "t.jsonl").write_bytes(GOOD + line + GOOD)
    jobs = jobs_of(tmp_path / "t.jsonl")
    ((stage, kind, message),) = faults(jobs)
    assert (stage, kind) == ("input", "bad_row")
    assert message.startswith(f"{tmp_path}/t.jsonl, line 2: {why}")
    assert [job.path for job in jobs if job.fault is None] == ["/a.png"] * 2


def test_brackets_in_texts_are_no_depth(tmp_path: Path) -> None:
    record = {"path": "/a.png", "q": '[{\\"' * 300, "deep": json.loads("[" * 99 + "]" * 99), "wide": [[]] * 500}
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    jobs = jobs_of(tmp_path / "t.jsonl", prompts=[], options=InputOptions(prompt_columns=("q",)))
    assert asked(jobs) == [("/a.png", ['[{\\"' * 300])]


def test_a_row_of_csv_is_bounded_over_all_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "LONGEST_FIELD", 40)
    fits = b'"/b.png","' + b"x" * 27 + b'"\n'  # 40 characters with its end
    many = b'/c.png,"' + b"a\n" * 30 + b'"\n'
    (tmp_path / "t.csv").write_bytes(b"path,q\n" + fits + b"x" * 41 + b"\n" + b"," * 5000 + b"\n" + fits + many)
    jobs = jobs_of(tmp_path / "t.csv", prompts=[], options=InputOptions(prompt_columns=("q",)))
    found = [message.removeprefix(f"{tmp_path}/t.csv, line ") for _, _, message in faults(jobs)]
    assert found[:3] == [f"{line}: more than 40 characters" for line in (3, 4, 6)]
    assert [job.path for job in jobs if job.fault is None] == ["/b.png"] * 2
    csv.field_size_limit(1 << 26)


def test_too_many_columns(tmp_path: Path) -> None:
    begin = time.process_time()
    (tmp_path / "t.csv").write_text("path," + ",".join(f"c{number}" for number in range(300_000)) + "\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({f"c{number}": 1 for number in range(10_001)}))
    for name in ("t.csv", "t.jsonl"):
        with pytest.raises(UsageError, match=f"the table '{tmp_path}/{name}' has more than 10000 columns"):
            jobs_of(tmp_path / name)
    (tmp_path / "u.csv").write_text(
        "path," + ",".join(f"c{number}" for number in range(9_999)) + "\n/a.png" + "," * 9_999
    )
    with inputs(tmp_path / "u.csv", options=InputOptions(keep_all=True)) as opened:
        assert len(opened.kept) == 10_000
    with pytest.raises(UsageError, match=r"no column 'x'; its columns are: path, c0, .*, c98 and 9900 more$"):
        jobs_of(tmp_path / "u.csv", options=InputOptions(column="x"))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_a_pipe_and_a_device_are_no_tables(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / f"zero-{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"zero-{name}"):
        with pytest.raises(UsageError, match=f"cannot read the table '{path}': not a regular file"):
            jobs_of(path)


def test_a_question_that_no_model_takes_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"path": "/a.png", "q": letter * LONGEST_QUESTION + more} for letter in "xü" for more in ("", "x")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = jobs_of(tmp_path / "t.jsonl", prompts=[Prompt("{q}")])
    other = jobs_of(tmp_path / "t.jsonl", prompts=[], options=InputOptions(prompt_columns=("q",)))
    for some in (jobs, other):
        assert [message.rpartition(": ")[2] for _, _, message in faults(some)] == [
            "a question of 1000001 characters"
        ] * 2
        assert sum(len(job.questions) for job in some if job.fault is None) == 2


def test_a_text_that_a_million_rows_of_parquet_share_is_in_memory_once(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4096), pa.array(["x" * 2_000_000]))
    table = pa.table({"path": ["/a.png"] * 4096, "q": texts})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    before = forget_peak()
    with inputs(tmp_path / "t.parquet", options=InputOptions(keep_columns=("q",))) as opened:
        job = next(opened.jobs)
    assert [len(str(question.kept["q"])) for question in job.questions] == [2_000_000] * 256
    assert peak() - before < 100 << 10


def test_media_that_many_rows_of_parquet_share_are_in_memory_once(tmp_path: Path) -> None:
    records = [{"image": {"bytes": b"x" * 1_000_000, "path": f"{number}.png"}} for number in range(100)]
    pq.write_table(pa.Table.from_pylist([*records, {"image": None}]), tmp_path / "t.parquet", compression="zstd")
    del records
    before = forget_peak()
    with inputs(tmp_path / "t.parquet") as opened:
        jobs = list(opened.jobs)
    assert [job.source.read_at(5, 0) for job in islice(jobs, 100)] == [b"xxxxx"] * 100  # pyright: ignore
    assert [job.fault is None for job in jobs] == [True] * 100 + [False]
    assert peak() - before < 50 << 10


def test_an_entry_of_a_list_that_is_too_long_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = b"/" + b"x" * (listing.LONGEST_ENTRY - 1)
    (tmp_path / "list").write_bytes(b"/a.png\n" + longest + b"\n" + b"y" * (1 << 20) + b"\n/b.png\n")
    jobs = jobs_of(options=InputOptions(files_from=str(tmp_path / "list")))
    assert [job.path for job in jobs if job.fault is None] == ["/a.png", longest.decode(), "/b.png"]
    assert [job.path for job in jobs if job.fault is not None] == ["y" * 100]
    assert faults(jobs) == [("input", "bad_row", "an entry of more than 65536 bytes, of which this is the beginning")]
    monkeypatch.setattr(listing, "_LONGEST_REST", 1 << 19)
    with pytest.raises(UsageError, match=f"--files-from cannot read '{tmp_path}/list': an entry of it does not end"):
        jobs_of(options=InputOptions(files_from=str(tmp_path / "list")))


def test_devices_are_no_lists_but_the_empty_one(tmp_path: Path) -> None:
    (tmp_path / "list").symlink_to("/dev/zero")
    for name in (str(tmp_path / "list"), "/dev/urandom"):
        with pytest.raises(UsageError, match=f"--files-from cannot read '{name}': it is a device"):
            jobs_of(options=InputOptions(files_from=name))
    assert jobs_of(options=InputOptions(files_from="/dev/null")) == []
