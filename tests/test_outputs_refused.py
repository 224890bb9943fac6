"""Outputs that would cost somebody their data, or never end; and media that come twice among several runs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, open_made_clip
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.shard import Shard


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.mp4": "4", "b.mp4": "2"}.items():
        Path(name).write_text(text)


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("text", ['{"precious": 1}', "id", '{"id": "half a row of somebody else'])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_file_of_somebody_else_is_left_alone(name: str, text: str) -> None:
    Path(name).write_text(text)
    done = llava_mini("ask", "a.mp4", "What?", "-o", name)
    assert (done.exit_code, Path(name).read_text()) == (2, text)
    assert "--overwrite" in done.stderr
    assert llava_mini("ask", "a.mp4", "What?", "-o", name, "--overwrite").exit_code == 0
    assert "What?" in Path(name).read_text()


def test_an_empty_file_may_be_written_to() -> None:
    output = Path("x.jsonl")
    output.touch()
    assert llava_mini("ask", "a.mp4", "What?", "-o", "x.jsonl").exit_code == 0
    output.write_text('{"id": "torn')  # as a kill leaves it
    assert llava_mini("ask", "a.mp4", "What?", "-o", "x.jsonl").exit_code == 0
    assert output.read_text().count("\n") == 1


@pytest.mark.parametrize(
    "named", [["rows.jsonl"], ["r*.jsonl"], ["--files-from", "rows.jsonl"], ["link.jsonl"], ["file:rows"]]
)
def test_rows_do_not_go_into_what_is_read(named: list[str]) -> None:
    rows = Path("rows.jsonl")
    assert llava_mini("ask", "a.mp4", "What?", "-o", "rows.jsonl").exit_code == 0
    before = rows.read_text()
    Path("link.jsonl").symlink_to(rows)
    if named == ["file:rows"]:
        named = [rows.absolute().as_uri()]
    done = llava_mini("ask", *named, "Why?", "-o", "rows.jsonl")
    assert (done.exit_code, "among the inputs" in done.stderr) == (2, True)
    assert rows.read_text() == before


def test_a_medium_that_comes_twice_is_one_runs_work() -> None:
    Path("list.txt").write_text("a.mp4\nb.mp4\na.mp4\n")
    for number in (1, 2, 1, 2):
        done = llava_mini("ask", "--files-from", "list.txt", "What?", "-o", "out/", "--shard", f"{number}/2")
        assert done.exit_code == 0
    rows = [row for part in Path("out").glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(row["id"] for row in rows) == ["a.mp4", "a.mp4", "b.mp4"]
    assert len({row["fingerprint"] for row in rows}) == 3


def test_shares_are_every_nth_medium_and_everything_once() -> None:
    names = ["a", "b", "a", "c", "b", "d", "./a"]
    jobs = [Job(name, name, ()) for name in names]
    shares = [[job.path for job in Shard(number, 2).share(iter(jobs))] for number in (1, 2)]
    assert shares == [["a", "a", "c", "./a"], ["b", "b", "d"]]
