"""Rows for readers that guess the type of a column: 20,000 of them, whose last ones first have a warning."""

import json
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from output_rows import ROW, key, write
from PIL import Image

from llava_mini_cli.formats.outputs.shown_types import write_with_types_first
from llava_mini_cli.formats.row import Row

COUNT, ODD = 22_000, 21_990  # DuckDB looks at 20,480 rows, datasets at 10 MB


def many_rows(source: str) -> Iterable[Row]:
    """Long answers that begin with dates, a late warning, and a late answer that is no date."""
    for number in range(COUNT):
        text = f"2026-01-02 {'a' * 600}" if number % 2 else "2026-01-02"
        own = replace(ROW, text=text, choice_probs=None, fingerprint=key(number), source=source, file_name="a.jpg")
        yield replace(own, warning="odd", p_yes=0.5, text="no date") if number == ODD else own


@pytest.fixture(autouse=True)
def quiet() -> None:
    from datasets.utils import disable_progress_bars

    disable_progress_bars()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_datasets_reads_a_folder_of_many_captions(tmp_path: Path, name: str) -> None:
    from datasets import load_dataset

    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.jpg")
    write(folder / name, *many_rows(str(folder / "a.jpg")))
    rows = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    texts, warnings = list(rows["text"]), list(rows["warning"])
    assert len(rows) == COUNT
    assert [(texts[row], rows[row]["p_yes"]) for row, warning in enumerate(warnings) if warning] == [("no date", 0.5)]
    assert ("error" in rows.column_names) == name.endswith("parquet")


@pytest.mark.filterwarnings("ignore")
def test_datasets_and_duckdb_read_jsonl_when_they_look_at_all_of_it(tmp_path: Path) -> None:
    """As docs/outputs.md says."""
    import duckdb
    from datasets import load_dataset

    path = tmp_path / "captions.jsonl"
    write(path, *many_rows("a.jpg"))
    whole: dict[str, Any] = {"data_files": str(path), "chunksize": 1 << 30, "cache_dir": str(tmp_path / "cache")}
    rows = load_dataset("json", split="train", **whole)
    assert [(row, rows[row]["p_yes"]) for row, text in enumerate(rows["warning"]) if text] == [(ODD, 0.5)]
    counted = duckdb.sql(f"SELECT count(*), count(warning), max(p_yes) FROM read_json('{path}', sample_size = -1)")
    assert counted.fetchall() == [(COUNT, 1, 0.5)]


def test_the_first_rows_show_every_type() -> None:
    records: list[dict[str, Any]] = [
        {"a": 1, "text": "2026", "never": None, "late": None, "dates": "1"},
        {"a": 2, "text": "2027", "never": None, "late": None, "dates": "2"},
        {"a": 3, "text": 'two "words"', "never": None, "late": None, "dates": "3"},
        {"a": 4, "text": None, "never": None, "late": {"ü": 0.5}, "dates": "4"},
        {"a": 5, "text": "five", "never": None, "late": {"ü": 1.5}, "dates": "5"},
    ]
    lines, stream = BytesIO(b"".join(json.dumps(record).encode() + b"\n" for record in records)), BytesIO()
    write_with_types_first(lines, stream)
    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["a"] for record in written] == [1, 3, 4, 2, 5]
    assert [record | {"never": None} for record in written] == [records[number - 1] for number in (1, 3, 4, 2, 5)]
    assert all("never" not in record for record in written)
    assert "ü" in stream.getvalue().decode()


def test_no_rows_are_no_trouble() -> None:
    stream = BytesIO()
    write_with_types_first(BytesIO(), stream)
    assert stream.getvalue() == b""
