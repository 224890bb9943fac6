"""An archive whose media were moved or touched: they are known again, and their frames stay where they are."""

import os
import re
import shutil
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from archive_films import FILMS, rows, run
from input_doubles import jobs_of
from test_docs import ROOT
from test_formats_archive import add, as_format_1, frames, header, media, paths

from llava_mini_cli.formats.archive.compact import Compacted, compact
from llava_mini_cli.formats.archive.layout import LAST_NS, files_of, storable
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.writer import ArchiveWriter, open_for_writing
from llava_mini_cli.pipelines.index_sink import identity


def put(writer: ArchiveWriter, path: str, seed: int, digest: str | None = "5-abc") -> None:
    """A medium of 3 frames with a digest."""
    number = writer.begin()
    writer.add_frames(number, frames(3, seed))
    row = {"path": path, "file_name": Path(path).name, "size": 5, "mtime": 7, "media": "video", "status": "ok"}
    info = {"width": 64, "height": 48, "frames": 3, "frames_sampled": 3, "digest": digest}
    writer.finish(number, row | info, [{"start": 0.0, "end": 1.0, "text": f"seed {seed}"}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive of three media in two parts, of files that are not there; the first two have one name."""
    with open_for_writing(tmp_path / "a") as writer:
        writer.start(header("float32"))
        put(writer, "/x/1/a", 1, "5-one")
        put(writer, "/x/2/a", 2, "5-two")
    with open_for_writing(tmp_path / "a") as writer:
        writer.start(header("float32"))
        put(writer, "/x/c", 3)
    return tmp_path / "a"


def move(folder: Path, content: str, to: str, mtime: int = 8) -> str | None:
    item = to, 5, mtime
    with open_for_writing(folder) as writer:
        writer.start(header("float32"))
        assert not writer.holds(item)
        path = writer.recall(item, Path(to).name, content, retry_errors=False)
        if path is not None:
            assert writer.recall(item, Path(to).name, content, retry_errors=False) is None  # each once
            writer.record_moved()
            assert writer.holds(item)
    return path


def seeds(folder: Path) -> dict[str, int]:
    """The media by path, each with the seed that made its frames, features and caption."""
    found: dict[str, int] = {}
    with open_archive(folder) as archive:
        numbers = {part: archive.frames(part).medium for part in archive.parts}
        for medium in archive.each_medium():
            features = np.concatenate([some for some, _ in archive.features(medium)])
            clip = np.concatenate(list(archive.vectors(medium.part)))[numbers[medium.part] == medium.number]
            (seed,) = [seed for seed in range(9) if np.array_equal(frames(3, seed).features, features)]
            np.testing.assert_array_equal(clip, frames(3, seed).clip)
            assert [caption["text"] for caption in archive.captions(medium)] == [f"seed {seed}"]
            found[medium.path] = seed
    return found


def test_a_medium_that_moved_keeps_its_frames(folder: Path) -> None:
    assert move(folder, "5-two", "/y/a") == "/x/2/a"
    assert seeds(folder) == {"/x/1/a": 1, "/y/a": 2, "/x/c": 3}
    assert pq.read_metadata(folder / "media" / "part-000003.parquet").num_rows == 2
    assert not (folder / "frames" / "part-000003.parquet").exists()
    assert move(folder, "5-two", "/z/a") == "/y/a"
    assert move(folder, "5-two", "/x/2/a", 9) == "/z/a"  # and back
    assert seeds(folder) == {"/x/1/a": 1, "/x/2/a": 2, "/x/c": 3}
    with open_for_writing(folder) as writer:
        writer.start(header("float32"))
        put(writer, "/new", 4)
    assert seeds(folder) == {"/x/1/a": 1, "/x/2/a": 2, "/x/c": 3, "/new": 4}


def test_other_tools_find_the_frames_of_a_medium_that_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    old = folder / "media" / "part-000001.parquet"  # as it was before there were these columns
    pq.write_table(pq.read_table(old).drop_columns(["digest", "frames_of"]), old)
    move(folder, "5-abc", "/y/c")
    folder.rename(folder.with_name("films.index"))
    monkeypatch.chdir(folder.parent)
    (query,) = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "archive.md").read_text(), re.DOTALL)
    found = duckdb.sql(query.replace("SELECT file_name", "SELECT path", 1)).fetchall()
    assert sorted({path for path, _, _ in found}) == ["/x/1/a", "/x/2/a", "/y/c"]
    assert len(found) == 9


def test_a_medium_that_was_touched_keeps_its_frames(folder: Path) -> None:
    assert move(folder, "5-one", "/x/1/a") == "/x/1/a"
    assert seeds(folder) == {"/x/1/a": 1, "/x/2/a": 2, "/x/c": 3}
    assert {medium.path: medium.mtime_ns for medium in media(folder)} == {"/x/1/a": 8, "/x/2/a": 7, "/x/c": 7}


def test_other_bytes_another_name_and_a_copy_are_new(folder: Path, tmp_path: Path) -> None:
    assert move(folder, "5-three", "/y/a") is None
    assert move(folder, "5-one", "/y/b") is None
    (tmp_path / "c").touch()
    with open_for_writing(folder) as writer:
        writer.start(header("float32"))
        put(writer, str(tmp_path / "c"), 5, "5-there")
    assert move(folder, "5-there", "/y/c") is None
    (tmp_path / "c").unlink()
    assert move(folder, "5-there", "/y/c") == str(tmp_path / "c")


def test_failures_that_moved_are_known_unless_they_are_to_be_tried_again(folder: Path) -> None:
    with open_for_writing(folder) as writer:
        writer.start(header("float32"))
        failed = {"path": "/x/bad", "file_name": "bad", "size": 5, "mtime": 7, "digest": "5-bad", "status": "error"}
        writer.finish(writer.begin(), failed | {"error": "no", "error_type": "corrupt", "error_stage": "decode"})
    with open_for_writing(folder) as writer:
        assert writer.recall(("/y/bad", 5, 8), "bad", "5-bad", retry_errors=True) is None
    assert move(folder, "5-bad", "/y/bad") == "/x/bad"
    with open_archive(folder) as archive:
        assert [(failure.path, failure.error_type) for failure in archive.each_failure()] == [("/y/bad", "corrupt")]
    compact(folder)
    with open_archive(folder) as archive:
        assert [failure.path for failure in archive.each_failure()] == ["/y/bad"]


def test_compaction_puts_a_medium_that_moved_beside_its_frames(folder: Path) -> None:
    move(folder, "5-two", "/y/a")
    move(folder, "5-one", "/x/1/a")
    before = seeds(folder)
    kept = {path: path.read_bytes() for number in range(1, 5) for path in files_of(folder, number)}
    assert compact(folder) == Compacted(4, 1, [])
    assert seeds(folder) == before == {"/x/1/a": 1, "/y/a": 2, "/x/c": 3}
    assert pq.read_table(folder / "media").column("frames_of").null_count == 3
    assert compact(folder) == Compacted(0, 0, [])
    for path, data in kept.items():
        if "/part-000001" not in str(path):  # it was cut short when it had taken away the first part
            path.write_bytes(data)
    assert seeds(folder) == before
    assert move(folder, "5-two", "/z/a") == "/y/a"
    assert seeds(folder) == {"/x/1/a": 1, "/z/a": 2, "/x/c": 3}


def test_compaction_leaves_no_row_behind_whose_frames_are_in_a_large_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_mini_cli.formats.archive.compact.SMALL_ROWS", 1)
    move(folder, "5-two", "/y/a")
    assert compact(folder).lost == []
    assert seeds(folder) == {"/x/1/a": 1, "/y/a": 2, "/x/c": 3}


def test_a_medium_whose_frames_are_damaged_is_indexed_again(folder: Path) -> None:
    move(folder, "5-two", "/y/a")
    (folder / "media" / "part-000001.parquet").write_bytes(b"damaged")
    assert paths(folder) == ["/x/c"]
    with open_for_writing(folder) as writer:
        assert set(writer.known) == {"/x/c"}


def test_an_archive_of_before_there_were_digests_goes_on(folder: Path) -> None:
    for path in (as_format_1(folder) / "media").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["digest", "frames_of"]), path)
    assert seeds(folder) == {"/x/1/a": 1, "/x/2/a": 2, "/x/c": 3}
    assert move(folder, "5-two", "/y/a") is None
    with open_for_writing(folder) as writer:
        assert writer.holds(("/x/c", 5, 7))
        writer.start(header("float32"))
        put(writer, "/y/a", 4, "5-two")
    assert compact(folder) == Compacted(3, 1, [])
    assert seeds(folder) == {"/x/1/a": 1, "/x/2/a": 2, "/x/c": 3, "/y/a": 4}


@pytest.mark.parametrize("time", [1 << 63, 1 << 80, -(1 << 63), -(1 << 70)])
def test_times_that_no_column_holds_are_brought_within(tmp_path: Path, time: int) -> None:
    kept = LAST_NS if time > 0 else -LAST_NS
    assert storable(("a", 1, time)) == ("a", 1, kept)
    with open_for_writing(tmp_path / "a") as writer:
        writer.start(header())
        add(writer, "/x/a", mtime=kept)
    with open_for_writing(tmp_path / "a") as writer:
        assert writer.holds(storable(("/x/a", 5, time)))
    assert [medium.mtime_ns for medium in media(tmp_path / "a")] == [kept]
    assert storable(("a", None, None)) == ("a", None, None)


def test_a_member_of_a_shard_may_have_any_age(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        for name, time in (("a.mp4", 1 << 80), ("b.mp4", -(1 << 80)), ("c.mp4", 7)):
            info = tarfile.TarInfo(name)
            info.mtime = time
            shard.addfile(info)
    assert [identity(job)[2] for job in jobs_of(tmp_path / "s.tar")] == [None, None, 7]  # absurd times are none


def test_a_tree_that_moved_is_not_indexed_again(films: Path, tmp_path: Path) -> None:
    there, archive = tmp_path / "films", tmp_path / "a"
    shutil.copytree(films, there)
    run("index", there, "-o", archive, "-m", "demo", "-q")
    before = rows(run("search", archive, "a red circle", "-k", "9"))
    ask = ("ask", "--index", archive, "Why?", "-o", tmp_path / "answers.jsonl")
    assert "3 answers" in run(*ask).stderr
    there = there.rename(tmp_path / "elsewhere")
    (there / "new.mp4").write_bytes((films / "green.mp4").read_bytes())
    again = run("index", there, "-o", archive, "-m", "demo", "--prune")
    assert "1 media indexed, 3 there already (3 known by content), 4 frames" in again.stderr
    assert "dropped" not in again.stderr
    moved = rows(run("search", archive, "a red circle", "-k", "9"))
    assert [moment["score"] for moment in moved if moment["file_name"] != "new.mp4"] == [row["score"] for row in before]
    assert "1 answers, 0 failed, 3 were there (3 known by content)" in run(*ask).stderr
    assert {moment["path"] for moment in moved} == {str(there / name) for name in (*FILMS, "new.mp4")}
    assert "0 media indexed, 4 there already, 0 frames" in run("index", there, "-o", archive, "-m", "demo").stderr
    assert "dropped" not in run("index", "-o", archive, "-m", "demo", "--prune").stderr
    for name in FILMS:
        os.utime(there / name, (1, 1))
    assert run("ask", "--index", archive, "Why?", "--path", "*red*").exit_code == 0  # the file is what was indexed
    again = run("index", there, "-o", archive, "-m", "demo", "--prune")
    assert "0 media indexed, 4 there already (3 known by content), 0 frames" in again.stderr
    (there / "red.mp4").write_bytes((there / "red.mp4").read_bytes()[:-1] + b"x")
    assert run("ask", "--index", archive, "Why?", "--path", "*red*").exit_code == 3
    assert "1 media indexed, 3 there already, " in run("index", there, "-o", archive, "-m", "demo").stderr


@pytest.mark.parametrize("time", [10_000_000_000, -10_000_000_000])  # seconds: in 2286 and 1653
def test_a_file_of_another_age_is_indexed(films: Path, tmp_path: Path, time: int) -> None:
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        path = Path(folder, "green.mp4")
        shutil.copy(films / "green.mp4", path)
        os.utime(path, (time, time))
        if path.stat().st_mtime != time:
            pytest.skip("the file system has no such time")
        index_and_ask(path, tmp_path)


def index_and_ask(path: Path, tmp_path: Path) -> None:
    for there in ("1 media indexed, 4 frames", "0 media indexed, 1 there already, 0 frames"):
        done = run("index", path, "-o", tmp_path / "a", "-m", "demo")
        assert (done.exit_code, there in done.stderr) == (0, True)
    assert rows(run("ask", "--index", tmp_path / "a", "Why?"))[0]["status"] == "ok"
