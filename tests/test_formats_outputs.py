"""Rows as JSONL and Parquet: the same columns, whole lines, files that appear whole or not at all."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.fingerprint import fingerprint, item_identity
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.jsonl import JsonlWriter
from llava_mini_cli.formats.outputs import OutputOptions, RunInfo, open_output
from llava_mini_cli.formats.parquet import ROW_GROUP_ROWS, ParquetWriter
from llava_mini_cli.formats.row import COLUMNS, Row, printable

ROW = Row(
    id="in/a.mp4",
    file_name="a.mp4",
    prompt="Was ist „das“?\nReally?",
    status="ok",
    text="a line\u2028and another",
    frame_count=3,
    fps_sampled=1.0,
    choice_probs={"yes": 0.75, "no": 0.25},
    model="tiny",
    fingerprint="0" * 32,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
)
RUN = RunInfo("tiny", {"fps": 1.0, "max_frames": None})
FAILED = replace(ROW, text=None, status="error", error="cut short", error_type="truncated", choice_probs=None)


def test_jsonl_has_every_column_in_every_line() -> None:
    stream = BytesIO()
    with JsonlWriter(stream, "x", owned=False) as writer:
        writer.write(ROW)
        assert stream.getvalue().endswith(b"}\n")  # visible at once
        writer.write(FAILED)
    lines = stream.getvalue().decode().rstrip("\n").split("\n")
    names = [field.name for field in fields(Row) if field.name != "kept"]
    assert [list(json.loads(line)) for line in lines] == [names, names]
    first = json.loads(lines[0])
    assert first["created_at"] == "2026-01-02T03:04:05.678Z"
    assert first["prompt"] == ROW.prompt
    assert first["text"] == ROW.text
    assert first["error"] is None
    assert json.loads(lines[1])["text"] is None


def test_parquet_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with ParquetWriter(path) as writer:
        for _ in range(ROW_GROUP_ROWS):
            writer.write(ROW)
        writer.write(FAILED)
        assert not path.exists()
    assert os.listdir(tmp_path) == ["out.parquet"]
    table = pq.read_table(path)
    assert table.column_names == [column.name for column in COLUMNS]
    assert table.num_rows == ROW_GROUP_ROWS + 1
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(ROW_GROUP_ROWS).to_pylist()[0]
    assert first == ROW.as_dict() | {"choice_probs": [("yes", 0.75), ("no", 0.25)]}
    assert last == FAILED.as_dict()


def test_parquet_keeps_what_an_interrupted_run_had(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt), ParquetWriter(path) as writer:
        writer.write(ROW)
        raise KeyboardInterrupt
    assert pq.read_table(path).num_rows == 1
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_parquet_without_a_row_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), ParquetWriter(path):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, name: str) -> None:
    """In a child process whose files may not grow beyond 64 KiB, as on a full disk."""
    code = (
        "import sys, random; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from dataclasses import replace\n"
        "from test_formats_outputs import ROW, OutputOptions, open_output, OutputError, RUN\n"
        "try:\n"
        "    with open_output(OutputOptions.parse(sys.argv[1], None), RUN) as writer:\n"
        "        for number in range(5000):\n"
        "            writer.write(replace(ROW, text=str(random.random()) * 20))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name), tests],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert done.stdout == f"cannot write '{tmp_path / name}': File too large\n", done.stderr
    if name == "out.jsonl":
        text = (tmp_path / name).read_text()
        assert text.endswith("}\n")  # the line that did not fit was cut off
        assert text.count("\n") > 10
    else:
        assert os.listdir(tmp_path) == []


def test_outputs_by_suffix_and_format() -> None:
    assert OutputOptions.parse(None, None) == OutputOptions(None, "jsonl")
    assert OutputOptions.parse("-", "jsonl") == OutputOptions(None, "jsonl")
    assert OutputOptions.parse("a.PARQUET", None) == OutputOptions(Path("a.PARQUET"), "parquet")
    assert OutputOptions.parse("a.ndjson", None).format == "jsonl"
    assert OutputOptions.parse("a.txt", "jsonl").format == "jsonl"


@pytest.mark.parametrize(("output", "format"), [("a.csv", None), ("noext", None), (None, "parquet"), ("-", "parquet")])
def test_unusable_outputs(output: str | None, format: str | None) -> None:
    with pytest.raises(UsageError, match=r"parquet"):
        OutputOptions.parse(output, format)  # pyright: ignore[reportArgumentType]


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")
    with pytest.raises(UsageError, match="--overwrite"):
        OutputOptions.parse(str(path), None).check()
    OutputOptions.parse(str(path), None, overwrite=True).check()
    assert path.read_text() == "old\n"
    with open_output(OutputOptions.parse(str(path), None, overwrite=True), RUN) as writer:
        writer.write(ROW)
    assert path.read_text().count("\n") == 1


def test_outputs_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        OutputOptions.parse(str(tmp_path), "jsonl")
    with pytest.raises(OutputError, match="no folder"):
        OutputOptions(tmp_path / "gone" / "a.jsonl", "jsonl").check()


def test_fingerprint_changes_with_all_that_shapes_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    item = item_identity(str(path))
    base = fingerprint(item, Prompt("Q"), "m", {"fps": 1.0, "seed": None})
    assert base == fingerprint(item_identity(str(path)), Prompt("Q"), "m", {"seed": None, "fps": 1.0})
    path.write_bytes(b"two!")
    others = [
        fingerprint(item_identity(str(path)), Prompt("Q"), "m", {"fps": 1.0, "seed": None}),
        fingerprint(item_identity(str(tmp_path / "gone")), Prompt("Q"), "m", {"fps": 1.0, "seed": None}),
        fingerprint(item, Prompt("Q", "name"), "m", {"fps": 1.0, "seed": None}),
        fingerprint(item, Prompt("R"), "m", {"fps": 1.0, "seed": None}),
        fingerprint(item, Prompt("Q"), "n", {"fps": 1.0, "seed": None}),
        fingerprint(item, Prompt("Q"), "m", {"fps": 2.0, "seed": None}),
    ]
    assert len({base, *others}) == 7


def test_file_names_of_any_bytes_can_be_written() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")) == "caf\\xe9 é.jpg"
