"""Parts of an archive: how they are filled and cut off, their columns, damage, numbers that are left free."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_formats_archive import SHAPES, add, as_format_1, frames, header, make, paths

from llava_mini_cli.errors import ArchiveError, OutputError, UsageError
from llava_mini_cli.formats.archive import compact as compact_module
from llava_mini_cli.formats.archive import manifest, newest
from llava_mini_cli.formats.archive import part as part_module
from llava_mini_cli.formats.archive import writer as writer_module
from llava_mini_cli.formats.archive.compact import Compacted, compact
from llava_mini_cli.formats.archive.layout import (
    CAPTION_COLUMNS,
    ArchiveHeader,
    Shapes,
    feature_schema,
    files_of,
    frame_schema,
    part_name,
    part_numbers,
)
from llava_mini_cli.formats.archive.newest import Damage
from llava_mini_cli.formats.archive.part import ArchivePartWriter, FrameRows
from llava_mini_cli.formats.archive.reader import StoredFailure, StoredMedium, local_name, open_archive
from llava_mini_cli.formats.archive.writer import MOST_MEDIA, open_for_writing

PART = Path("part-000001.parquet")
FRAME_BYTES = 8 * 2 + 9 * 6 * 4  # of the token and the features


def test_a_header_reads_back_and_what_is_none_is_refused(tmp_path: Path) -> None:
    written = replace(header("int8", revision="r", limit=None), model_revision="c" * 40, version="1.2")
    written.write(tmp_path)
    assert ArchiveHeader.read(tmp_path) == written
    text = (tmp_path / "archive.json").read_text()
    assert text.startswith('{\n  "format": "llava-mini archive",\n  "format_version": 2,\n  "model": "demo",\n')
    for changed, words in [
        ("{", r"archive\.json' cannot be read: "),
        ("[1]", r"archive\.json' is not the header of an archive"),
        ('{"format": "zip"}', "is not the header of an archive"),
        (text.replace('"format_version": 2', '"format_version": 3'), "has format version 3, and this is for 2"),
        (text.replace('"fps": 1.0', '"fps": 2.0'), r"archive\.json' is damaged: .*it is not what was written"),
        (text.replace('"shapes"', '"sizes"'), r"archive\.json' is damaged: KeyError\('shapes'\)"),
    ]:
        (tmp_path / "archive.json").write_text(changed)
        with pytest.raises(ArchiveError, match=words):
            ArchiveHeader.read(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        written.write(tmp_path / "gone")


def test_headers_differ_in_words() -> None:
    mine = header(fps=1.0, dedupe=None)
    assert mine.difference(header(fps=1.0)) is None
    assert mine.difference(header(fps=2.5, dedupe="x")) == (
        "--dedupe x (the archive has none); --fps 2.5 (the archive has 1)"
    )
    other = replace(mine, shapes=Shapes((4, 8), 4, (1, 9, 6)))
    assert mine.difference(other) == f"vectors of {other.shapes} (the archive has {SHAPES})"
    assert mine.difference(header("int8", frames_at_once=1)) == (
        "--dedupe none (the archive has none); --features-dtype int8 (the archive has none); "
        "--frames-at-once 1 (the archive has none)"
    ).replace("--dedupe none (the archive has none); ", "")
    revised = replace(mine, model_revision="0123456789abcdef", model_digest="fedcba9876543210")
    assert revised.name == "'demo' at 0123456789ab (fedcba98)"
    assert mine.difference(revised) == (f"the archive was made with the model 'demo' (abc), and this is {revised.name}")


def test_names_of_parts(tmp_path: Path) -> None:
    assert part_name(7, "frames") == "frames/part-000007.parquet"
    assert part_name(1234567, "vectors") == "vectors/part-1234567.f16"
    assert part_numbers(tmp_path, "media") == []
    (tmp_path / "media").mkdir()
    for name in ("part-000012.parquet", "part-2.parquet", "part-x.parquet", ".part-000003.parquet.tmp", "notes-1.txt"):
        (tmp_path / "media" / name).touch()
    assert part_numbers(tmp_path, "media") == [2, 12]
    for table in ("vectors", "frames"):
        (tmp_path / table).mkdir()
        (tmp_path / part_name(12, table)).touch()
    assert [str(path.relative_to(tmp_path)) for path in files_of(tmp_path, 12)] == [
        "media/part-000012.parquet", "frames/part-000012.parquet", "vectors/part-000012.f16",
    ]  # fmt: skip


def test_columns_by_the_widths_of_a_model() -> None:
    wide = frame_schema(Shapes((4, 8), 5, (2, 3, 7)))
    assert (wide.field("token").type, wide.field("clip").type) == (
        pa.list_(pa.float16(), 32), pa.list_(pa.float16(), 5),
    )  # fmt: skip
    assert frame_schema(Shapes((4, 8), None, (2, 3, 7))).field("clip").type == pa.list_(pa.float16())
    sizes = {
        kind: feature_schema(Shapes((4, 8), 5, (2, 3, 7)), kind).field("features").type.byte_width
        for kind in ("float32", "float16", "int8")
    }
    assert sizes == {"float32": 168, "float16": 84, "int8": 42}
    names = [feature_schema(Shapes((4, 8), 5, (2, 3, 7)), kind).names for kind in ("float16", "int8")]
    assert names == [["medium", "frame", "time", "features"], ["medium", "frame", "time", "features", "scales"]]
    assert feature_schema(Shapes((4, 8), 5, (2, 3, 7)), "int8").field("scales").type.byte_width == 56


def test_every_column_is_written_as_it_was_given(tmp_path: Path) -> None:
    rows = replace(frames(2, 1), last_time=np.array([1.0, 2.0]), stands_for=np.array([2, 5], np.int32))
    began = datetime.now(UTC)
    with open_for_writing(tmp_path) as writer:
        writer.start(header("int8"))
        medium = writer.begin()
        writer.add_frames(medium, rows)
        writer.finish(medium, {"path": "/x", "status": "ok", "frames": 2}, [{"start": 1.0, "text": "t"}])
    (row,) = pq.read_table(tmp_path / "media" / PART).to_pylist()
    assert began <= row.pop("indexed_at").replace(tzinfo=UTC) + (datetime.now(UTC) - began)
    assert {name: value for name, value in row.items() if value is not None} == {
        "medium": 1, "path": "/x", "status": "ok", "frames": 2,
    }  # fmt: skip
    assert pq.read_table(tmp_path / "captions" / PART).to_pylist() == [
        dict.fromkeys(CAPTION_COLUMNS) | {"medium": 1, "start": 1.0, "text": "t"}
    ]
    found = pq.read_table(tmp_path / "frames" / PART).to_pydict()
    assert rows.clip is not None
    assert {name: found[name] for name in ("medium", "frame", "time", "last_time", "stands_for", "token", "clip")} == {
        "medium": [1, 1], "frame": [0, 1], "time": [0.5, 1.5], "last_time": [1.0, 2.0], "stands_for": [2, 5],
        "token": rows.tokens.reshape(2, 8).tolist(), "clip": rows.clip.tolist(),
    }  # fmt: skip
    features = pq.read_metadata(tmp_path / "features" / PART).row_group(0)
    compression = {features.column(n).path_in_schema: features.column(n).compression for n in range(5)}
    assert compression["features"] == "UNCOMPRESSED"
    groups = pq.read_metadata(tmp_path / "frames" / PART).row_group(0)
    assert {groups.column(n).compression for n in range(groups.num_columns)} == {"ZSTD"}
    assert groups.column(0).statistics.max == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_rows_are_written_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "GROUP_BYTES", 2 * 3 * FRAME_BYTES)  # two media
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        for name in "abcde":
            add(writer, f"/x/{name}")
    metadata = pq.read_metadata(tmp_path / "frames" / PART)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [6, 6, 3]


def test_what_a_part_counts(tmp_path: Path) -> None:
    part = ArchivePartWriter(tmp_path, 3, header("float32"))
    rows = frames(2, 0)
    assert rows.features is not None
    part.add_frames(1, rows)
    part.add_frames(1, replace(rows, features=None))
    assert (part.number, part.rows, part.nbytes) == (3, 4, 2 * rows.tokens.nbytes + rows.features.nbytes)
    assert part.publish() is None  # no medium is complete
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_discards_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, table: pa.Table) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError) as raised, open_for_writing(tmp_path) as writer:
        writer.start(header())
        add(writer, "/x/a")
        monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    assert str(raised.value) == f"cannot write '{tmp_path}': No space left on device"
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*part-*"))
    assert paths(tmp_path) == []


@pytest.mark.parametrize("most", [1 << 20, 64])
def test_facts_of_a_file_tell_each_byte_that_they_are_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """All of `media`, the footers of other tables; of a very large file no more than its end."""
    monkeypatch.setattr(manifest, "_MOST_CHECKED", most)
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"medium": [1, 2, 3]}), path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for table, told in (("media", len(whole)), ("frames", footer), ("vectors", 0)):
        facts = manifest.file_facts(path, table)
        changes: list[bool] = []
        for place in range(len(whole) - 8):  # what lies behind says how long the footer is
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            changes.append(manifest.file_facts(path, table) != facts)
        covered = max(0, min(told, most) - 8)
        assert changes == [False] * (len(changes) - covered) + [True] * covered
        path.write_bytes(whole + b"x")
        assert manifest.file_facts(path, table).size == facts.size + 1
        path.write_bytes(whole)


@pytest.mark.parametrize(("name", "most"), [("PART_ROWS", 6), ("PART_BYTES", 6 * FRAME_BYTES), ("PART_SECONDS", 0.0)])
def test_a_part_that_is_full_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: float
) -> None:
    monkeypatch.setattr(writer_module, name, most)
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        in_flight = writer.begin()
        writer.add_frames(in_flight, frames(1, 0))
        add(writer, "/x/a", count=3)
        assert part_numbers(tmp_path, "media") == ([2] if name == "PART_SECONDS" else [])
        add(writer, "/x/b", count=2)  # now it is full, and waits for the medium that is in flight
        if name != "PART_SECONDS":
            assert part_numbers(tmp_path, "media") == []
        add(writer, "/x/c", count=1)
        row = {"path": "/x/first", "file_name": "first", "status": "ok", "media": "image", "frames": 1}
        writer.finish(in_flight, row)
        assert part_numbers(tmp_path, "media") == ([1, 2, 3, 4] if name == "PART_SECONDS" else [1])
    assert sorted(paths(tmp_path)) == ["/x/a", "/x/b", "/x/c", "/x/first"]


def test_what_a_run_knows_of_each_path(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", "/x/b", features=None)
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        assert writer.known["/x/a"] == writer_module.Known(5, 7, "ok")
        assert (writer.begin(), writer.begin()) == (3, 4)
        writer.finish(writer.begin(), {"path": "/x/c", "file_name": "c", "size": 1, "mtime": 2, "status": "error"})
        assert writer.known["/x/c"] == writer_module.Known(1, 2, "error")
        writer.drop(["/x/b"])
        assert set(writer.known) == {"/x/a", "/x/c"}
        assert not writer.holds(("/x/b", 5, 7))
        assert not writer.holds(("/x/a", 6, 7))
    with open_for_writing(tmp_path) as writer:
        assert set(writer.known) == {"/x/a", "/x/c"}


def test_the_numbers_of_a_damaged_part_are_left_free(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    make(tmp_path, "/x/b")
    (tmp_path / "media" / PART).write_bytes(b"noise")
    (tmp_path / "captions" / "part-000009.parquet").touch()
    with open_for_writing(tmp_path) as writer:
        assert [damage.part for damage in writer.damage] == [1]
        writer.start(header("float32"))
        assert writer.begin() == 2 + 1 + MOST_MEDIA
        writer.finish(2 + 1 + MOST_MEDIA, {"path": "/x/c", "status": "error"})
    assert part_numbers(tmp_path, "media") == [1, 2, 3]


def test_a_file_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UsageError, match="is a file; an archive is a folder"), open_for_writing(tmp_path / "a"):
        pass
    with pytest.raises(UsageError, match="is no archive"), open_archive(tmp_path / "a"):
        pass
    (tmp_path / "new" / ".hidden").mkdir(parents=True)
    make(tmp_path / "new", "/x/a")
    make(tmp_path / "deep" / "er", "/x/a")
    assert (tmp_path / "deep" / "er" / ".readers").exists()
    with pytest.raises(OutputError, match=f"^cannot write '{tmp_path}/a/b': Not a directory$"):
        make(tmp_path / "a" / "b")


def test_media_as_they_are_stored(tmp_path: Path) -> None:
    make(tmp_path, "/x/a.mp4", features=None)
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        failed = {"path": "/x/b", "file_name": "b", "size": 1, "mtime": 2, "status": "error"}
        writer.finish(writer.begin(), failed | {"error": "bad", "error_type": "corrupt", "error_stage": "decode"})
    with open_archive(tmp_path) as archive:
        assert list(archive.each_failure()) == [StoredFailure("/x/b", "b", 1, 2, "decode", "corrupt", "bad")]
        assert archive.medium(0) == StoredMedium(1, 1, "/x/a.mp4", "a.mp4", 5, 7, "video", 3.0, 64, 48, 3, 3, 1.0, None)
        assert archive.parts == [1]
        assert len(archive.matching(lambda path, name: name == "a.mp4").media) == 1
        some = archive.matching(lambda path, name: path == "/x/b")
        assert (len(some.media), len(some.failures)) == (0, 1)
        assert (len(archive.restrict(np.array([False])).media), len(archive.restrict(np.array([True])).media)) == (0, 1)
        assert archive.captions(replace(archive.medium(0), number=2)) == []
        archive.leave_out(1, ArchiveError("frames/part-000001.parquet: gone: away"))
        archive.leave_out(1, ArchiveError("frames/part-000001.parquet: said once"))
        assert archive.damage == [Damage(1, "frames/part-000001.parquet", "gone: away")]


def test_vectors_by_rows_with_and_without_their_plain_file(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", "/x/b", features=None)
    wanted = frames(3, 0).clip
    assert wanted is not None
    rows = np.array([5, 0], np.int32)
    with open_archive(tmp_path) as archive:
        file = archive.vector_file(1, 6)
        assert file == tmp_path / "vectors" / "part-000001.f16"
        assert archive.vector_file(1, 5) is None
        for data in (file.read_bytes(), file.read_bytes()[:-4], file.read_bytes()[:8], None):
            file.unlink()
            if data is not None:
                file.write_bytes(data)
            assert archive.vector_rows(1, rows).tolist() == [wanted[2].tolist(), wanted[0].tolist()]
            assert (archive.vector_file(1, 6) is None) == (data is None or len(data) < 48)
            file.touch()


def test_the_mean_is_over_all_parts_and_dropped_frames(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", features=None, seed=1)
    make(tmp_path, "/x/b", features=None, seed=2)
    expected = np.concatenate([frames(3, seed).clip for seed in (1, 2)]).astype(np.float32)  # type: ignore[arg-type]
    with open_archive(tmp_path) as archive:
        np.testing.assert_allclose(archive.mean_vector(), expected.mean(0), atol=1e-6)
        (tmp_path / "frames" / PART).unlink()
        with pytest.raises(ArchiveError, match=r"^frames/part-000001\.parquet: "):
            archive.mean_vector()
        with pytest.raises(ArchiveError, match=r"^frames/part-000001\.parquet: "):
            archive.frames(1)
        assert archive.restrict(np.zeros(2, np.bool_)).mean_vector().tolist() == [0.0] * 4


def test_features_of_one_medium_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "GROUP_BYTES", 1)
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float16"))
        one, two = writer.begin(), writer.begin()
        for medium, seed in [(one, 0), (two, 1), (one, 2)]:
            rows = frames(3, seed)
            assert rows.features is not None
            writer.add_frames(medium, replace(rows, features=rows.features.astype(np.float16)))
        for medium, count in [(one, 6), (two, 3)]:
            writer.finish(
                medium, {"path": f"/x/{medium}", "file_name": "", "media": "image", "status": "ok", "frames": count}
            )
    with open_archive(tmp_path) as archive:
        first, second = archive.features(archive.medium(0))
        for found, seed in [(first, 0), (second, 2)]:
            expected = frames(3, seed).features
            assert expected is not None
            assert found[0].tolist() == expected.astype(np.float16).tolist()
            assert found[1].tolist() == [0.5, 1.5, 2.5]
        missing = r"^features/part-000001\.parquet: 3 of 4 frames of /x/2 are there$"
        with pytest.raises(ArchiveError, match=missing):
            list(archive.features(replace(archive.medium(1), frames=4)))
        (tmp_path / "features" / PART).unlink()
        with pytest.raises(ArchiveError, match=r"^features/part-000001\.parquet: "):
            list(archive.features(archive.medium(0)))


def test_a_part_with_too_few_frames_is_damaged(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", features=None)
    make(tmp_path, "/x/b", features=None)
    as_format_1(tmp_path)
    table = pq.read_table(tmp_path / "frames" / PART)
    pq.write_table(table.slice(0, 2), tmp_path / "frames" / PART)
    with open_archive(tmp_path) as archive:
        assert archive.damage == [Damage(1, "frames/part-000001.parquet", "2 of 3 frames are there")]
        assert archive.parts == [2]
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "frames" / PART)  # left-overs are no damage
    with open_archive(tmp_path) as archive:
        assert archive.damage == []


def test_what_the_system_refuses_may_pass() -> None:
    for error, passes in [
        (PermissionError(13, "denied"), True),
        (FileNotFoundError(2, "gone"), False),
        (OSError("Couldn't deserialize"), False),
        (pa.ArrowInvalid("damaged"), False),
        (None, False),
    ]:
        assert newest.may_pass(error) is passes


def test_names_as_the_disk_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("caf\udce9", "plain\\x41", "caf\\xe8"):
        Path(name).touch()
    assert local_name("caf\\xe9") == "caf\udce9"
    assert local_name("caf\\xe8") == "caf\\xe8"  # a name that is there is its own
    assert local_name("plain\\x41") == "plain\\x41"
    assert local_name("gone\\xe9") == "gone\\xe9"


def test_compaction_merges_small_parts_and_leaves_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_module, "SMALL_ROWS", 5)
    monkeypatch.setattr(compact_module, "MERGED_ROWS", 7)
    monkeypatch.setattr(compact_module, "BATCH_ROWS", 2)
    for name, count in [("a", 5), ("b", 4), ("c", 3), ("d", 2), ("e", 6)]:
        with open_for_writing(tmp_path) as writer:
            writer.start(header("float32"))
            add(writer, f"/x/{name}", count=count)
    assert compact(tmp_path) == Compacted(3, 2, [])
    with open_archive(tmp_path) as archive:
        media = {medium.path: medium for medium in archive.each_medium()}
        assert {path: medium.part for path, medium in media.items()} == {
            "/x/a": 1,
            "/x/b": 6,
            "/x/c": 6,
            "/x/d": 7,
            "/x/e": 5,
        }
        times = [time for _, times in archive.features(media["/x/b"]) for time in times]
        assert times == [0.5, 1.5, 2.5, 3.5]
    assert not any(files_of(tmp_path, number) for number in (2, 3, 4))


def test_compaction_takes_out_what_is_damaged_and_says_so(tmp_path: Path) -> None:
    for name in "abc":
        make(tmp_path, f"/x/{name}")
    (tmp_path / "media" / PART).write_bytes(b"noise")
    features = tmp_path / "features" / "part-000002.parquet"
    features.write_bytes(features.read_bytes()[:-9])
    compacted = compact(tmp_path)
    assert (compacted.before, compacted.after) == (3, 1)
    assert [(item.part, item.file) for item in compacted.lost] == [
        (1, "media/part-000001.parquet"), (2, "features/part-000002.parquet"),
    ]  # fmt: skip
    assert paths(tmp_path) == ["/x/c"]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["part-000004.parquet"]


def test_compaction_takes_dead_rows_out_of_large_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float32"))
        add(writer, "/x/a")
        writer.add_frames(writer.begin(), frames(2, 1))  # never finished
    assert compact(tmp_path) == Compacted(1, 1, [])
    assert pq.read_metadata(tmp_path / part_name(2, "frames")).num_rows == 3
    monkeypatch.setattr(compact_module, "SMALL_ROWS", 0)
    make(tmp_path, "/x/b", "/x/c")
    make(tmp_path, "/x/c")
    assert compact(tmp_path) == Compacted(1, 1, [])  # the part with the older row of c alone
    with open_archive(tmp_path) as archive:
        assert {medium.path: medium.part for medium in archive.each_medium()} == {"/x/a": 2, "/x/b": 5, "/x/c": 4}


def test_compaction_of_nothing_that_lives_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float32"))
        writer.drop(["/x/a"])
    assert compact(tmp_path) == Compacted(2, 0, [])
    assert not list(tmp_path.rglob("part-*"))
    assert compact(tmp_path) == Compacted(0, 0, [])


def test_compaction_ends_where_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "/x/a")
    make(tmp_path, "/x/b")
    before = sorted(tmp_path.rglob("part-*"))
    real = pq.ParquetFile

    def refuse(path: Any, **options: Any) -> Any:
        if "features" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(OutputError, match=f"^cannot compact the archive '{tmp_path}': .*Permission denied"):
        compact(tmp_path)
    assert sorted(tmp_path.rglob("part-*")) == before
    monkeypatch.setattr(pq, "ParquetFile", lambda path, **options: refuse(f"{path} features"))
    with pytest.raises(OutputError, match=r"media/part-000001\.parquet: .*Permission denied"):
        compact(tmp_path)


def test_a_part_grows_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        add(writer, "/x/a")
        now[0] = 159.9
        add(writer, "/x/b")
        assert part_numbers(tmp_path, "media") == []
        now[0] = 160.0
        add(writer, "/x/c")
        assert part_numbers(tmp_path, "media") == [1]
    assert json.loads((tmp_path / "archive.json").read_text())["format_version"] == 2


def test_frames_without_embeddings_are_nulls(tmp_path: Path) -> None:
    bare = replace(header(), shapes=replace(SHAPES, clip=None))
    with open_for_writing(tmp_path) as writer:
        writer.start(bare)
        medium = writer.begin()
        writer.add_frames(medium, FrameRows(**{**vars(frames(2, 0)), "clip": None}))
        writer.finish(medium, {"path": "/x", "file_name": "x", "media": "image", "status": "ok", "frames": 2})
    assert pq.read_table(tmp_path / "frames")["clip"].to_pylist() == [None, None]
    assert not (tmp_path / "vectors").exists()
    with open_archive(tmp_path) as archive:
        assert archive.mean_vector().shape == (0,)
    with open_for_writing(tmp_path) as writer:
        writer.start(bare)
        writer.drop(["/x"])
    assert compact(tmp_path) == Compacted(2, 0, [])
