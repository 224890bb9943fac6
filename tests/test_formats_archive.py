"""The archive on disk: parts that appear whole, one writer, any readers, rows of one file at a time. No model."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_mini_cli.errors import ArchiveError, OutputLocked, UsageError
from llava_mini_cli.formats.archive.compact import Compacted, compact
from llava_mini_cli.formats.archive.layout import HEADER, ArchiveHeader, FeatureKind, Shapes, files_of
from llava_mini_cli.formats.archive.manifest import MANIFEST
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.quantized import from_int8, to_int8
from llava_mini_cli.formats.archive.reader import Archive, StoredMedium, open_archive
from llava_mini_cli.formats.archive.writer import ArchiveWriter, open_for_writing

SHAPES = Shapes(token=(1, 8), clip=4, features=(1, 9, 6))


def header(features: FeatureKind | None = None, digest: str = "abc", **settings: float | str | None) -> ArchiveHeader:
    return ArchiveHeader("demo", None, digest, SHAPES, features, {"fps": 1.0, **settings})


def frames(count: int, seed: int) -> FrameRows:
    generator = np.random.default_rng(seed)
    clip = generator.standard_normal((count, 4))
    return FrameRows(
        frame=np.arange(count, dtype=np.int32),
        time=np.arange(count) + 0.5,
        last_time=np.arange(count) + 0.5,
        stands_for=np.ones(count, np.int32),
        tokens=generator.standard_normal((count, 1, 8)).astype(np.float16),
        clip=(clip / np.linalg.norm(clip, axis=1, keepdims=True)).astype(np.float16),
        features=generator.standard_normal((count, 1, 9, 6)).astype(np.float32),
    )


def add(writer: ArchiveWriter, path: str, count: int = 3, seed: int = 0, mtime: int = 7) -> int:
    medium = writer.begin()
    writer.add_frames(medium, frames(count, seed))
    row = {"path": path, "file_name": Path(path).name, "size": 5, "mtime": mtime, "media": "video", "status": "ok"}
    info = {"duration_s": float(count), "width": 64, "height": 48, "frames": count, "frames_sampled": count}
    writer.finish(medium, {**row, **info, "fps_sampled": 1.0}, [{"start": 0.0, "end": 1.0, "text": f"of {path}"}])
    return medium


def make(folder: Path, *paths: str, features: FeatureKind | None = "float32", seed: int = 0) -> None:
    with open_for_writing(folder) as writer:
        writer.start(header(features))
        for path in paths:
            add(writer, path, seed=seed)


def as_format_1(folder: Path) -> Path:
    """The same archive as the first versions wrote it, or as a stranger may: nothing says what its files were."""
    (folder / MANIFEST).unlink()
    written = json.loads((folder / HEADER).read_text())
    del written["checksum"]
    (folder / HEADER).write_text(json.dumps({**written, "format_version": 1}))
    return folder


def media(folder: Path) -> list[StoredMedium]:
    with open_archive(folder) as archive:
        return list(archive.each_medium())


def paths(folder: Path) -> list[str]:
    return [medium.path for medium in media(folder)]


def vectors(archive: Archive, part: int) -> np.ndarray:
    return np.concatenate(list(archive.vectors(part)))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of the tables with its inode and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("part-*")
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    make(tmp_path / "a", "/x/one.mp4", "/x/two.mp4")
    with open_archive(tmp_path / "a") as archive:
        one, two = archive.each_medium()
        assert (one.path, one.mtime_ns, one.frames, two.path) == ("/x/one.mp4", 7, 3, "/x/two.mp4")
        columns = archive.frames(one.part)
        assert columns.medium.tolist() == [one.number] * 3 + [two.number] * 3
        assert columns.time.tolist() == [0.5, 1.5, 2.5] * 2
        expected = frames(3, 0)
        assert expected.clip is not None
        assert vectors(archive, one.part)[:3].tolist() == expected.clip.tolist()
        file = archive.vector_file(one.part, 6)
        assert file is not None
        assert np.fromfile(file, "<f2").reshape(6, 4)[3:].tolist() == expected.clip.tolist()
        np.testing.assert_allclose(archive.mean_vector(), expected.clip.astype(np.float32).mean(0), atol=1e-3)
        (features, times), *rest = archive.features(two)
        assert not rest
        assert times.tolist() == [0.5, 1.5, 2.5]
        np.testing.assert_array_equal(features, expected.features)
        assert [caption["text"] for caption in archive.captions(two)] == ["of /x/two.mp4"]


def test_other_tools_read_it(tmp_path: Path) -> None:
    make(tmp_path, "/x/one.mp4")
    table = pq.read_table(tmp_path / "frames")
    assert [(name, str(table.schema.field(name).type)) for name in ("token", "clip")] == [
        ("token", "fixed_size_list<element: halffloat>[8]"),
        ("clip", "fixed_size_list<element: halffloat>[4]"),
    ]
    assert pq.read_table(tmp_path / "media").column_names[:5] == ["medium", "path", "file_name", "size", "mtime"]
    written = json.loads((tmp_path / "archive.json").read_text())
    assert (written["model"], written["settings"]["fps"]) == ("demo", 1.0)


@pytest.mark.parametrize(("kind", "atol"), [("float32", 0.0), ("float16", 2e-3), ("int8", 0.02)])
def test_features_come_back_as_exact_as_they_are_stored(tmp_path: Path, kind: FeatureKind, atol: float) -> None:
    with open_for_writing(tmp_path) as writer:
        writer.start(header(kind))
        rows = frames(70, 3)
        assert rows.features is not None
        stored = rows.features.astype(np.float16) if kind == "float16" else rows.features
        medium = writer.begin()
        writer.add_frames(medium, FrameRows(**{**vars(rows), "features": stored}))
        writer.finish(medium, {"path": "/x", "file_name": "x", "status": "ok", "media": "video", "frames": 70})
    with open_archive(tmp_path) as archive:
        chunks = list(archive.features(archive.medium(0)))
        assert len(chunks) > 1
        read = np.concatenate([features for features, _ in chunks]).astype(np.float32)
    np.testing.assert_allclose(read, rows.features, atol=atol, rtol=0)


@example([0.0, 0.0, 0.0, 0.0, 0.0, 6.09144442441998e-42])
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6))
def test_int8_is_off_by_half_a_step_at_most(values: list[float]) -> None:
    features = np.array(values, np.float32).reshape(1, 1, 3, 2)
    quantized, scales = to_int8(features)
    off = np.abs(from_int8(quantized, scales) - features)
    assert (off <= scales[:, :, None] * 0.501).all()


def test_adding_one_file_to_a_thousand_touches_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, *(f"/x/{number:04d}.jpg" for number in range(1000)), features=None)
    before = state(tmp_path)
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        assert writer.holds(("/x/0007.jpg", 5, 7))
        assert not writer.holds(("/x/0007.jpg", 5, 8))
        add(writer, "/x/new.jpg")
    after = state(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    assert len(media(tmp_path)) == 1001


def test_a_changed_file_is_replaced_and_a_dropped_one_is_gone(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", "/x/b", "/x/c")
    before = state(tmp_path)
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float32"))
        add(writer, "/x/b", count=5, mtime=9)
        writer.drop(["/x/c"])
    assert {name: found for name, found in state(tmp_path).items() if name in before} == before
    assert [(medium.path, medium.frames, medium.mtime_ns) for medium in media(tmp_path)] == [
        ("/x/a", 3, 7),
        ("/x/b", 5, 9),
    ]


def test_failed_media_are_remembered_and_tried_again_on_request(tmp_path: Path) -> None:
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        writer.finish(writer.begin(), {"path": "/x", "file_name": "x", "size": 1, "mtime": 2, "status": "error"})
    with open_for_writing(tmp_path) as writer:
        assert writer.holds(("/x", 1, 2))
        assert not writer.holds(("/x", 1, 2), retry_errors=True)
    assert media(tmp_path) == []


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float32"))
        add(writer, "/x/whole")
        writer.add_frames(writer.begin(), frames(2, 1))
    assert paths(tmp_path) == ["/x/whole"]


def test_left_overs_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    (tmp_path / "frames" / ".part-000002.parquet.tmp").write_bytes(b"half")
    (tmp_path / "frames" / "part-000002.parquet").write_bytes(
        (tmp_path / "frames" / "part-000001.parquet").read_bytes()
    )
    assert paths(tmp_path) == ["/x/a"]
    make(tmp_path, "/x/b")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [
        "part-000001.parquet",
        "part-000002.parquet",
    ]
    assert paths(tmp_path) == ["/x/a", "/x/b"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_writer_and_any_readers(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    with open_for_writing(tmp_path) as writer:
        writer.start(header("float32"))
        with pytest.raises(OutputLocked), open_for_writing(tmp_path):
            pass
        add(writer, "/x/b")
        with open_archive(tmp_path) as one, open_archive(tmp_path) as other:
            assert len(one.media) == len(other.media) == 1
    assert paths(tmp_path) == ["/x/a", "/x/b"]


def test_another_model_or_setting_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "/x/a", features=None)
    for other, words in [
        (header(digest="def"), "was made with the model 'demo' (abc)"),
        (header(fps=2.0), "--fps 2 (the archive has 1)"),
        (header("int8"), "--features-dtype int8 (the archive has none)"),
    ]:
        with pytest.raises(UsageError) as refused, open_for_writing(tmp_path) as writer:
            writer.start(other)
        assert words in str(refused.value)


def test_a_folder_with_other_things_is_not_made_an_archive(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="holds other things"), open_for_writing(tmp_path):
        pass
    with pytest.raises(UsageError, match="no archive"), open_archive(tmp_path):
        pass


@pytest.fixture
def two_parts(tmp_path: Path) -> Path:
    make(tmp_path, "/x/a", "/x/b")
    make(tmp_path, "/x/c")
    return tmp_path


@pytest.mark.parametrize("table", ["media", "frames"])
@pytest.mark.parametrize("harm", ["cut", "noise", "gone"])
def test_a_damaged_part_is_named_and_the_rest_is_read(two_parts: Path, table: str, harm: str) -> None:
    victim = two_parts / table / "part-000001.parquet"
    data = victim.read_bytes()
    victim.unlink()
    if harm == "cut":
        victim.write_bytes(data[: len(data) // 2])
    elif harm == "noise":
        victim.write_bytes(os.urandom(len(data)))
    with open_archive(two_parts) as archive:
        assert [item.file for item in archive.damage] == [f"{table}/part-000001.parquet"]
        assert [medium.path for medium in archive.each_medium()] == ["/x/c"]
    with open_for_writing(two_parts) as writer:  # what is lost is indexed again
        writer.start(header("float32"))
        assert not writer.holds(("/x/a", 5, 7))
        add(writer, "/x/a")
    assert paths(two_parts) == ["/x/c", "/x/a"]


def test_a_flipped_bit_is_told(two_parts: Path) -> None:
    with open_archive(two_parts) as archive:
        part = archive.parts[0]
        victim = two_parts / "frames" / "part-000001.parquet"
        data = bytearray(victim.read_bytes())
        group = pq.read_metadata(victim).row_group(0)
        columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
        clip = columns["clip.list.element"]
        data[clip.data_page_offset + clip.total_compressed_size - 3] ^= 4
        victim.write_bytes(data)
        with pytest.raises(ArchiveError, match="part-000001"):
            list(archive.vectors(part))


def test_a_missing_vector_file_is_no_loss(two_parts: Path) -> None:
    (two_parts / "vectors" / "part-000001.f16").unlink()
    with open_archive(two_parts) as archive:
        assert archive.vector_file(1, 6) is None
        assert vectors(archive, 1).shape == (6, 4)
        assert [each.file for each in archive.damage] == ["vectors/part-000001.f16"]
        assert len(archive.media) == 3
    assert compact(two_parts) == Compacted(2, 1, [])  # nothing is lost, and the file is there again
    with open_archive(two_parts) as archive:
        assert (archive.damage, archive.vector_file(3, 9) is None) == ([], False)


def test_compaction_keeps_what_lives(two_parts: Path) -> None:
    with open_for_writing(two_parts) as writer:
        writer.start(header("float32"))
        add(writer, "/x/b", count=4, seed=9, mtime=8)
        writer.drop(["/x/c"])
    with open_archive(two_parts) as archive:
        expected = {medium.path: next(archive.features(medium))[0] for medium in archive.each_medium()}
    assert compact(two_parts) == Compacted(3, 1, [])
    assert sorted(paths(two_parts)) == ["/x/a", "/x/b"]
    with open_archive(two_parts) as archive:
        assert archive.parts == [4]
        assert pq.read_metadata(two_parts / "frames" / "part-000004.parquet").num_rows == 7
        for medium in archive.each_medium():
            np.testing.assert_array_equal(next(archive.features(medium))[0], expected[medium.path])
            assert [caption["text"] for caption in archive.captions(medium)] == [f"of {medium.path}"]
        file = archive.vector_file(4, 7)
        assert file is not None
        assert np.fromfile(file, "<f2").reshape(7, 4).tolist() == vectors(archive, 4).tolist()
    assert compact(two_parts) == Compacted(0, 0, [])
    with open_for_writing(two_parts) as writer:
        assert set(writer.known) == {"/x/a", "/x/b"}


def test_compaction_that_was_cut_short_shows_nothing_twice(two_parts: Path) -> None:
    kept = {path: path.read_bytes() for number in (1, 2) for path in files_of(two_parts, number)}
    compact(two_parts)
    for path, data in kept.items():
        path.write_bytes(data)
    assert paths(two_parts) == ["/x/a", "/x/b", "/x/c"]
    with open_archive(two_parts) as archive:
        assert archive.parts == [3]
    make(two_parts, "/x/d")
    assert not any(path.exists() for path in kept)


def test_compaction_leaves_readers_their_files(two_parts: Path) -> None:
    with open_archive(two_parts) as archive:
        assert compact(two_parts) == Compacted(2, 1, [])
        assert (archive.parts, len(archive.frames(1).time)) == ([1, 2], 6)
        with open_archive(two_parts) as other:
            assert other.parts == [3]
    assert compact(two_parts) == Compacted(0, 0, [])  # now nobody reads them
    assert not files_of(two_parts, 1)


@pytest.fixture
def read_only(two_parts: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        for path in [two_parts, *two_parts.rglob("*")]:
            stack.callback(path.chmod, path.stat().st_mode)
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield two_parts


def test_an_archive_on_a_read_only_disk_is_read(read_only: Path) -> None:
    assert len(paths(read_only)) == 3
