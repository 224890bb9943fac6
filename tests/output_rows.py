"""Rows, and outputs of every format that tests write them to."""

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llava_mini_cli.formats.outputs.companion import RunInfo
from llava_mini_cli.formats.outputs.open_output import Output, OutputOptions, open_output
from llava_mini_cli.formats.row import COLUMNS, Row

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


each_format = pytest.mark.parametrize("output", FILES, indirect=True)
