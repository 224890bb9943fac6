"""Rows as JSONL, CSV and Parquet: the same columns, and they read back as they were written."""

import json
import os
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from output_rows import FAILED, NAMES, ROW, RUN, each_format, finished, key, opened, read, row, write

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.columns import merge_kinds
from llava_mini_cli.formats.outputs.jsonl import JsonLines
from llava_mini_cli.formats.outputs.stream import StreamOutput
from llava_mini_cli.formats.row import KeptColumn, Row, printable


def test_jsonl_has_every_column_in_every_line() -> None:
    stream = BytesIO()
    with StreamOutput(stream, "x", JsonLines()) as writer:
        writer.write(ROW)
        assert stream.getvalue().endswith(b"}\n")  # visible at once
        writer.write(FAILED)
    lines = stream.getvalue().decode().rstrip("\n").split("\n")
    names = [field.name for field in fields(Row) if field.name not in ("more", "kept", "source", "spans")]
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
def test_duckdb_reaches_every_column_of_the_input(output: str, tmp_path: Path) -> None:
    import duckdb

    kept = merge_kinds([dict.fromkeys(["Text", "STATUS", "Name", "name"], "string")])
    values = {column.name: name for name, column in kept.items()}
    write(output, replace(ROW, kept=values), run=replace(RUN, kept=tuple(kept.values())))
    path = f"{output}*.parquet" if output.endswith("/") else output
    names = ", ".join(f'"{name}"' for name in values)
    assert duckdb.sql(f"SELECT {names}, status FROM '{path}'").fetchall() == [(*values.values(), "ok")]


@each_format
def test_columns_of_the_input_are_kept_with_their_types(output: str) -> None:
    run = replace(RUN, kept=(KeptColumn("split", "string"), KeptColumn("score", "int64")))
    write(output, replace(ROW, kept={"split": "train", "score": 3}), run=run)
    (only,) = read(output)
    assert list(only) == [*NAMES, "split", "score"]
    assert (only["split"], only["score"]) == ("train", "3" if output.endswith(".csv") else 3)
    with pytest.raises(UsageError, match=r"kept from the input were split \(string\), score \(int64\), are none|other"):
        opened(output)


def test_text_that_looks_like_a_column_is_no_column() -> None:
    trap = replace(row(5), id='{"status": "error", "fingerprint": "1234"}', text=', "fingerprint": "99"')
    assert JsonLines().mark(JsonLines().encode(trap)) == (key(5), False)
    compact = json.dumps(json.loads(JsonLines().encode(trap)), separators=(",", ":")).encode()
    assert JsonLines().mark(compact) == (key(5), False)


def test_file_names_of_any_bytes_can_be_written() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")) == "caf\\xe9 é.jpg"
