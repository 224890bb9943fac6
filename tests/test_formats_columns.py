"""Values, columns and questions of tables, lists, shards and folders: the small functions, exact to a value."""

import os
import tarfile
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_doubles import faults, inputs, jobs_of, touch
from test_formats_inputs_shards import note, write_tar

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs import jsonl_table, listing, parquet_table, shards
from llava_mini_cli.formats.inputs.columns import (
    as_kind,
    as_mapping,
    as_text,
    check_columns,
    is_empty,
    kind_of_types,
    merge_kinds,
    output_name,
)
from llava_mini_cli.formats.inputs.csv_table import LONGEST_FIELD, CsvTable
from llava_mini_cli.formats.inputs.folders import find_glob, glob_root, is_chosen, walk
from llava_mini_cli.formats.inputs.jsonl_table import JsonlTable
from llava_mini_cli.formats.inputs.listing import check_listing, read_listing
from llava_mini_cli.formats.inputs.options import InputOptions as Options
from llava_mini_cli.formats.inputs.parquet_table import ParquetTable
from llava_mini_cli.formats.inputs.prompts import read_prompt_file
from llava_mini_cli.formats.inputs.questions import RowAsker, Template
from llava_mini_cli.formats.inputs.table import reading_error
from llava_mini_cli.formats.inputs.tables import is_table, media_column, open_table
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.row import COLUMNS, Column, KeptColumn, one_line, printable
from llava_mini_cli.formats.shard import Shard

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("types", "kind"),
    [
        (set[type](), "string"), ({type(None)}, "string"), ({bool}, "bool"), ({bool, type(None)}, "bool"),
        ({int}, "int64"), ({int, float}, "float64"), ({float, type(None)}, "float64"), ({bool, int}, "string"),
        ({str}, "string"), ({dict}, "string"),
    ],
)  # fmt: skip
def test_the_type_of_a_json_column(types: set[type], kind: str) -> None:
    assert kind_of_types(types) == kind


@pytest.mark.parametrize(
    ("value", "kind", "held"),
    [
        (None, "string", None), (NAN, "float64", None), (INF, "string", None), (-INF, "float64", None),
        (7, "string", "7"), (7, "float64", 7.0), (0.5, "float64", 0.5), (7, "int64", 7), (True, "bool", True),
        (True, "string", "true"), ({"a": [1, "é"]}, "string", '{"a": [1, "é"]}'), ("\udcff", "string", "\\xff"),
        (b"\0", "string", "AA=="), (date(2026, 1, 2), "string", "2026-01-02"), (time(3, 4), "string", "03:04:00"),
        (datetime(2026, 1, 2, tzinfo=UTC), "string", "2026-01-02T00:00:00+00:00"), (1 + 2j, "string", "(1+2j)"),
        ([b"\0", date(2026, 1, 2)], "string", '["AA==", "2026-01-02"]'), (["\ud800"], "string", '["\\ud800"]'),
        ("é", "string", "é"),
    ],
)  # fmt: skip
def test_a_value_as_its_column_holds_it(value: object, kind: str, held: object) -> None:
    got = as_kind(value, kind)
    assert got == held
    assert type(got) is type(held)


def test_which_cells_hold_nothing() -> None:
    assert all(map(is_empty, (None, NAN, "", " \t\n", "\u3000")))
    assert not any(map(is_empty, (0, False, INF, "x ", b"", [])))
    assert as_text("plain") == "plain"
    assert (as_mapping({"a": 1}), as_mapping([1]), as_mapping(None)) == ({"a": 1}, None, None)


def test_names_and_types_of_kept_columns() -> None:
    assert [output_name(name) for name in ("text", "texts", "caf\udce9")] == ["input_text", "texts", "caf\\xe9"]
    assert merge_kinds([{"a": "int64", "text": "bool"}, {"a": "int64", "b": "int64"}, {"b": "float64"}]) == {
        "a": KeptColumn("a", "int64"), "text": KeptColumn("input_text", "bool"), "b": KeptColumn("b", "string"),
    }  # fmt: skip
    with pytest.raises(UsageError, match="two columns would be named 'input_text' in the output"):
        merge_kinds([{"text": "string", "input_text": "string", "other": "string"}])


def test_columns_that_are_not_there() -> None:
    check_columns("--x", ["a", "b"], ["b", "a"], "t")
    for columns, words in [(["b", "c"], "b, c"), ([], "none")]:
        with pytest.raises(UsageError) as error:
            check_columns("--x", ["b", "a"] if columns else ["a"], columns, "t.csv")
        assert str(error.value) == f"--x: 't.csv' has no column 'a'; its columns are: {words}"


def test_options_that_cannot_be() -> None:
    for options, words in [
        ({"null": True}, "-0 needs --files-from"),
        ({"files_from": ""}, "--files-from is empty"),
        ({"prompt_columns": ("a", "b", "a")}, "--prompt-column names the column 'a' twice"),
        ({"keep_columns": ("a", "")}, "--keep-columns is empty"),
    ]:
        with pytest.raises(UsageError, match=words):
            Options(**options)
    assert Options(files_from="-", null=True, keep_columns=("a", "b")).column_flags == ("--keep-columns",)
    assert Options().column_flags == ()
    given = Options(column="", id_column="", prompt_columns=("q",), keep_all=True)
    assert given.column_flags == ("--column", "--id-column", "--prompt-column", "--keep-columns")
    assert (Options().recursive, Options().keep_all, Options().null) == (True, False, False)


def test_a_template_in_pieces() -> None:
    template = Template.parse(Prompt("a {{b}} {c}{d e}}}", "n"))
    assert template == (Prompt("a {{b}} {c}{d e}}}", "n"), ("a {b} ", "", "}"), ("c", "d e"))
    assert template.fill([1, "x"]) == "a {b} 1x}"
    assert Template.parse(Prompt("plain")).literals == ("plain",)
    with pytest.raises(ValueError, match="shorter"):
        template.fill([1])


def asker(
    prompts: list[str], columns: tuple[str, ...] | None, *, kept: tuple[str, ...] = (), **options: Any
) -> RowAsker:
    here = {name: KeptColumn(f"out_{name}", "string") for name in kept}
    return RowAsker([Prompt(text) for text in prompts], Options(**options), here, columns, "t")


def test_each_column_of_a_row_is_asked_for_once() -> None:
    asks = asker(
        ["{b}{a}{b}", "plain"],
        ("a", "b", "q", "i", "k"),
        kept=("a", "k", "gone"),
        prompt_columns=("q", "a"),
        id_column="i",
    )
    assert asks.columns == ("b", "a", "q", "i", "k")
    asked: list[Question] = []
    assert asks.ask(["B", "A", "", 7, 9], "row", asked) == []
    kept = {"out_a": "A", "out_k": "9", "out_gone": None}
    assert [(question.prompt.text, question.prompt.name, question.id, question.kept) for question in asked] == [
        ("plain", None, "7", kept), ("BAB", None, "7", kept), ("A", "a", "7", kept),
    ]  # fmt: skip
    assert asker(["{x}"], None, kept=("k",)).columns == ("x", "k")


def test_questions_that_a_row_does_not_give() -> None:
    asked: list[Question] = []
    asks = asker(["{a}?"], ("a", "q"), prompt_columns=("q",))
    for values, why, text in [
        ([" ", None], "nothing in column 'a'", "{a}?"),
        (["\ud800", None], "column 'a' is not valid UTF-8", "{a}?"),
        ([None, None], "nothing in column 'a'", "{a}?"),
    ]:
        (unasked,) = asks.ask(values, "row", asked)
        assert (unasked.why, unasked.question) == (why, Question(Prompt(text), "row"))
    assert asked == []
    (unasked,) = asks.ask(["A", "\ud800"], "row", asked)
    assert unasked.why == "column 'q' is not valid UTF-8"
    assert [question.prompt for question in asked] == [Prompt("A?")]
    asked.clear()
    assert asks.ask(["é", 7], "row", asked) == []
    assert [question.prompt for question in asked] == [Prompt("é?"), Prompt("7", "q")]
    none = asker([], ("q", "r"), prompt_columns=("q", "r")).ask(["", None], "row", asked)
    assert [unasked.why for unasked in none] == ["no question in column 'q', 'r'"]
    assert len(asked) == 2
    (unasked,) = asker(["x"], ("i",), id_column="i").ask([" "], "row", asked)
    assert (unasked.why, unasked.question.id) == ("nothing in column 'i'", "row")


def test_csv_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('a\tb\tc\n1\t"2\n2"\t3\n\n4\t5\n6\t7\t8\t9\n1\t2\t3')
    table = CsvTable(f"{tmp_path}/t.tsv", "t", "f/")
    assert (table.columns, table.unit, table.name, table.folder) == (("a", "b", "c"), "line", "t", "f/")
    assert list(table.rows(["c", "a"])) == [
        (2, ("3", "1"), None), (5, (), "2 fields where the first line has 3"),
        (6, (), "4 fields where the first line has 3"), (7, ("3", "1"), None),
    ]  # fmt: skip
    assert [tuple(values) for _, values, why in table.rows(["b"]) if why is None] == [("2\n2",), ("2",)]
    assert table.kinds(["b", "a"]) == {"b": "string", "a": "string"}
    assert LONGEST_FIELD == 2**26
    (tmp_path / "u.csv").write_text("a\tb,c\n")
    assert CsvTable(f"{tmp_path}/u.csv", "u", "").columns == ("a\tb", "c")


def test_jsonl_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n \n[1]\n{"b": 9223372036854775807, "a": 2.5}\n{"c": true}\n')
    table = JsonlTable(str(path), "t", "")
    assert (table.columns, table.unit) == (("a", "b", "c"), "line")
    assert table.kinds(["a", "b", "c"]) == {"a": "float64", "b": "int64", "c": "bool"}
    assert list(table.rows(["b", "a"])) == [
        (1, [None, 1], None), (3, (), "not an object"), (4, [2**63 - 1, 2.5], None), (5, [None, None], None),
    ]  # fmt: skip
    monkeypatch.setattr(jsonl_table, "LOOKED_AT", 3)
    assert JsonlTable(str(path), "t", "").columns == ("a", "b")
    assert JsonlTable(str(path), "t", "", look_at_all=True).columns == ("a", "b", "c")
    path.write_text(f'{{"a": {2**63}, "b": {-(2**63)}}}\n{{"a": {-(2**63) - 1}}}')
    table = JsonlTable(str(path), "t", "")
    assert table.kinds(["a", "b"]) == {"a": "string", "b": "int64"}
    path.write_text("[1]\n{\n")
    with pytest.raises(UsageError, match=r"'t' is not JSONL, an object a line \(line 1: not an object\)"):
        JsonlTable(str(path), "t", "")
    path.write_text('[1]\n{"a": 1}\n')
    assert JsonlTable(str(path), "t", "").columns == ("a",)
    with pytest.raises(UsageError, match="cannot read the table 't': no such file or directory"):
        JsonlTable(str(tmp_path / "gone"), "t", "")


def test_which_rows_of_jsonl_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jsonl_table.LOOKED_AT == 1000
    path = tmp_path / "t.jsonl"
    path.write_text('{"path": "a"}\n{"path": "b", "late": 1}\n')
    monkeypatch.setattr(jsonl_table, "LOOKED_AT", 1)
    columns = [open_table(str(path), "t", "", options).columns for options in (
        Options(), Options(keep_columns=("late",)), Options(keep_all=True),
    )]  # fmt: skip
    assert columns == [("path",), ("path", "late"), ("path", "late")]


def test_parquet_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = pq.ParquetFile.iter_batches

    def noted(self: Any, size: int, **options: Any) -> Any:
        sizes.append(size)
        return real(self, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    columns = {
        "n": [1, 2, 3],
        "raw": [b"x"] * 3,
        "big": pa.array([b"x"] * 3, pa.large_binary()),
        "s": [{"bytes": b"x"}] * 3,
    }
    for number in (1, 2):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")  # pyright: ignore
    pq.write_table(pa.table({"raw": [b"x"]}), tmp_path / "3.parquet")  # pyright: ignore
    names = [str(tmp_path / f"{number}.parquet") for number in (1, 2, 3)]
    table = ParquetTable(names, "t", "f/")
    assert (table.columns, table.unit, table.path) == (("n", "raw", "big", "s"), "row", names[0])
    assert [(number, list(values)) for number, values, _ in table.rows(["n"])] == [
        (1, [1]), (2, [2]), (3, [3]), (4, [1]), (5, [2]), (6, [3]), (7, [None]),
    ]  # fmt: skip
    assert sizes == [4096] * 3
    for name in ("raw", "big", "s"):
        sizes.clear()
        list(ParquetTable(names[:1], "t", "").rows(["n", name]))
        assert sizes == [parquet_table.BATCH_ROWS_WITH_BYTES] == [64]


def test_types_of_parquet_by_arrows_names(tmp_path: Path) -> None:
    kinds = {
        "int64": (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()),
        "float64": (pa.float16(), pa.float32(), pa.float64()),
        "bool": (pa.bool_(),),
        "string": (pa.uint64(), pa.string(), pa.binary(), pa.date32(), pa.list_(pa.int64())),
    }
    fields = [(f"{kind}-{number}", of) for kind, some in kinds.items() for number, of in enumerate(some)]
    pq.write_table(pa.schema(fields).empty_table(), tmp_path / "t.parquet")  # pyright: ignore
    table = ParquetTable([str(tmp_path / "t.parquet")], "t", "")
    found = table.kinds(table.columns)
    assert found == {name: name.partition("-")[0] for name, _ in fields}


def test_one_line_about_a_table_that_cannot_be_read() -> None:
    assert reading_error("t", OSError(2, "No such file")) == "cannot read the table 't': no such file"
    assert reading_error("t", OSError("Odd\nand more")) == "cannot read the table 't': odd"
    assert reading_error("t", ValueError("X")) == "cannot read the table 't': x"


def test_which_names_are_tables() -> None:
    for name in ("a.CSV", "a.tsv", "a.ndjson", "s3://b/c.parquet?v=1", "https://x/y.jsonl#1"):
        assert is_table(name)
    for name in ("a.csv.gz", "a\0.csv", "https://x/y?z=a.csv", "csv"):
        assert not is_table(name)


class Columns:
    """A table of which only the columns are asked."""

    name, path, folder, unit = "t", "t", "", "row"

    def __init__(self, *columns: str) -> None:
        self.columns = columns

    def kinds(self, columns: object) -> dict[str, str]:
        raise AssertionError

    def rows(self, columns: object) -> Any:
        raise AssertionError


def test_the_column_of_the_media() -> None:
    assert media_column(Columns("media", "url", "image"), Options()) == "image"
    assert media_column(Columns("media", "x"), Options(column="x")) == "x"
    assert media_column(Columns(), Options()) == "path"
    with pytest.raises(UsageError) as error:
        media_column(Columns("x", "y"), Options())
    assert str(error.value) == "which column of 't' holds the media? Name it with --column; there are: x, y"


def test_entries_of_a_list_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_CHUNK", 3)
    path = tmp_path / "list"
    path.write_bytes(b"\xef\xbb\xbfabcdef\n\n \t\nab\r\n\xef\xbb\xbfc\n\nlast")
    assert list(read_listing(str(path), null=False)) == ["abcdef", "ab", "\ufeffc", "last"]
    path.write_bytes(b"\xef\xbb\xbfa\r\0\0 \0b\nc\0")
    assert list(read_listing(str(path), null=True)) == ["\ufeffa\r", " ", "b\nc"]
    opened = len(os.listdir("/dev/fd"))
    with pytest.raises(UsageError, match=r"^--files-from cannot read '.*gone': no such file or directory$"):
        list(read_listing(str(tmp_path / "gone"), null=False))
    with pytest.raises(UsageError, match=r"cannot read '.*': is a directory"):
        list(read_listing(str(tmp_path), null=False))
    assert len(os.listdir("/dev/fd")) == opened


def test_lists_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").touch()
    check_listing("-")
    check_listing(str(tmp_path / "list"))
    with pytest.raises(UsageError, match="it is a folder"):
        check_listing(str(tmp_path))
    monkeypatch.setattr(os, "access", lambda name, mode: False)
    check_listing("-")
    for name, why in [("list", "permission denied"), ("gone", "no such file")]:
        with pytest.raises(UsageError, match=f"^--files-from cannot read '{tmp_path}/{name}': {why}$"):
            check_listing(str(tmp_path / name))


def test_what_a_pattern_chooses() -> None:
    def chosen(name: str, include: str = "", exclude: str = "") -> bool:
        return is_chosen(name, Options(include=(include,) if include else (), exclude=(exclude,) if exclude else ()))

    assert chosen("a/b.jpg")
    assert chosen("a/b.jpg", "*.jpg")
    assert not chosen("a/b.jpg", "a/*.png")
    assert not chosen("a/b.jpg", "a")
    assert not chosen("a/b/c.jpg", exclude="a/b")
    assert not chosen("a/b/c.jpg", exclude="a/")
    assert not chosen("a/b/c.jpg", exclude="*.jpg")
    assert chosen("a/b/c.jpg", exclude="b/c.jpg")
    assert chosen("ab/c.jpg", exclude="a")
    assert glob_root("a/b*/c/d.jpg") == "a"
    assert glob_root("a/b/*.jpg") == "a/b"
    assert glob_root("*.jpg") == "."


def test_walks_and_globs_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.jpg", "a/y.jpg", "z.jpg", ".h/x.jpg", "b/.x.jpg", "a/deep/w.jpg")
    found = list(walk(str(tmp_path), Options(), lambda name: True))
    assert [(Path(path).name, name) for path, name, _ in found] == [
        ("z.jpg", "z.jpg"), ("y.jpg", "a/y.jpg"), ("w.jpg", "a/deep/w.jpg"), ("x.jpg", "b/x.jpg"),
    ]  # fmt: skip
    found = list(walk(str(tmp_path), Options(exclude=("deep",)), lambda name: name != "z.jpg"))
    assert [each.file_name for each in found] == ["a/y.jpg", "b/x.jpg"]
    for pattern in ("**", "*/*.j*"):
        found = find_glob(f"{tmp_path}/{pattern}", Options(), lambda name: "y" in Path(name).name)
        assert [each.file_name for each in found] == ["a/y.jpg"]


def test_how_many_media_there_are_where_it_is_known(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "in/c.jpg")
    (tmp_path / "t.csv").write_text("path\na.jpg\n")
    (tmp_path / "list").write_text("a.jpg\n")
    for arguments, total in [
        ((f"{tmp_path}/*.jpg", "x.mp4"), 3), ((), 0), ((tmp_path / "in",), None), ((tmp_path / "t.csv",), None),
    ]:  # fmt: skip
        with inputs(*arguments) as opened:
            assert opened.total == total
            assert opened.share(None) is opened
            shared = opened.share(Shard(2, 2))
            assert shared.total == (None if total is None else total // 2)
            assert opened.again is not None
            assert shared.again is not None
            first = [job.path for job in opened.jobs]
            assert [job.path for job in opened.again()] == first
            assert [job.path for job in shared.again()] == first[1::2]
    with inputs(options=Options(files_from=str(tmp_path / "list"))) as opened:
        assert opened.total is None
        assert opened.again is not None
    os.mkfifo(tmp_path / "pipe")
    with inputs(options=Options(files_from=str(tmp_path / "pipe"))) as opened:
        assert opened.again is None


def test_files_beside_tables_carry_nulls(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,a,b\nx.jpg,1,2\n")
    for options, kept in [(Options(keep_columns=("b",)), ["b"]), (Options(keep_all=True), ["path", "a", "b"])]:
        with inputs("y.jpg", tmp_path / "t.csv", options=options) as opened:
            assert [column.name for column in opened.kept] == kept
            file, row = opened.jobs
        assert dict(file.questions[0].kept) == dict.fromkeys(kept)
        assert list(row.questions[0].kept) == kept
        assert row.questions[0].kept["b"] == "2"


def test_relative_media_begin_at_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.csv", "in/t.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("path\nx/a.jpg\né.jpg\nfile:///b/c.jpg\nhttp://d/e.jpg?f\nfile:///%00\n")
    jobs = jobs_of("t.csv", "in/t.csv")
    assert [(job.path, job.file_name) for job in jobs if job.fault is None] == [
        ("x/a.jpg", "x/a.jpg"), ("é.jpg", "é.jpg"), ("/b/c.jpg", "c.jpg"), ("http://d/e.jpg?f", "e.jpg"),
        ("in/x/a.jpg", "x/a.jpg"), ("in/é.jpg", "é.jpg"), ("/b/c.jpg", "c.jpg"), ("http://d/e.jpg?f", "e.jpg"),
    ]  # fmt: skip
    assert faults(jobs) == [
        ("input", "bad_row", f"{name}, line 6: column 'path' holds no path") for name in ("t.csv", "in/t.csv")
    ]
    assert [job.file_name for job in jobs if job.fault] == ["t.csv", "t.csv"]


def test_notes_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.TXT", b" x \n"),
        ("a.caption", b"y"),
        ("b.cls", b"3"),
        ("b.jpg", b"2"),
        ("c.jpg", b""),
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    assert shards.shard_columns(str(shard)) == ("__key__", "txt", "caption", "cls")
    monkeypatch.setattr(shards, "LOOKED_AT", 1)
    assert shards.shard_columns(str(shard)) == ("__key__", "txt", "caption")
    assert shards.shard_columns(str(tmp_path / "gone.tar")) == ("__key__",)
    jobs = jobs_of(shard, options=Options(keep_columns=("txt", "__key__")))
    assert [dict(job.questions[0].kept) for job in jobs] == [
        {"txt": "x", "__key__": "a"}, {"txt": None, "__key__": "b"}, {"txt": None, "__key__": "c"},
    ]  # fmt: skip
    monkeypatch.setattr(shards, "_LARGEST_NOTE", 8)
    for name, data, words in [
        ("x.json", note(a=12), "9 bytes are too many for a text"),
        ("x.txt", b"123456789", "9 bytes are too many for a text"),
        ("x.jsonl", b"\n", "no line"),
        ("x.jsonl", b"1", "not an object"),
        ("x.txt", b"\xff", "'utf-8' codec"),
    ]:
        shard = write_tar(tmp_path / "t.tar", [("x.jpg", b"1"), (name, data)])
        ((_, _, message),) = faults(jobs_of(shard))
        assert message.startswith(f"{shard}, sample x: {name}: {words}")
    shard = write_tar(tmp_path / "t.tar", [("x.jpg", b"1"), ("x.json", note(a=1))])  # 8 bytes are not too many
    assert faults(jobs_of(shard)) == []


def test_columns_of_shards_are_text_and_bad_samples_have_an_identity(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [("in/a.json", note(n=1)), ("b.jpg", b"1"), ("b.json", note(n=2))])
    with inputs(shard, options=Options(keep_columns=("n",))) as opened:
        assert opened.kept == (KeptColumn("n", "string"),)
        assert (opened.total, opened.again) == (None, None)
        bad, good = opened.jobs
    assert bad.item == (f"{shard}/in/a", None, None)
    assert (bad.path, bad.file_name, bad.questions[0].id) == (f"{shard}/in/a", "in/a", f"{shard}/in/a")
    assert (bad.questions[0].kept, good.questions[0].kept) == ({"n": None}, {"n": "2"})
    assert good.source is not None
    assert (good.source.suffix, good.source.name) == (".jpg", f"{shard}/b.jpg@{512 * 3}")


def test_a_shard_with_nothing_behind_its_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.jpg", b"x" * 600)], tarfile.USTAR_FORMAT)
    data = shard.read_bytes()[: 512 + 1024]
    shard.write_bytes(data + bytes(512))
    assert faults(jobs_of(shard)) == []
    shard.write_bytes(data + bytes(511))
    ((stage, kind, message),) = faults(jobs_of(shard))
    assert (stage, kind, message) == ("input", "truncated", "the shard cannot be read to its end: its end is missing")
    shard.write_bytes(data[: 512 + 599])
    ((_, _, message),) = faults(jobs_of(shard))
    assert message == "the shard cannot be read to its end: it ends within a.jpg"


def test_prompt_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, data, why in [("a", b"\xff", "not valid utf-8"), ("gone", None, "no such file or directory")]:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=f"^--prompt-file cannot read '{tmp_path}/{name}': {why}$"):
            read_prompt_file(str(tmp_path / name))
    (tmp_path / "q.NDJSON").write_text('{"prompt": "x", "name": ""}')
    assert read_prompt_file(str(tmp_path / "q.NDJSON")) == (Prompt("x"),)
    (tmp_path / "q.jsonl").write_text('{"prompt": "x", "name": 7}')
    with pytest.raises(UsageError, match=r"line 1: prompt and name must be text"):
        read_prompt_file(str(tmp_path / "q.jsonl"))


def test_jobs_and_what_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = Job("a/../b.jpg", "b.jpg", ())
    assert (plain.file, plain.identity) == ("a/../b.jpg", f"{tmp_path}/b.jpg")
    fetched = plain._replace(item=("http://x", 1, 2), local="/cache/1")
    assert (fetched.file, fetched.identity) == ("/cache/1", "http://x")
    assert plain[3:] == (None, None, None, None, None, None, (), (), None)
    assert Question(Prompt("x"), "id") == (Prompt("x", None), "id", {}, "", None, None, None)
    assert (Fault("input", "bad_row", "x").kind, TimeSpan(1, 0.0, 2.0, "").end) == ("bad_row", 2.0)


def test_the_columns_of_a_row() -> None:
    assert COLUMNS[:4] == (
        Column("id", str, False), Column("file_name", str, False), Column("media", str, True),
        Column("segment", int, True),
    )  # fmt: skip
    assert [column.name for column in COLUMNS if not column.nullable] == [
        "id", "file_name", "prompt", "status", "model", "fingerprint", "created_at",
    ]  # fmt: skip
    assert {column.name: column.kind for column in COLUMNS}["choice_probs"] == dict[str, float]
    assert printable("\ud800\udcff") == "\\ud800\\udcff"
    assert one_line(" a\n\tb\udcff ") == "a b\\xff"


def test_shares_in_words() -> None:
    assert (str(Shard(2, 3)), Shard(2, 3).tag) == ("2/3", "2of3")
    assert [Shard(number, 3).part_of(7) for number in (1, 2, 3)] == [3, 2, 2]
    for text, words in [("0/3", "--shard 0/3: I/N counts from 1/3 to N/N"), ("1/0", "counts from 1/N to N/N")]:
        with pytest.raises(UsageError, match=words):
            Shard.parse(text)
    with pytest.raises(UsageError, match="--shard must be I/N, such as 1/8, or auto, not '1/2/3'"):
        Shard.parse("1/2/3")


def test_a_share_in_a_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": "5", "MIN": "3", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for step, number in [("", 3), ("1", 3), ("2", 2)]:
        monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", step)
        assert Shard.parse("auto") == Shard(number, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "x")
    with pytest.raises(UsageError, match="--shard auto needs a Slurm array: SLURM_ARRAY_TASK_ID is not set"):
        Shard.parse("auto")
