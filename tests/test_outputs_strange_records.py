"""Settings of a run that somebody else wrote into a companion, into the notes of a folder or into a Parquet file."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from output_rows import row

from llava_mini_cli.errors import OutputError, OutputLocked, UsageError
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.companion import RunInfo, record_in
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output

RUN = RunInfo("m", {"fps": 1.0})
GOOD = RUN.record("0123")
STRANGE: list[object] = [
    5, "x", [1], {"a": 1}, GOOD | {"settings": []}, GOOD | {"kept": {}}, GOOD | {"kept": [1]}, GOOD | {"kept": [["a"]]},
    GOOD | {"generation": 3}, {"generation": "x"},
]  # fmt: skip


def test_a_record_of_ours_is_told_from_others() -> None:
    for nothing in (None, {}):
        assert record_in(nothing, Path("x")) == {}
    for record in (GOOD, GOOD | {"kept": [["a", "string"]]}):
        assert record_in(record, Path("x")) == record
    for strange in STRANGE:
        with pytest.raises(UsageError, match="'x' is damaged, or llava-mini did not write it: --"):
            record_in(strange, Path("x"))


@pytest.mark.parametrize("record", STRANGE)
def test_an_output_beside_such_a_record_is_refused_and_let_go(tmp_path: Path, record: object) -> None:
    jsonl = OutputOptions.parse(f"{tmp_path}/x.jsonl", None)
    with open_output(jsonl, RUN) as output:
        output.write(row(1))
    for _ in range(2):
        (tmp_path / ".x.jsonl.llava-mini").write_text(json.dumps({"run": record}))
        with pytest.raises(UsageError, match="llava-mini did not write it"):
            open_output(jsonl, RUN)
    (tmp_path / "out" / ".llava-mini").mkdir(parents=True)
    (tmp_path / "out" / ".llava-mini" / "run").write_text(json.dumps({"run": record, "leaving": 5}))
    table = pa.table({"a": [1]}).replace_schema_metadata({b"llava-mini": json.dumps(record).encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    for name in ("out/", "x.parquet"):
        for _ in range(2):
            with pytest.raises(UsageError, match="llava-mini did not write it"):
                open_output(OutputOptions.parse(f"{tmp_path}/{name}", None), RUN)


@pytest.mark.parametrize("text", ["[]", "5", "[" * 100_000, "{", "\xff"])
def test_a_lock_that_holds_something_else_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with pytest.raises(OutputError, match=r"lock' is damaged; without it settings are not compared"):
        FileLock(tmp_path / "lock", tmp_path)
    (tmp_path / "lock").write_text("")
    with FileLock(tmp_path / "lock", tmp_path):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(OutputLocked, match="another run is writing"):
            FileLock(tmp_path / "lock", tmp_path)
    table = pa.table({"a": [1]}).replace_schema_metadata({b"llava-mini": text.encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="llava-mini did not write it"):
        open_output(OutputOptions.parse(f"{tmp_path}/x.parquet", None), RUN)
