"""Whole rows in whatever is killed, full, foreign or there already, in every format."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from output_rows import (
    FILES,
    NAMES,
    ROW,
    RUN,
    each_format,
    finished,
    key,
    names_in,
    opened,
    read,
    row,
    texts,
    write,
)

from llava_mini_cli.errors import OutputError, OutputLocked, UsageError
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs import parquet_parts
from llava_mini_cli.formats.outputs.csv import CsvRecords
from llava_mini_cli.formats.outputs.done import parse_key
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output


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
    monkeypatch.setattr("llava_mini_cli.formats.outputs.done.Done.replaced", 0, raising=False)
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
        "from llava_mini_cli.errors import OutputError\n"
        "from output_rows import row, opened\n"
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
