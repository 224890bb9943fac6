"""Rows as JSONL, CSV and Parquet: the same columns, whole rows, and what is there already."""

import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_mini_cli.errors import OutputError, OutputLocked, UsageError
from llava_mini_cli.formats import parquet_parts
from llava_mini_cli.formats.companion import RunInfo
from llava_mini_cli.formats.csv import CsvRecords
from llava_mini_cli.formats.done import parse_key, written_key
from llava_mini_cli.formats.fingerprint import RowKeys, file_identity
from llava_mini_cli.formats.job import ItemIdentity, Job, Prompt, Question
from llava_mini_cli.formats.jsonl import JsonLines
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs import Format, Output, OutputOptions, open_output
from llava_mini_cli.formats.row import COLUMNS, KeptColumn, Row, printable
from llava_mini_cli.formats.shard import Shard
from llava_mini_cli.formats.stream import StreamOutput

ROW = Row(
    id="in/a.mp4",
    file_name="a.mp4",
    prompt="Was ist „das“?\nReally?",
    status="ok",
    text="a line\u2028and, \"another\"\r\n\\ 'one'",
    frame_count=3,
    fps_sampled=1.0,
    choice_probs={"yes": 0.75, "no": 0.25},
    model="tiny",
    fingerprint="0" * 32,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
)
RUN = RunInfo("tiny", {"fps": 1.0, "max_frames": None})
FAILED = replace(ROW, text=None, status="error", error="cut short", error_type="truncated", choice_probs=None)
NAMES = [column.name for column in COLUMNS]
FILES = ["out.jsonl", "out.csv", "out.parquet", "out/"]


def key(work: int, state: int = 0) -> str:
    return f"{work:020x}{state:012x}"


def row(work: int, text: str | None = "yes", state: int = 0) -> Row:
    """An answer, or an error without a text."""
    return replace(ROW if text else FAILED, id=f"{work}", text=text, fingerprint=key(work, state))


def opened(path: Path | str, run: RunInfo = RUN, **options: Any) -> Output:
    parsed = OutputOptions.parse(str(path), None, **options)
    parsed.check()
    return open_output(parsed, run)


def finished(path: Path | str, run: RunInfo = RUN) -> int:
    """How many rows a run finds done."""
    with opened(path, run=run) as output:
        return len(output.done)


def write(path: Path | str, *rows: Row, **options: Any) -> None:
    with opened(path, **options) as output:
        for each in rows:
            output.write(each)


def read(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a finished output."""
    if str(path).endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]
    if str(path).endswith(".csv"):
        with Path(path).open(newline="") as stream:
            return list(csv.DictReader(stream))
    return pq.read_table(path).to_pylist()


def texts(path: Path | str) -> list[tuple[str, str | None]]:
    return sorted((each["id"], each["text"] or None) for each in read(path))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/{request.param}"


each_format = pytest.mark.parametrize("output", FILES, indirect=True)


def test_jsonl_has_every_column_in_every_line() -> None:
    stream = BytesIO()
    with StreamOutput(stream, "x", JsonLines()) as writer:
        writer.write(ROW)
        assert stream.getvalue().endswith(b"}\n")  # visible at once
        writer.write(FAILED)
    lines = stream.getvalue().decode().rstrip("\n").split("\n")
    names = [field.name for field in fields(Row) if field.name not in ("kept", "source")]
    assert [list(json.loads(line)) for line in lines] == [names, names]
    first = json.loads(lines[0])
    assert first["created_at"] == "2026-01-02T03:04:05.678Z"
    assert first["prompt"] == ROW.prompt
    assert first["text"] == ROW.text
    assert first["error"] is None
    assert json.loads(lines[1])["text"] is None


def test_csv_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write(path, row(1, ROW.text), row(2, None))
    first, second = read(path)
    assert list(first) == NAMES
    assert first["text"] == ROW.text
    assert json.loads(first["choice_probs"]) == ROW.choice_probs
    assert (first["frame_count"], first["fps_sampled"], first["created_at"]) == ("3", "1.0", "2026-01-02T03:04:05.678Z")
    assert (second["text"], second["error"]) == ("", "cut short")
    assert finished(path) == 2


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_parquet_reads_back_as_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name if name != "out/" else f"{tmp_path}/out/", ROW, replace(FAILED, fingerprint=key(7)))
    table = pq.read_table(tmp_path / name)
    assert table.column_names == NAMES
    assert table.to_pylist() == [
        ROW.as_dict()
        | {"choice_probs": [{"choice": "yes", "probability": 0.75}, {"choice": "no", "probability": 0.25}]},
        FAILED.as_dict() | {"fingerprint": key(7)},
    ]
    record = json.loads((table.schema.metadata or {})[b"llava-mini"])
    assert (record["model"], record["settings"]) == ("tiny", dict(RUN.settings))
    assert record["version"]


@pytest.mark.filterwarnings("ignore")
def test_duckdb_pandas_and_datasets_read_parquet(tmp_path: Path) -> None:
    import duckdb
    import pandas
    from datasets import load_dataset

    write(tmp_path / "out.parquet", row(1), row(2, None))
    where = f"FROM '{tmp_path}/out.parquet' WHERE status = 'ok'"
    assert duckdb.sql(f"SELECT text, choice_probs[1].probability {where}").fetchall() == [("yes", 0.75)]
    assert list(pandas.read_parquet(tmp_path / "out.parquet")["status"]) == ["ok", "error"]
    files, cache = str(tmp_path / "out.parquet"), str(tmp_path / "cache")
    assert load_dataset("parquet", data_files=files, cache_dir=cache)["train"]["text"][:] == ["yes", None]


@each_format
def test_columns_of_the_input_are_kept_with_their_types(output: str) -> None:
    run = replace(RUN, kept=(KeptColumn("split", "string"), KeptColumn("score", "int64")))
    write(output, replace(ROW, kept={"split": "train", "score": 3}), run=run)
    (only,) = read(output)
    assert list(only) == [*NAMES, "split", "score"]
    assert (only["split"], only["score"]) == ("train", "3" if output.endswith(".csv") else 3)
    with pytest.raises(UsageError, match=r"kept from the input were split \(string\), score \(int64\), are none|other"):
        opened(output)


def test_parquet_is_written_in_parts_that_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_parts, "FLUSH_ROWS", 10)
    monkeypatch.setattr(parquet_parts, "GROUP_ROWS", 32)
    path, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    with opened(path) as output:
        for number in range(95):
            output.write(row(number))
        assert not path.exists()
        assert pq.read_table(parts).num_rows == 90
    assert names_in(tmp_path) == [".out.parquet.llava-mini", "out.parquet"]
    assert [each["id"] for each in read(path)] == [str(number) for number in range(95)]
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_rows_are_flushed_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "out.parquet") as output:
        output.write(row(1))
        assert not (tmp_path / "out.parquet.parts").exists()
        monkeypatch.setattr(parquet_parts, "FLUSH_SECONDS", 0.0)
        output.write(row(2))
        assert pq.read_table(tmp_path / "out.parquet.parts").num_rows == 2


@each_format
def test_a_finished_output_grows(output: str) -> None:
    write(output, row(1), row(2))
    with opened(output) as again:
        assert len(again.done) == 2
        assert [again.done.claim(*parse_key(key(number))) for number in (1, 2, 3)] == [None, None, key(3)]
        again.write(row(3))
    assert texts(output) == [("1", "yes"), ("2", "yes"), ("3", "yes")]


@each_format
def test_nothing_to_do_changes_nothing(output: str) -> None:
    write(output, row(1))

    def state(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns  # not when it was read

    before = {path: state(path) for path in Path(output).parent.rglob("*.*") if "llava-mini" not in str(path)}
    with opened(output):
        pass
    assert {path: state(path) for path in before} == before


@each_format
def test_an_error_tried_again_and_a_changed_file_leave_one_row(output: str) -> None:
    write(output, row(1, None), row(2, "old"), row(3, "kept"), row(4, None))
    with opened(output, retry_errors=True) as again:
        assert [again.done.claim(*parse_key(name)) for name in (key(1), key(2, 9), key(3))] == [key(1), key(2, 9), None]
        again.write(row(1, "now"))
        again.write(row(2, "new", state=9))
    assert texts(output) == [("1", "now"), ("2", "new"), ("3", "kept"), ("4", None)]


@each_format
def test_an_interrupted_run_keeps_its_rows_and_the_next_one_finishes(output: str) -> None:
    with pytest.raises(KeyboardInterrupt), opened(output) as first:
        first.write(row(1))
        first.write(row(2, None))
        raise KeyboardInterrupt
    with opened(output) as again:
        assert len(again.done) == 2
        again.write(row(3))
    assert texts(output) == [("1", "yes"), ("2", None), ("3", "yes")]
    assert not [path for path in Path(output).parent.rglob("*") if path.suffix in (".tmp", ".parts")]


@each_format
def test_rows_that_are_there_twice_become_one(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a run that was killed while the rows that stand were put in place of all."""
    write(output, row(1), row(2))
    monkeypatch.setattr("llava_mini_cli.formats.done.Done.replaced", 0, raising=False)
    with pytest.raises(KeyboardInterrupt), opened(output) as first:
        first.write(row(2))
        raise KeyboardInterrupt
    with opened(output) as again:
        assert (len(again.done), again.done.replaced) == (2, 1)
    assert texts(output) == [("1", "yes"), ("2", "yes")]


@each_format
def test_without_a_row_nothing_is_made(output: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(output):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


@each_format
def test_a_changed_setting_is_refused_by_name(output: str) -> None:
    write(output, row(1))
    other = replace(RUN, settings={"fps": 2.0, "max_frames": 8})
    with pytest.raises(UsageError) as refused:
        opened(output, run=other)
    assert str(refused.value).endswith(
        ": --fps was 1, is 2; --max-frames was not set, is 8; --overwrite starts anew, or name another output"
    )
    assert finished(output, run=replace(RUN, model="other")) == 1  # another model is new work


@each_format
def test_overwrite_starts_anew_with_the_first_row(output: str) -> None:
    write(output, row(1), row(2))
    other = replace(RUN, settings={"fps": 2.0})
    with opened(output, run=other, overwrite=True):
        pass
    assert texts(output) == [("1", "yes"), ("2", "yes")]
    with opened(output, run=other, overwrite=True) as anew:
        assert len(anew.done) == 0
        anew.write(row(3))
    assert texts(output) == [("3", "yes")]
    assert finished(output, run=other) == 1


@pytest.mark.parametrize("output", ["out.parquet", "out/"], indirect=True)
def test_an_overwrite_that_was_interrupted_goes_on_without_the_flag(output: str) -> None:
    write(output, row(1), row(2))
    other = replace(RUN, settings={"fps": 2.0})
    with pytest.raises(KeyboardInterrupt), opened(output, run=other, overwrite=True) as anew:
        anew.write(row(3))
        raise KeyboardInterrupt
    assert {text[0] for text in texts(output)} >= {"1", "2"}  # the old rows are there until the end
    with opened(output, run=other) as again:
        assert len(again.done) == 1
        again.write(row(4))
    if output.endswith(".parquet"):
        assert texts(output) == [("3", "yes"), ("4", "yes")]
    else:
        write(output, row(5), run=other, overwrite=True)
        assert texts(output) == [("5", "yes")]


@each_format
def test_a_second_run_is_told_who_holds_the_output(output: str) -> None:
    with opened(output) as first:
        with pytest.raises(OutputLocked, match=rf"another run \(pid {os.getpid()}\) is writing") as locked:
            opened(output)
        assert locked.value.exit_code == 75
        first.write(row(1))
    write(output, row(2))
    assert texts(output) == [("1", "yes"), ("2", "yes")]


def test_a_companion_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the end of the longer text that was there before is cut off."""
    path = tmp_path / "out.jsonl"
    write(path, row(1), run=replace(RUN, revision="a name that is longer than the next one"))

    def killed(descriptor: int, size: int) -> None:
        raise KeyboardInterrupt

    lock = FileLock(tmp_path / ".out.jsonl.llava-mini", path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", killed)
        with pytest.raises(KeyboardInterrupt):
            lock.write({})
    lock.release()
    assert json.loads((tmp_path / ".out.jsonl.llava-mini").read_bytes())["pid"] == os.getpid()


@pytest.mark.parametrize("tail", ['{"id": "3", "fingerp', "{"])
def test_a_torn_line_is_cut(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "out.jsonl"
    write(path, row(1), row(2))
    whole = path.read_text()
    path.write_text(whole + tail)
    with opened(path) as again:
        assert len(again.done) == 2
    assert path.read_text() == whole
    path.write_text(whole + tail)
    write(path, row(3))
    assert texts(path) == [("1", "yes"), ("2", "yes"), ("3", "yes")]


def test_every_torn_csv_is_cut_to_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write(path, row(1), row(2))
    whole = path.read_bytes()
    form = CsvRecords(())
    first = len(form.header) + len(form.encode(row(1)))
    for size in (0, 5, len(form.header), len(form.header) + 3, first - 1, first, first + 90, len(whole) - 1):
        path.write_bytes(whole[:size])
        with opened(path) as again:
            assert len(again.done) == (size >= first)
            again.write(row(3))
        assert texts(path) == [("1", "yes"), ("3", "yes")] if size >= first else [("3", "yes")]


def test_text_that_looks_like_a_column_is_no_column() -> None:
    trap = replace(row(5), id='{"status": "error", "fingerprint": "1234"}', text=', "fingerprint": "99"')
    assert JsonLines().mark(JsonLines().encode(trap)) == (key(5), False)
    compact = json.dumps(json.loads(JsonLines().encode(trap)), separators=(",", ":")).encode()
    assert JsonLines().mark(compact) == (key(5), False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", b'{"text": "mine"}\n'),
        ("out.csv", b"a,b\n1,2\n"),
        ("out.parquet", b"no parquet at all"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match="--overwrite starts anew"):
        opened(path)
    assert path.read_bytes() == content
    write(path, row(1), overwrite=True)
    assert texts(path) == [("1", "yes")]


@pytest.mark.parametrize("columns", [{"a": [1]}, {name: [None] for name in NAMES}])
def test_foreign_parquet_is_refused(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    pq.write_table(pa.table(columns), tmp_path / "out.parquet")
    with pytest.raises(UsageError, match=r"other columns|did not write"):
        opened(tmp_path / "out.parquet")


@each_format
def test_an_output_deleted_under_way_is_noticed(output: str) -> None:
    import shutil

    write(output, row(1))
    with pytest.raises(OutputError, match="deleted"), opened(output) as again:
        again.write(row(2))
        if output.endswith("/"):
            shutil.rmtree(output)
        else:
            Path(output).unlink()
        again.write(row(3))


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(tmp_path: Path, name: str) -> None:
    """In a child process whose files may not grow beyond 64 KiB, as on a full disk."""
    code = (
        "import sys, random\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_formats_outputs import row, opened, OutputError\n"
        "from dataclasses import replace\n"
        "try:\n"
        "    with opened(sys.argv[1]) as writer:\n"
        "        for number in range(5000):\n"
        "            writer.write(row(number, random.randbytes(100).hex()))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    tests, target = str(Path(__file__).parent), f"{tmp_path}/{name}"
    done = subprocess.run(
        [sys.executable, "-c", code, target, tests], capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.stdout == f"cannot write '{target.rstrip('/')}': File too large\n", done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    with opened(target) as again:
        there = len(again.done)
        assert there > 10 or name in ("out.parquet", "out/")  # there the first part did not fit
        for number in range(there, 20):
            again.write(row(number))
    assert len(texts(target)) == max(20, there)


def test_outputs_by_suffix_and_format(tmp_path: Path) -> None:
    assert OutputOptions.parse(None, None) == OutputOptions(None, "jsonl")
    assert OutputOptions.parse("-", "jsonl") == OutputOptions(None, "jsonl")
    assert OutputOptions.parse("-", "csv") == OutputOptions(None, "csv")
    assert OutputOptions.parse("a.PARQUET", None) == OutputOptions(Path("a.PARQUET"), "parquet")
    assert OutputOptions.parse("a.ndjson", None).format == "jsonl"
    assert OutputOptions.parse("a.txt", "jsonl").format == "jsonl"
    assert OutputOptions.parse("out/", None) == OutputOptions(Path("out"), "parquet", folder=True)
    assert OutputOptions.parse(str(tmp_path), None).folder
    assert OutputOptions.parse("a.parquet", None, shard="2/3").folder


@pytest.mark.parametrize(
    ("output", "format"), [("a.xls", None), ("noext", None), (None, "parquet"), ("-", "parquet"), ("a/", "jsonl")]
)
def test_unusable_outputs(output: str | None, format: Format | None) -> None:
    with pytest.raises(UsageError, match=r"parquet|name a file"):
        OutputOptions.parse(output, format)


def test_outputs_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        OutputOptions(tmp_path / "gone" / "a.jsonl", "jsonl").check()
    (tmp_path / "a.parquet").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        OutputOptions.parse(str(tmp_path / "a.parquet"), None, shard="1/2").check()


def test_a_link_stays_and_a_device_takes_no_lock(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    write(tmp_path / "link.jsonl", row(1, None))
    with opened(tmp_path / "link.jsonl", retry_errors=True) as output:
        assert output.done.claim(*parse_key(key(1))) == key(1)
        output.write(row(1))
    assert (tmp_path / "link.jsonl").is_symlink()
    assert texts(tmp_path / "real.jsonl") == [("1", "yes")]
    with open_output(OutputOptions.parse("/dev/null", "jsonl"), RUN) as output:
        output.write(ROW)


@pytest.mark.parametrize("shards", [["1/2", "2/2"], ["3/3", "1/3", "2/3"]])
def test_shards_write_into_one_folder_at_once(tmp_path: Path, shards: Sequence[str]) -> None:
    folder = f"{tmp_path}/out/"
    outputs = [opened(folder, shard=shard) for shard in shards]
    for number, output in enumerate(outputs):
        with pytest.raises(OutputLocked, match=r"shard \d/\d"):
            opened(folder, shard=shards[number])
        with pytest.raises(OutputLocked):
            opened(folder)
        with pytest.raises(OutputLocked):
            opened(folder, shard="1/7")
        with output:
            output.write(row(number))
    assert texts(folder) == [(str(number), "yes") for number in range(len(shards))]
    assert finished(folder) == len(shards)


def test_shards_of_one_folder_have_the_same_settings(tmp_path: Path) -> None:
    folder, other = f"{tmp_path}/out/", replace(RUN, settings={"fps": 2.0})
    with opened(folder, shard="1/2") as first:
        with pytest.raises(UsageError, match="--fps was 1, is 2"):
            opened(folder, shard="2/2", run=other)
        first.write(row(1))
    with pytest.raises(UsageError, match="--fps was 1, is 2"):
        opened(folder, shard="2/2", run=other)
    with opened(f"{tmp_path}/new/", shard="1/2"):
        pass
    with opened(f"{tmp_path}/new/", shard="1/2", run=other) as second:  # nobody wrote a row with the first settings
        second.write(row(2))


def test_shards_take_every_nth_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(str(number), "", ()) for number in range(7)]
    shares = [[job.path for job in Shard.parse(f"{number}/3").share(iter(jobs))] for number in (1, 2, 3)]
    assert shares == [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    for name, value in {"ID": "14", "MIN": "10", "COUNT": "3", "STEP": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert Shard.parse("auto") == Shard(3, 3)
    monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT")
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_COUNT is not set"):
        Shard.parse("auto")
    for text in ("0/3", "4/3", "1/0", "1", "a/b"):
        with pytest.raises(UsageError, match="--shard"):
            Shard.parse(text)


def test_keys_change_with_all_that_shapes_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    item, asked = file_identity(str(path)), Question(Prompt("Q"), str(path))

    def key(keys: RowKeys, item: ItemIdentity = item, asked: Question = asked) -> str:
        return written_key(keys.work(item, str(path), asked), keys.state(item))

    keys = RowKeys("m", None, {"fps": 1.0, "seed": None})
    base = key(keys)
    assert len(base) == 32
    assert base == key(RowKeys("m", None, {"seed": None, "fps": 1.0}), file_identity(str(path)))
    path.write_bytes(b"two!")
    changed, setting = key(keys, file_identity(str(path))), key(RowKeys("m", None, {"fps": 2.0, "seed": None}))
    assert base[:20] == changed[:20] == setting[:20]  # the same work, done in another state
    others = [
        key(keys, file_identity(str(tmp_path / "gone"))),
        key(keys, asked=asked._replace(prompt=Prompt("Q", "name"))),
        key(keys, asked=asked._replace(prompt=Prompt("R"))),
        key(keys, asked=asked._replace(id="17")),
        key(RowKeys("n", None, {"fps": 1.0, "seed": None})),
        key(RowKeys("m", "r", {"fps": 1.0, "seed": None})),
    ]
    assert len({base, changed, setting, *others}) == 9
    assert len({name[:20] for name in (base, *others)}) == 7


@pytest.mark.parametrize(
    "path", ["a.jpg", "./a.jpg", "b/../a.jpg", "/x//a.jpg", "/x/./a.jpg", ".hidden", "b/", "..", "/x/a.jpg"]
)
def test_a_file_is_the_same_however_it_is_named(path: str, tmp_path: Path) -> None:
    assert file_identity(path, "/y")[0] == os.path.normpath(os.path.join("/y", path))  # noqa: PTH118
    assert file_identity(path)[0] == os.path.abspath(path)  # noqa: PTH100


def test_file_names_of_any_bytes_can_be_written() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")) == "caf\\xe9 é.jpg"


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl", "out.csv"], indirect=True)
@pytest.mark.parametrize("fingerprint", ["abc", "z" * 32, "", key(1) + ".99999999999"])
def test_rows_with_keys_that_are_not_ours_are_refused_and_left_alone(output: str, fingerprint: str) -> None:
    write(output, row(1), row(2))
    path = Path(output)
    if output.endswith(".parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("fingerprint")
        pq.write_table(table.set_column(place, "fingerprint", pa.array([fingerprint, key(2)])), path)
    else:
        path.write_text(path.read_text().replace(key(1), fingerprint))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"did not write|not written by llava-mini"):
        finished(output)
    assert Path(output).read_bytes() == before
