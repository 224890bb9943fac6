"""Runs over media that were moved, touched or copied since: what is known again is not decoded, and no row changes."""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, MadeClip, open_made_clip
from output_rows import read
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.formats.content import file_content

FILES = ["out.jsonl", "out.csv", "out.parquet", "out/"]
ASK = ("-p", "What?", "-p", "Why?")


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)


def frames(number: int) -> str:
    """The content of a medium: others differ in the place of a digit."""
    return f"{'1':>{number + 1}}".ljust(1200)


def tree(folder: str, count: int) -> Path:
    for number in range(count):
        path = Path(folder, f"{number % 10}", f"{number}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(frames(number))
    return Path(folder)


def run(
    *arguments: str | Path, output: str = "out.jsonl", code: int = 0, ask: tuple[str, ...] = ASK
) -> tuple[int, str]:
    """One run of `ask`: how many media were decoded, and what was said at the end."""
    MadeClip.opened.clear()
    result = CliRunner().invoke(app, ["ask", *map(str, arguments), *ask, "-m", "echo", "-o", output])
    assert result.exit_code == code, result.stderr
    return len(MadeClip.opened), result.stderr.splitlines()[-1]


def rows(output: str = "out.jsonl") -> list[dict[str, Any]]:
    return sorted(read(output), key=lambda row: (row["id"], row["prompt"], row["fingerprint"]))


def moved(folder: Path) -> Path:
    return folder.rename("elsewhere")


def touched(folder: Path) -> Path:
    for path in folder.rglob("*.mp4"):
        os.utime(path, ns=(1, 1))
    return folder


def synced(folder: Path) -> Path:
    """As `cp -r` and `git checkout` leave it: other inodes, other times, another place."""
    shutil.copytree(folder, "synced", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    return touched(Path("synced"))


def synced_back(folder: Path) -> Path:
    return synced(folder).rename(folder)


WAYS = [moved, touched, synced, synced_back]


@pytest.mark.parametrize(("way", "count"), [(moved, 1000), (touched, 100), (synced, 100), (synced_back, 100)])
def test_trees_of_many_files_are_known_again(way: Callable[[Path], Path], count: int) -> None:
    there = tree("in", count)
    assert run(there)[0] == count
    before = Path("out.jsonl").read_bytes()
    there = way(there)
    opened, said = run(there)
    assert opened == 0
    assert f"0 answers, 0 failed, {2 * count} were there ({2 * count} known by content)" in said
    assert Path("out.jsonl").read_bytes() == before
    (there / "7" / "17.mp4").write_text(frames(17).replace("1", "2"))  # of the same size
    opened, said = run(there)
    assert opened == 1
    assert f"2 answers, 0 failed, {2 * count - 2} were there" in said
    assert [row["text"] for row in rows() if row["id"] == f"{there}/7/17.mp4"] == ["What? [2]", "Why? [2]"]
    assert len(rows()) == 2 * count + 2 * (there != Path("in"))  # of a file that has gone the rows stay
    assert run(there)[0] == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("output", FILES)
def test_every_kind_of_output_knows_its_rows_again(output: str, way: Callable[[Path], Path]) -> None:
    there = tree("in", 12)
    (there / "bad.mp4").write_text("unopenable")
    assert run(there, output=output, code=3)[0] == 12
    before = rows(output)
    assert len(before) == 26
    assert all(re.fullmatch(r"1200-[0-9a-f]{20}-[0-9a-f]{20}|10-.*", row["digest"]) for row in before)
    there = way(there)
    opened, said = run(there, output=output, code=3)
    assert (opened, rows(output)) == (0, before)
    assert "26 were there (26 known by content) (2 failed; " in said
    run(there, output=output, code=3, ask=(*ASK, "--retry-errors"))
    again = rows(output)
    assert (len(again), [row["id"] for row in again if row["status"] == "error"]) == (26, [f"{there}/bad.mp4"] * 2)
    (there / "bad.mp4").write_text("3")
    run(there, output=output)
    assert run(there, output=output)[0] == 0


def test_one_medium_in_two_places_has_rows_for_both_in_any_order() -> None:
    first = tree("a/in", 3)
    shutil.copytree(first, "b/in")
    run(first)
    opened, said = run("b/in", first)
    assert opened == 3
    assert "6 were there" in said
    assert [row["id"] for row in rows()][::2] == [f"{folder}/in/{n}/{n}.mp4" for folder in "ab" for n in range(3)]
    assert run(first, "b/in")[0] == run("b/in")[0] == 0
    assert len(rows()) == 12


def test_one_medium_that_is_named_twice_is_known_twice_when_it_moved() -> None:
    there = tree("in", 1) / "0" / "0.mp4"
    run(there, there)
    before = rows()
    there = there.rename("in/0.mp4")
    assert run(there, there)[0] == 0
    assert rows() == before
    assert run(there, there, there)[0] == 1
    assert len(rows()) == 6


def test_folders_that_changed_places_are_done_again() -> None:
    one, two = tree("a/in", 2), tree("b/in", 2)
    (two / "0/0.mp4").write_text("2")
    (two / "1/1.mp4").write_text("2")
    run(one, two)
    one.rename("c")
    two.rename(one)
    Path("c").rename(two)
    assert run(one, two)[0] == 4
    assert {(row["id"].partition("/")[0], row["text"]) for row in rows()} == {
        *(("a", f"{asked} [2]") for asked in ("What?", "Why?")),
        *(("b", f"{asked} [1]") for asked in ("What?", "Why?")),
    }
    assert len(rows()) == 8


def test_another_name_question_model_or_setting_is_new_work() -> None:
    there = tree("in", 1)
    run(there)
    moved(there)
    assert run("elsewhere", ask=("-p", "Who?"))[0] == 1
    assert run("elsewhere/0/0.mp4")[0] == 1  # given by itself, its name is 0.mp4
    assert run("elsewhere", ask=("-p", "What?", "-p", "Why?", "--fps", "2"), output="other.jsonl")[0] == 1
    shutil.copyfile("out.jsonl", "alone.jsonl")  # without its companion no setting is compared
    assert run("elsewhere", ask=("-p", "What?", "--fps", "3"), output="alone.jsonl")[0] == 1


def before_digests(output: str) -> None:
    """The output as it was written before rows had digests."""
    if output.endswith(".jsonl"):
        records = [json.loads(line) for line in Path(output).read_text().splitlines()]
        Path(output).write_text("".join(json.dumps(record | {"digest": 0}) + "\n" for record in records))
        Path(output).write_text(Path(output).read_text().replace(', "digest": 0', ""))
    elif output.endswith(".csv"):
        text = re.sub(r",[^,\n]*-[0-9a-f]{20}-[0-9a-f]{20},", ",", Path(output).read_text())
        Path(output).write_text(text.replace(",digest,", ","))
    else:
        for path in [Path(output)] if Path(output).is_file() else Path(output).glob("*.parquet"):
            table = pq.read_table(path)
            pq.write_table(table.drop_columns(["digest"]), path)


@pytest.mark.parametrize("output", FILES)
def test_outputs_of_before_go_on_and_are_known_by_path_and_time(output: str) -> None:
    there = tree("in", 4)
    run(there, output=output)
    before_digests(output)
    assert "digest" not in rows(output)[0]
    assert run(there, output=output)[0] == 0
    (there / "new.mp4").write_text("3")
    assert run(there, output=output)[0] == 1
    assert len(rows(output)) == 10
    os.utime(there / "0/0.mp4", ns=(1, 1))
    assert run(there, output=output)[0] == 1
    assert len(rows(output)) == 10
    os.utime(there / "new.mp4", ns=(1, 1))
    has_column = output.endswith(("parquet", "/"))
    assert run(there, output=output)[0] == (0 if has_column else 1)
    assert all(("digest" in row) == has_column for row in rows(output))


def test_an_answer_that_was_replaced_is_not_taken_for_the_content_it_was_about() -> None:
    there = tree("in", 1) / "0" / "0.mp4"
    first = there.read_text()
    run(there)
    old = Path("out.jsonl").read_bytes()
    there.write_text("2".ljust(1200))
    run(there)
    Path("out.jsonl").write_bytes(old + Path("out.jsonl").read_bytes())  # as a killed run leaves it
    there.write_text(first)
    os.utime(there, ns=(1, 1))
    assert run(there)[0] == 1
    assert [row["text"] for row in rows()] == ["What? [1]", "Why? [1]"]


def test_a_table_that_moved_is_known_again_but_for_what_is_about_no_file() -> None:
    folder = Path("data")
    (folder / "clips").mkdir(parents=True)
    (folder / "clips/a.mp4").write_text("2")
    (folder / "t.csv").write_text("path,id,question\nclips/a.mp4,1,Who?\nclips/gone.mp4,2,Who?\n,3,Who?\n")
    ask = ("--prompt-column", "question", "--id-column", "id")
    assert run("data/t.csv", ask=ask, code=3)[0] == 1
    before = rows()
    assert [row["digest"] and row["digest"][:2] for row in before] == ["1-", None, None]
    moved(folder)
    opened, said = run("elsewhere/t.csv", ask=ask, code=3)
    assert opened == 0
    assert "0 answers, 2 failed, 1 were there (1 known by content)" in said
    opened, said = run("elsewhere/t.csv", ask=ask, code=3)
    assert opened == 0
    assert "3 were there (1 known by content) (2 failed" in said
    assert len(rows()) == 5


def test_shards_and_tables_with_media_in_them_are_known_again() -> None:
    with tarfile.open("s.tar", "w") as shard:
        for number in range(3):
            Path(f"{number}.mp4").write_text(frames(number))
            shard.add(f"{number}.mp4")
    cells = [{"bytes": frames(number).encode(), "path": f"{number}.mp4"} for number in range(5, 8)]
    pq.write_table(pa.table({"video": cells, "n": [1, 2, 3]}), "t.parquet")
    assert run("s.tar", "t.parquet")[0] == 6
    before = rows()
    assert len(before) == 12
    Path("new").mkdir()
    with tarfile.open("new/s.tar", "w") as shard:  # packed anew, from files of another time
        for number in range(3):
            os.utime(f"{number}.mp4", (1, 1))
            shard.add(f"{number}.mp4")
    Path("s.tar").unlink()
    Path("t.parquet").rename("new/t.parquet")
    assert run("new/s.tar", "new/t.parquet")[0] == 0
    assert rows() == before


def test_a_pipe_is_not_read_for_a_digest() -> None:
    os.mkfifo("pipe")
    writer = os.open("pipe", os.O_RDWR)
    os.write(writer, b"2")

    assert file_content("pipe", 0) is None
    assert os.read(writer, 9) == b"2"
    os.close(writer)


def test_a_dry_run_reads_only_what_may_be_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_mini_cli.formats import content
    from llava_mini_cli.media import open as media_open

    read_files: list[str] = []
    real = content.file_content
    monkeypatch.setattr(content, "file_content", lambda path, size: read_files.append(path) or real(path, size))
    monkeypatch.setattr(media_open, "probe", lambda path, seconds: MadeClip(path, "1").info)
    there = tree("in", 3)
    run(there)
    read_files.clear()
    moved(there)
    Path("elsewhere/other.mp4").write_text("7")
    result = CliRunner().invoke(app, ["ask", "elsewhere", *ASK, "-m", "echo", "-o", "out.jsonl", "--dry-run"])
    told = json.loads(result.stdout)
    assert (told["media"], told["rows"], told["rows_done"]) == (1, 2, 6)
    assert sorted(read_files) == [f"elsewhere/{number}/{number}.mp4" for number in range(3)]


def test_a_medium_is_counted_once_where_some_of_its_questions_are_new() -> None:
    there = tree("in", 2)
    run(there, ask=("-p", "What?"))
    moved(there)
    told: list[tuple[int, int, int]] = []
    for questions in (["What?", "Who?"], ["What?"]):
        asked = [word for question in questions for word in ("-p", question)]
        run("elsewhere", ask=(*asked, "--summary-json", "summary.json"))
        summary = json.loads(Path("summary.json").read_text())
        told.append((summary["media"], summary["media_skipped"], summary["known_by_content"]))
    assert told == [(2, 0, 2), (0, 2, 2)]
