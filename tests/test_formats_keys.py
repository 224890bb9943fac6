"""Which output a run writes, which of its rows are its own: suffixes, shards and keys."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from output_rows import (
    RUN,
    finished,
    opened,
    row,
    texts,
)

from llava_mini_cli.errors import OutputError, OutputLocked, UsageError
from llava_mini_cli.formats.job import ItemIdentity, Job, Prompt, Question
from llava_mini_cli.formats.outputs.done import written_key
from llava_mini_cli.formats.outputs.open_output import Format, OutputOptions
from llava_mini_cli.formats.outputs.row_keys import RowKeys, file_identity
from llava_mini_cli.formats.shard import Shard


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
