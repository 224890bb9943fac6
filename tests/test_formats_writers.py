"""Outputs at the level of their parts: records, keys, companions, what stands, where rows go; exact to a value."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from output_rows import FAILED, NAMES, ROW, RUN, finished, key, names_in, opened, row, texts, write

from llava_mini_cli import __version__
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.outputs import parquet_parts, parquet_schema
from llava_mini_cli.formats.outputs.appended import AppendedOutput
from llava_mini_cli.formats.outputs.companion import Companion, RunInfo, check_same_settings
from llava_mini_cli.formats.outputs.csv import CsvRecords
from llava_mini_cli.formats.outputs.done import (
    KEY_PATTERN,
    Done,
    numbered,
    parse_key,
    standing,
    standing_answers,
    supersedes,
    written_key,
)
from llava_mini_cli.formats.outputs.huggingface import HuggingFaceOutput, store_path
from llava_mini_cli.formats.outputs.jsonl import JsonLines, as_json
from llava_mini_cli.formats.outputs.open_output import OutputOptions, done_at, open_output, rows_at
from llava_mini_cli.formats.outputs.parquet_file import ParquetFileOutput
from llava_mini_cli.formats.outputs.parquet_folder import ParquetFolderOutput
from llava_mini_cli.formats.outputs.parquet_parts import ParquetPartWriter, parts_in, remove_unfinished, write_standing
from llava_mini_cli.formats.outputs.parquet_schema import arrow_schema, check_columns, marks_of, read_file, record_of
from llava_mini_cli.formats.outputs.row_keys import RowKeys, file_identity
from llava_mini_cli.formats.outputs.stream import StreamOutput
from llava_mini_cli.formats.outputs.text_files import SidecarOutput
from llava_mini_cli.formats.row import KeptColumn, Row
from llava_mini_cli.formats.shard import Shard

KEPT = (KeptColumn("split", "string"), KeptColumn("n", "int64"))
PLUS_TWO = timezone(timedelta(hours=2))


def test_the_work_and_the_state_of_a_key() -> None:
    work, state = bytes(range(10)), 0x0123456789AB
    assert written_key(work, state) == "00010203040506070809" + "0123456789ab"
    assert written_key(numbered(work, 300), 0) == "00010203040506070809" + "0" * 12 + ".300"
    assert parse_key("00010203040506070809" + "0123456789ab.300") == (work + bytes([0, 0, 1, 44]), state)
    assert KEY_PATTERN == r"[0-9a-f]{32}(\.[1-9][0-9]{0,8})?(?:-[1-9][0-9]{0,8}of[1-9][0-9]{0,8})?"


def test_which_of_two_rows_stands() -> None:
    cases = [(ok, older_ok, same) for ok in (True, False) for older_ok in (True, False) for same in (True, False)]
    assert [supersedes(1, ok, 1 if same else 2, older_ok) for ok, older_ok, same in cases] == [
        True, True, True, True, False, True, True, True,
    ]  # fmt: skip


def test_counts_of_what_is_left_and_replaced() -> None:
    there = Done(retry_errors=False)
    there.add([(key(1), False), (key(2), True), (key(3), False), (key(3, 1), False), (key(4), False), (key(4), True)])
    assert (len(there), there.replaced) == (4, 2)
    claims = [(1, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0)]
    assert [there.claim(*parse_key(key(work, state))) for work, state in claims] == [
        None, key(1) + ".1", None, key(3), key(3, 1) + ".1", None,
    ]  # fmt: skip
    assert (there.rows_left, there.errors_left, there.replaced) == (3, 1, 3)
    there.forget()
    assert (len(there), there.replaced) == (0, 3)
    assert there.claim(*parse_key(key(1))) == key(1)
    assert there.claim(*parse_key(key(1))) == key(1) + ".1"


def test_marks_of_many_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.formats.outputs.done._PARSED_AT_ONCE", 3)
    rows = [
        (key(1, 5), True),
        (key(2), False),
        (key(1, 5), False),
        (key(1) + ".7", True),
        (key(2), True),
        (key(3), True),
    ]
    assert list(standing(rows)) == [0, 1, 1, 1, 0, 1]
    assert list(standing_answers(rows)) == [0, 1, 1, 0, 0, 0]


def test_values_that_json_has_no_form_of() -> None:
    assert as_json(datetime(2026, 1, 2, 3, 4, 5, 678900, PLUS_TWO)) == "2026-01-02T01:04:05.678Z"
    assert as_json(datetime(2026, 1, 2, 3, 4, 5)) == "2026-01-02T03:04:05"
    assert as_json(date(2026, 1, 2)) == "2026-01-02"
    with pytest.raises(TypeError, match="a row holds a bytes, which has no JSON form"):
        as_json(b"")


def test_lines_and_what_is_none() -> None:
    lines, record = JsonLines(), JsonLines().encode(replace(FAILED, fingerprint=key(3) + ".2"))
    assert lines.mark(record) == (key(3) + ".2", True)
    assert "„das“".encode() in record
    assert list(lines.split([b"a\n", b"b\n", b"c"])) == [b"a\n", b"b\n"]
    for other in (b"{}", record.replace(b'"fingerprint"', b'"print"'), record.replace(b'"status"', b'"state"')):
        with pytest.raises(ValueError, match="no fingerprint or status"):
            lines.mark(other)
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.encode(replace(ROW, fps_sampled=float("nan")))


def test_records_and_what_is_none() -> None:
    form = CsvRecords(KEPT)
    assert form.header == ",".join([*NAMES, "split", "n"]).encode() + b"\n"
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    record = form.encode(replace(ROW, id="a\rb", kept={"split": [1, moment], "n": None}, fingerprint=key(1)))
    assert record.startswith(b'"a\rb",a.mp4,,')
    assert record.endswith(b',2026-01-02T03:04:05.678Z,"[1, ""2026-01-02T00:00:00.000Z""]",\n')
    assert form.mark(record) == (key(1), False)
    assert form.mark(form.encode(FAILED)) == ("0" * 32, True)
    assert list(form.split([b'a,"b\n', b'c"\n', b"d\n", b'"e\n', b"f"])) == [b'a,"b\nc"\n', b"d\n"]
    short = b",".join([b"x"] * (len(NAMES) - 1)) + b"\n"
    fields = dict.fromkeys(NAMES, "x") | {"status": "ok", "fingerprint": key(1)}
    good = ",".join(fields.values()).encode()
    assert form.mark(good) == (key(1), False)
    for other in (short, good.replace(b",ok,", b",odd,"), good.replace(key(1).encode(), b"x" + key(1).encode())):
        with pytest.raises(ValueError, match="no row"):
            form.mark(other)


def test_what_rows_have_in_common() -> None:
    run = RunInfo("m", {"fps": 1.0}, "r", kept=KEPT)
    assert run.record("g") == {
        "version": __version__, "model": "m", "revision": "r", "settings": {"fps": 1.0},
        "kept": [["split", "string"], ["n", "int64"]], "generation": "g",
    }  # fmt: skip
    check_same_settings({}, run, Path("x"))
    check_same_settings(run.record("other"), replace(run, model="n"), Path("x"))
    check_same_settings(run.record("g"), replace(run, settings={"fps": 1.0, "new": 2}), Path("x"))
    with pytest.raises(UsageError) as refused:
        other = replace(run, settings={"fps": None, "max_frames": "x"}, kept=())
        check_same_settings(RunInfo("m", {"fps": 0.25, "max_frames": 3}, kept=KEPT).record("g"), other, Path("x.csv"))
    assert str(refused.value) == (
        "'x.csv': --fps was 0.25, is not set; --max-frames was 3, is x; "
        "the columns kept from the input were split (string), n (int64), are none; "
        "--overwrite starts anew, or name another output"
    )


def test_a_companion_that_never_had_anything_to_say_goes(tmp_path: Path) -> None:
    companion = Companion(tmp_path / "..x.csv")
    assert names_in(tmp_path) == [".x.csv.llava-mini"]
    companion.release()
    assert names_in(tmp_path) == []
    companion = Companion(tmp_path / "x.csv")
    companion.save({"a": 1})
    before = (tmp_path / ".x.csv.llava-mini").stat().st_mtime_ns
    time.sleep(0.01)
    companion.save({"a": 1})
    assert (tmp_path / ".x.csv.llava-mini").stat().st_mtime_ns == before
    companion.save({"a": 2})
    assert companion.record == {"a": 2}
    companion.release()
    again = Companion(tmp_path / "x.csv")
    assert again.record == {"a": 2}
    again.release()


def test_a_stream_takes_less_than_all_and_is_closed_if_it_is_ours(tmp_path: Path) -> None:
    class Narrow(BytesIO):
        flushed = 0

        def write(self, data: Any) -> int:
            return super().write(data[:7])

        def flush(self) -> None:
            self.flushed += 1

    form = CsvRecords(())
    for owned in (False, True):
        stream = Narrow()
        with StreamOutput(stream, "x", form, owned=owned) as output:
            output.write(ROW)
            output.write(FAILED)
            assert stream.getvalue() == form.header + form.encode(ROW) + form.encode(FAILED)
            assert stream.flushed == 2
            assert len(output.done) == 0
        assert stream.closed is owned


def test_a_stream_that_fails() -> None:
    class Broken(BytesIO):
        error: OSError = BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise self.error

    output = StreamOutput(Broken(), "standard output", JsonLines())
    with pytest.raises(BrokenPipeError):
        output.write(ROW)
    Broken.error = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="cannot write 'standard output': No space left on device"):
        output.write(ROW)


def test_the_outputs_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for output, format, shard, kind in [
        ("a.jsonl", None, None, AppendedOutput), ("a.csv", None, None, AppendedOutput),
        ("a.parquet", None, None, ParquetFileOutput), ("a/", None, None, ParquetFolderOutput),
        ("b.parquet", None, "1/2", ParquetFolderOutput), (None, None, None, StreamOutput),
        ("-", "csv", None, StreamOutput), (None, "txt", None, SidecarOutput), ("t", "txt", None, SidecarOutput),
        ("photos", "hf", None, HuggingFaceOutput), ("photos/metadata.jsonl", None, None, HuggingFaceOutput),
    ]:  # fmt: skip
        options = OutputOptions.parse(output, format, shard=shard)
        options.check()
        assert options.is_stream is (kind is StreamOutput)
        opened = open_output(options, RUN)
        assert type(opened) is kind
        opened.release()
    assert OutputOptions.parse("photos", "hf").path == Path("photos/metadata.parquet")
    with open_output(OutputOptions.parse("/dev/null", "csv"), RUN) as output:
        assert type(output) is StreamOutput
    with pytest.raises(OutputError, match="cannot write 'x': Is a directory"):
        Path("x").mkdir()
        open_output(OutputOptions(Path("x"), "jsonl"), RUN)


@pytest.mark.parametrize(
    ("output", "format", "options", "words"),
    [
        ("", None, {}, "-o is empty"),
        ("-", "txt", {}, "--format txt needs a file or a folder: -o FOLDER"),
        (None, "parquet", {}, "--format parquet needs a file or a folder: -o FILE.parquet"),
        ("a.x", None, {}, "-o 'a.x': the suffix must be one of .jsonl, .ndjson, .parquet, .csv, or name the format"),
        ("a/", "csv", {}, "-o 'a/' is a folder; name a file, such as a/out.csv"),
        ("rows.parquet", "hf", {}, "-o 'rows.parquet': --format hf writes metadata.jsonl or metadata.parquet into"),
        ("a.csv", None, {"existing": "append"}, "--existing append is for --format txt; --overwrite starts other"),
        (None, "txt", {"overwrite": True}, "--overwrite is not for --format txt: --existing overwrite"),
        ("a/", None, {"overwrite": True, "shard": "1/2"}, "--overwrite would take away what other shards write"),
        ("metadata.jsonl", None, {"shard": "1/2"}, "--shard: shards cannot share one file of metadata"),
        ("t", "txt", {"shard": "1/2"}, "--shard: shards cannot tell whose caption a text file holds"),
    ],
)
def test_options_that_do_not_go_together(output: str | None, format: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        OutputOptions.parse(output, format, **options)
    assert str(error.value).startswith(words)


def test_options_that_go_together(tmp_path: Path) -> None:
    OutputOptions.parse("a/", None, overwrite=True)
    OutputOptions.parse("a.csv", None, shard="1/2", overwrite=True)
    assert OutputOptions.parse(None, "txt", existing="append").existing == "append"
    assert OutputOptions.parse("a.csv", None, retry_errors=True) == OutputOptions(
        Path("a.csv"), "csv", retry_errors=True
    )  # fmt: skip
    assert OutputOptions.parse("a.parquet", None, shard="2/3").shard == Shard(2, 3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe' is no file; --format parquet needs one"):
        OutputOptions.parse(str(tmp_path / "pipe"), "parquet").check()
    OutputOptions.parse(str(tmp_path / "pipe"), "jsonl").check()
    OutputOptions(None, "jsonl").check()


def test_where_the_rows_of_an_output_are(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet.parts", "metadata.jsonl"):
        (tmp_path / name).mkdir() if name.endswith("parts") else (tmp_path / name).touch()
    assert rows_at(tmp_path / "a.parquet") == tmp_path / "a.parquet"
    assert rows_at(tmp_path / "b.parquet") == tmp_path / "b.parquet.parts"
    assert rows_at(tmp_path / "metadata.jsonl") == tmp_path / "metadata.jsonl"
    assert rows_at(tmp_path / "metadata.parquet") == tmp_path / ".metadata.rows.parquet"


def test_what_is_done_is_looked_up_without_making_anything(tmp_path: Path) -> None:
    options = OutputOptions.parse(str(tmp_path / "a.csv"), None)
    assert len(done_at(options, RUN)) == 0
    assert names_in(tmp_path) == []
    write(tmp_path / "a.csv", row(1), row(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(done_at(options, RUN)) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert finished(tmp_path / "a.csv") == 2  # the lock was let go
    assert done_at(OutputOptions(None, "txt"), RUN).is_there is not None
    assert done_at(OutputOptions(None, "jsonl"), RUN).is_there is None


def test_the_age_of_parts(tmp_path: Path) -> None:
    for name in ("part-10-a.parquet", "part-9-z.parquet", "other.parquet", ".part-1-a.parquet", "part-x.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "part-1-a.parquet").mkdir()
    assert [path.name for path in parts_in(tmp_path)] == [
        "other.parquet", "part-x.parquet", "part-9-z.parquet", "part-10-a.parquet",
    ]  # fmt: skip
    for name in (".part-1-1of2-a.parquet.tmp", ".part-2-2of2-a.parquet.tmp", ".part-3-b.parquet.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "1of2-")
    assert len(list(tmp_path.glob("*.tmp"))) == 2
    remove_unfinished(tmp_path)
    assert len(list(tmp_path.glob("*.tmp"))) == 0


def test_parts_are_numbered_on_from_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def begin() -> pa.Schema:
        begun.append(len(parts_in(tmp_path)))
        return arrow_schema(RUN, "g")

    (tmp_path / "part-000041-x.parquet").touch()
    writer = ParquetPartWriter(tmp_path, tmp_path, begin, "1of2-")
    writer.flush()
    assert begun == []
    monkeypatch.setattr(parquet_parts, "FLUSH_ROWS", 2)
    for number in range(3):
        writer.write([row(number)])
    assert [path.name[:19] for path in writer.written] == ["part-000042-1of2-" + writer.written[0].name[17:19]]
    writer.flush()
    assert [path.name[:17] for path in writer.written] == ["part-000042-1of2-", "part-000043-1of2-"]
    assert begun == [1]
    assert [pq.read_table(path)["id"].to_pylist() for path in writer.written] == [["0", "1"], ["2"]]
    assert pq.read_metadata(writer.written[0]).row_group(0).column(0).compression == "ZSTD"
    empty = ParquetPartWriter(tmp_path / "new", tmp_path, lambda: arrow_schema(RUN, ""))
    empty.write([row(1)])
    with pytest.raises(OutputError, match=f"^'{tmp_path}/new' was deleted during the run"):
        empty.flush()
    (tmp_path / "new").mkdir()
    empty.flush()
    assert empty.written[0].name.startswith("part-000000-")


def test_rows_wait_no_longer_than_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer = ParquetPartWriter(tmp_path, tmp_path, lambda: arrow_schema(RUN, ""))
    for seconds, parts in [(14.9, 0), (15.0, 1), (29.9, 1), (30.0, 2)]:
        now[0] = 100.0 + seconds
        writer.write([row(1)])
        assert len(writer.written) == parts
    assert (parquet_parts.FLUSH_ROWS, parquet_parts.GROUP_ROWS) == (1000, 16384)


def test_marked_rows_of_several_files_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = arrow_schema(RUN, "g")
    for number in (0, 3):
        rows = [row(number + more).as_dict() | {"choice_probs": None} for more in range(3)]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / f"{number}.parquet")  # pyright: ignore
    sources = [tmp_path / "0.parquet", tmp_path / "3.parquet"]
    for group, marks, ids, groups in [
        (2, [1, 0, 1, 1, 1, 0], ["0", "2", "3", "4"], [2, 2]),
        (2, [1, 1, 1, 0, 0, 0], ["0", "1", "2"], [2, 1]),
        (16, [0, 1, 0, 0, 0, 1], ["1", "5"], [2]),
        (16, [0] * 6, [], []),
    ]:
        monkeypatch.setattr(parquet_parts, "GROUP_ROWS", group)
        stream = BytesIO()
        write_standing(sources, bytearray(marks), schema, stream)
        file = pq.ParquetFile(pa.BufferReader(stream.getvalue()))
        assert file.read()["id"].to_pylist() == ids
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        assert [size for size in sizes if size] == groups
        assert json.loads((file.schema_arrow.metadata or {})[b"llava-mini"])["generation"] == "g"


def test_row_groups_with_pictures_are_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16,384 pictures 160 MB would have to be held at once."""
    monkeypatch.setattr(parquet_parts, "PICTURE_GROUP_ROWS", 2)
    schema = arrow_schema(replace(RUN, asked=(KeptColumn("thumbnail", "binary"),)), "g")
    rows = [row(number).as_dict() | {"choice_probs": None, "thumbnail": bytes([number])} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "0.parquet")  # pyright: ignore
    stream = BytesIO()
    write_standing([tmp_path / "0.parquet"], bytearray([1] * 5), schema, stream)
    file = pq.ParquetFile(pa.BufferReader(stream.getvalue()))
    assert [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)] == [2, 2, 1]
    assert file.read()["thumbnail"].to_pylist() == [bytes([number]) for number in range(5)]


def test_columns_of_parquet() -> None:
    schema = arrow_schema(replace(RUN, kept=KEPT), "g")
    assert schema.names == [*NAMES, "split", "n"]
    assert (schema.field("n").type, schema.field("n").nullable) == (pa.int64(), True)
    kinds = {name: str(schema.field(name).type) for name in ("id", "segment", "start", "created_at", "choice_probs")}
    assert kinds == {
        "id": "string", "segment": "int64", "start": "double", "created_at": "timestamp[ms, tz=UTC]",
        "choice_probs": "list<element: struct<choice: string, probability: double>>".replace("element", "item"),
    }  # fmt: skip
    assert (schema.field("id").nullable, schema.field("text").nullable) == (False, True)
    with pytest.raises(UsageError, match="the column 'x' is of type odd, which cannot be kept in Parquet: use JSONL"):
        arrow_schema(replace(RUN, kept=(KeptColumn("x", "odd"),)), "")
    with pytest.raises(OutputError, match="a kept column holds what its type cannot"):
        parquet_schema.table_of([replace(ROW, kept={"split": "a", "n": "text"})], schema)


def test_parquet_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, row(1), row(2, None))
    file = read_file(path)
    assert list(marks_of(file, path)) == [(key(1), False), (key(2), True)]
    assert record_of(file, path)["model"] == "tiny"
    check_columns(file, RUN, path)
    check_columns(file, replace(RUN, model="other"), path)
    with pytest.raises(UsageError, match=r"a\.parquet' holds other columns: --overwrite"):
        check_columns(file, replace(RUN, kept=KEPT), path)
    table = pq.read_table(path)
    place = table.schema.get_field_index("frame_count")
    changed = table.set_column(place, "frame_count", pa.array(["x", "y"]))
    pq.write_table(changed.replace_schema_metadata(None), path)  # pyright: ignore
    assert record_of(read_file(path), path) == {}
    check_columns(read_file(path), RUN, path)  # a text can be cast to a number
    lists: Any = pa.array([[1], [2]])
    pq.write_table(table.set_column(place, "frame_count", lists), path)  # pyright: ignore
    with pytest.raises(UsageError, match="holds other columns"):
        check_columns(read_file(path), RUN, path)
    for keys in ([None, key(1)], [key(1), "no key"]):
        odd = table.set_column(table.schema.get_field_index("fingerprint"), "fingerprint", pa.array(keys))
        pq.write_table(odd, path)  # pyright: ignore
        with pytest.raises(UsageError, match="holds rows that llava-mini did not write"):
            list(marks_of(read_file(path), path))
    with pytest.raises(OutputError, match=r"^cannot read '.*gone': "):
        read_file(tmp_path / "gone")
    (tmp_path / "b").write_text("text")
    with pytest.raises(UsageError, match="b' is not a whole Parquet file: --overwrite"):
        read_file(tmp_path / "b")


def test_a_parquet_file_that_was_replaced_under_way(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, row(1))
    words = r"was deleted or replaced during the run; its rows are in .*a\.parquet\.parts"
    with pytest.raises(OutputError, match=words), opened(path) as output:
        output.write(row(2))
        (tmp_path / "keep").write_bytes(path.read_bytes())
        (tmp_path / "keep").replace(path)
    assert pq.read_table(tmp_path / "a.parquet.parts")["id"].to_pylist() == ["2"]
    write(path, row(3))
    assert texts(path) == [("1", "yes"), ("2", "yes"), ("3", "yes")]
    assert names_in(tmp_path) == [".a.parquet.llava-mini", "a.parquet"]


def test_the_companion_of_a_parquet_file_is_saved_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, row(1, None))
    (tmp_path / ".a.parquet.llava-mini").unlink()
    with opened(path, retry_errors=True) as output:
        output.write(row(1))
        assert not (tmp_path / "a.parquet.parts").exists()
    record = json.loads((tmp_path / ".a.parquet.llava-mini").read_text())["run"]
    assert record["settings"] == dict(RUN.settings)
    assert record["generation"] == record_of(read_file(path), path)["generation"]
    newer = replace(RUN, version="9.9")
    with opened(path, run=newer) as output:
        output.done.replaced = 1  # as where a row was written twice
    assert json.loads((tmp_path / ".a.parquet.llava-mini").read_text())["run"]["version"] == "9.9"
    assert record_of(read_file(path), path)["version"] == "9.9"


def test_parts_of_an_older_generation_than_the_companions_are_left_out(tmp_path: Path) -> None:
    path, parts = tmp_path / "a.parquet", tmp_path / "a.parquet.parts"
    write(path, row(1), row(2))
    with pytest.raises(KeyboardInterrupt), opened(path, overwrite=True) as anew:
        anew.write(row(3))
        raise KeyboardInterrupt
    (parts / ".part-000001-x.parquet.tmp").touch()
    assert finished(path) == 1
    assert texts(path) == [("3", "yes")]
    assert not parts.exists()
    parts.mkdir()
    (parts / ".part-000001-x.parquet.tmp").touch()
    with opened(path, overwrite=True):
        pass
    assert parts.exists()  # an overwrite without a row changes nothing
    with opened(path):
        pass
    assert not parts.exists()


def test_answers_of_a_parquet_file_are_copied_from_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def copied(output: Any) -> list[str]:
        stream = BytesIO()
        output.copy_answers(stream)
        return pq.read_table(pa.BufferReader(stream.getvalue()))["id"].to_pylist()

    output = opened(path)
    output.write(row(1))
    output.write(row(2, None))
    output.finish(None)
    assert copied(output) == ["1"]
    output.release()
    output = opened(path)
    output.write(row(3))
    output.write(row(1, "anew", state=1))
    output.finish(KeyboardInterrupt())
    assert copied(output) == ["3", "1"]
    output.finish(None)
    assert copied(output) == ["3", "1"]
    output.release()


def test_answers_of_lines_are_copied_without_failures(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        with opened(tmp_path / name) as output:
            assert isinstance(output, AppendedOutput)
            for each in (row(1), row(2, None), row(3), row(3, "anew", state=1)):
                output.write(each)
            stream = BytesIO()
            output.copy_answers(stream)
        form = CsvRecords(()) if name == "a.csv" else JsonLines()
        records = list(form.split(BytesIO(stream.getvalue().removeprefix(form.header))))
        assert records == [form.encode(row(1)), form.encode(row(3, "anew", state=1))]
        assert stream.getvalue() == b"".join(records)


def test_an_appended_file_that_takes_less_than_all_and_then_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with opened(path) as output:
        output.write(row(1))
        whole = path.read_bytes()
        assert isinstance(output, AppendedOutput)
        real: Any = output._stream  # pyright: ignore[reportPrivateUsage]

        class Full:
            left = 40

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def write(self, data: Any) -> int:
                if not self.left:
                    raise OSError(28, "No space left on device")
                written = real.write(data[:25])
                self.left = max(0, self.left - written)
                return written

        output._stream = Full()  # type: ignore[assignment] # pyright: ignore
        with pytest.raises(OutputError, match="No space left on device"):
            output.write(row(2))
        assert path.read_bytes() == whole
        output._stream = real  # pyright: ignore[reportPrivateUsage]
        output.write(row(3))
    assert texts(path) == [("1", "yes"), ("3", "yes")]


def test_an_appended_file_keeps_its_generation_as_long_as_it_has_rows(tmp_path: Path) -> None:
    path, companion = tmp_path / "a.csv", tmp_path / ".a.csv.llava-mini"

    def generation() -> str:
        return json.loads(companion.read_text())["run"]["generation"]

    write(path, row(1))
    first = generation()
    assert len(first) == 16
    write(path, row(2))
    assert generation() == first
    companion.unlink()
    write(path, row(3))
    second = generation()
    assert second != first
    write(path, row(4), overwrite=True)
    assert generation() != second
    for number in (1, 2):
        with pytest.raises(UsageError, match=rf"record {number}: not written by llava-mini"):
            (tmp_path / "b.csv").write_bytes(
                CsvRecords(()).header + CsvRecords(()).encode(row(1)) * (number - 1) + b"no,row\n"
            )
            opened(tmp_path / "b.csv")
    (tmp_path / "b.csv").unlink()
    assert "b.csv" not in names_in(tmp_path)


def metadata(tmp_path: Path) -> Path:
    """A folder with metadata of one answer and one failure."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    path = tmp_path / "metadata.jsonl"
    answer = replace(row(1), source=str(tmp_path / "a.jpg"))
    write(path, answer, replace(row(2, None), source=str(tmp_path / "b.jpg")))
    return path


def test_metadata_hold_answers_and_carry_the_time_of_the_rows(tmp_path: Path) -> None:
    path = metadata(tmp_path)
    rows = store_path(path)
    assert rows == tmp_path / ".metadata.rows.jsonl"
    assert [json.loads(line)["file_name"] for line in path.read_text().splitlines()] == ["a.jpg"]
    assert len(rows.read_text().splitlines()) == 2
    assert path.stat().st_mtime_ns == rows.stat().st_mtime_ns
    os.utime(path, ns=(0, rows.stat().st_mtime_ns - 1))  # older: a run was killed before it wrote them
    path.write_bytes(b"")
    os.utime(path, ns=(0, rows.stat().st_mtime_ns - 1))
    with opened(path):
        pass
    assert len(path.read_text().splitlines()) == 1
    os.utime(path, ns=(0, rows.stat().st_mtime_ns + 1))
    with pytest.raises(UsageError, match="was not written by llava-mini, or was changed since"):
        opened(path)
    assert len(done_at(OutputOptions.parse(str(path), None, overwrite=True), RUN)) == 0  # the lock was let go


def test_metadata_whose_rows_are_still_in_parts_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    path.touch()
    with pytest.raises(UsageError, match="was not written by llava-mini, or was changed since"):
        opened(path)
    (tmp_path / ".metadata.rows.parquet.parts").mkdir()
    opened(path).release()


def test_metadata_are_left_alone_where_nothing_was_done(tmp_path: Path) -> None:
    path = metadata(tmp_path)
    before = path.stat()
    with opened(path) as output:
        assert len(output.done) == 2
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(OutputError, match="disk"), opened(path) as output:
        output.write(replace(row(3), source=str(tmp_path / "b.jpg")))
        raise OutputError("disk full")
    assert path.stat().st_ino == before.st_ino


def test_media_outside_the_folder_have_no_place_in_metadata(tmp_path: Path) -> None:
    path = metadata(tmp_path)
    (tmp_path / "deep").mkdir()
    with opened(path) as output:
        there = output.done.is_there
        assert there is not None
        question = Question(Prompt("x"), "id")
        for name in (f"{tmp_path}/a.jpg", f"{tmp_path}/deep/../deep/c.jpg"):
            assert there(Job(name, "", ()), question) is False
        for name in ("/elsewhere/a.jpg", f"{tmp_path}x/a.jpg", f"http://x/{tmp_path}/a.jpg"):
            with pytest.raises(UsageError, match=r"and '.*' is not among them"):
                there(Job(name, "", ()), question)
            assert there(Job(name, "", (), Fault("input", "bad_row", "x")), question) is False
        output.write(replace(row(3), source=f"{tmp_path}/deep/../deep/c.jpg"))
    assert json.loads(path.read_text().splitlines()[-1])["file_name"] == "deep/c.jpg"


def caption(output: SidecarOutput, job: Job, text: str = "x") -> Path | None:
    """Writes the captions of a job whose file is not there; the last one's path."""
    wanted = [question for question in job.questions if not output._is_there(job, question)]  # pyright: ignore
    before = set(Path(job.path).parent.glob("*.txt"))
    for question in wanted:
        output.write(
            replace(ROW, source=job.path, prompt=question.prompt.text, prompt_name=question.prompt.name, text=text)
        )
    made = set(Path(job.path).parent.glob("*.txt")) - before
    return made.pop() if made else None


@pytest.mark.parametrize(
    ("existing", "before", "after"),
    [
        ("append", "by hand\n", "by hand tags\n"),
        ("prepend", "by hand\n", "tags by hand\n"),
        ("append", " \n", "tags\n"),
        ("append", "old tags", "old tags\n"),
        ("append", "tags old", "tags old tags\n"),
        ("prepend", "tags old", "tags old\n"),
        ("prepend", "old tags", "tags old tags\n"),
        ("prepend", ", old", "tags, old\n"),
        ("overwrite", "old", "tags\n"),
        ("skip", "old", "old"),
    ],
)
def test_how_a_caption_is_joined(tmp_path: Path, existing: Any, before: str, after: str) -> None:
    (tmp_path / "a.txt").write_text(before)
    job = Job(str(tmp_path / "a.jpg"), "a.jpg", (Question(Prompt("q"), "id"),))
    caption(SidecarOutput(None, existing), job, "tags")
    assert (tmp_path / "a.txt").read_text() == after


def test_captions_that_begin_with_a_comma(tmp_path: Path) -> None:
    for sign in ",.;":
        (tmp_path / "a.txt").write_text("old")
        caption(
            SidecarOutput(None, "append"), Job(str(tmp_path / "a.jpg"), "", (Question(Prompt("q"), "i"),)), f"{sign} x"
        )
        assert (tmp_path / "a.txt").read_text() == f"old{sign} x\n"


def test_names_of_captions(tmp_path: Path) -> None:
    def job(name: str, *prompts: Prompt, **more: Any) -> Job:
        questions = tuple(Question(prompt, "id") for prompt in prompts or (Prompt("q"),))
        return Job(str(tmp_path / name), name, questions, **more)

    output = SidecarOutput(None, "skip")
    two = (Prompt("q", "a/b\0c"), Prompt("r"))
    for given, name in [
        (job("a.jpg"), "a.txt"), (job("a.png"), "a.png.txt"), (job("a.gif"), "a.gif.txt"),
        (job("b.jpg", *two), "b.2.txt"),
    ]:  # fmt: skip
        assert caption(output, given) is not None
        assert (tmp_path / name).exists()
    assert (tmp_path / "b.a_b_c.txt").exists()
    assert caption(output, job("a.jpg")) is None  # the same question again
    for medium in (job("c.jpg", item=("x", 1, 2)), Job("http://x/c.jpg", "c.jpg", (Question(Prompt("q"), "i"),))):
        with pytest.raises(UsageError, match=r"--format txt: nothing can be written beside '.*c.jpg'; name a folder"):
            caption(output, medium)
    assert caption(output, job("d.jpg", fault=Fault("input", "bad_row", "x"))._replace(questions=())) is None
    assert not (tmp_path / "d.txt").exists()
    output.write(FAILED)
    output.release()  # beside the media there is no lock


def test_a_name_that_is_too_long_ends_in_a_digest(tmp_path: Path) -> None:
    output = SidecarOutput(None, "skip")
    names: list[str] = []
    for stem in ("é" * 125 + "x", "é" * 126, "é" * 125 + "yz"):  # 251 and 252 bytes
        made = caption(output, Job(f"{tmp_path}/{stem}", "", (Question(Prompt("q"), "i"),)))
        assert made is not None
        names.append(made.name)
    assert names[0] == "é" * 125 + "x.txt"
    for name in names[1:]:
        assert len(os.fsencode(name)) in (254, 255)
        assert name.startswith("é" * 119 + ".")
    assert len(set(names)) == 3


def test_a_third_medium_of_one_name_gets_a_number(tmp_path: Path) -> None:
    with SidecarOutput(tmp_path / "out", "skip") as output:
        for number in range(4):
            job = Job(f"in{number}/a.jpg", "a.jpg", (Question(Prompt("q"), "i"),))
            assert not output._is_there(job, job.questions[0])  # pyright: ignore[reportPrivateUsage]
            output.write(replace(ROW, source=job.path, prompt="q", prompt_name=None, text=f"{number}"))
        up = Job("../x/b.jpg", "../x/b.jpg", (Question(Prompt("q"), "i"),))
        assert not output._is_there(up, up.questions[0])  # pyright: ignore[reportPrivateUsage]
        output.write(replace(ROW, source=up.path, prompt="q", prompt_name=None, text="up"))
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in (tmp_path / "out").rglob("*.txt")
    }
    assert found == {
        "a.txt": "0\n", "a.jpg.txt": "1\n", "a.jpg.2.txt": "2\n", "a.jpg.3.txt": "3\n", "x/b.txt": "up\n",
    }  # fmt: skip


def test_identities_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"12345")
    os.utime("a", ns=(0, 1_700_000_000_123_456_789))
    for name in ("a", "./a", f"{tmp_path}//a"):
        assert file_identity(name) == (f"{tmp_path}/a", 5, 1_700_000_000_123_456_789)
    assert file_identity("gone", "/y") == ("/y/gone", None, None)
    assert file_identity("a\0b", "/y") == ("/y/a\0b", None, None)
    keys = RowKeys("m", "r", {"fps": 1.0})
    job = Job("a", "a", (), item=("http://x", None, 7))
    assert keys.item(job) == ("http://x", None, 7)
    assert keys.item(job._replace(item=None))[:2] == (f"{tmp_path}/a", 5)
    states = [keys.state(item) for item in (("", None, None), ("x", None, None), ("x", 1, None), ("x", None, 1))]
    assert (states[0] == states[1], len(set(states))) == (True, 3)
    assert all(0 <= state < 2**48 for state in states)
    work = keys.work(("x", 1, 2), "a", Question(Prompt("q"), "a"))
    assert (len(work), work == keys.work(("x", 3, 4), "a", Question(Prompt("q"), "a"))) == (10, True)
    assert work != keys.work(("x", 1, 2), "a", Question(Prompt("q"), "b"))
    assert work == keys.work(("x", 1, 2), "b", Question(Prompt("q"), "b"))  # an id that is the path says nothing new
    assert written_key(work, keys.state(("x", 1, 2))) == "283e046987645d568599cd97ddcabb3d"


def test_a_folder_of_parts_keeps_what_stands(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(f"{folder}/", row(1), row(2, None), row(3))
    write(f"{folder}/", row(4, None))
    (first, second) = parts_in(folder)
    before: Callable[[], list[int]] = lambda: [path.stat().st_ino for path in parts_in(folder)]  # noqa: E731
    inode = second.stat().st_ino
    with opened(f"{folder}/", retry_errors=True) as output:
        for number in (2, 4):
            assert output.done.claim(*parse_key(key(number))) == key(number)
            output.write(row(number))
    assert [pq.read_table(path)["id"].to_pylist() for path in parts_in(folder)] == [["1", "3"], ["2", "4"]]
    assert inode not in before()
    assert not second.exists()
    assert first.exists()
    (folder / ".part-000001-x.parquet.tmp").touch()
    run = json.loads((folder / ".llava-mini" / "run").read_text())
    assert run["run"]["generation"] == record_of(read_file(first), first)["generation"]
    (folder / ".llava-mini" / "run").unlink()
    assert finished(f"{folder}/") == 4
    assert not (folder / ".part-000001-x.parquet.tmp").exists()
    again = json.loads((folder / ".llava-mini" / "run").read_text())
    assert again["run"]["generation"] == run["run"]["generation"]  # told by the newest part


def test_a_row_as_columns() -> None:
    given = Row(**{**vars(ROW), "kept": {"split": "a"}, "source": "x"})
    assert list(given.as_dict()) == [*NAMES, "split"]
    assert given.as_dict()["split"] == "a"
