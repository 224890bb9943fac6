"""Archives of strangers: a header or a table that is not as it is written is damage, in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_formats_archive import make

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.layout import HEADER, ArchiveHeader, part_name, part_numbers
from llava_mini_cli.formats.archive.reader import Archive, open_archive
from llava_mini_cli.pipelines.archive_media import sampling_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive of two parts."""
    for name in ("a", "b"):
        make(tmp_path / "x", f"/x/{name}")
    return tmp_path / "x"


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no version": lambda header: header.pop("format_version"),
    "a model that is a list": lambda header: header.update(model=[]),
    "a model with a NUL byte": lambda header: header.update(model="a\0b"),
    "a model that no name can be": lambda header: header.update(model="\ud800"),
    "a revision that is a number": lambda header: header.update(model_revision=7),
    "features that are a list": lambda header: header.update(features=["int8"]),
    "features of another kind": lambda header: header.update(features="float8"),
    "shapes that are a list": lambda header: header.update(shapes=[]),
    "a width of 2^40": lambda header: header["shapes"].update(clip=1 << 40),
    "a width below one": lambda header: header["shapes"].update(clip=0),
    "a width that is true": lambda header: header["shapes"].update(clip=True),
    "a width that is a text": lambda header: header["shapes"].update(token=["1", 8]),
    "two features": lambda header: header["shapes"].update(features=[1, 2]),
    "settings that are a text": lambda header: header.update(settings="fps"),
    "a setting that is a list": lambda header: header["settings"].update(fps=[1]),
    "a setting that is a text": lambda header: header["settings"].update(fps="1"),
    "a setting that is true": lambda header: header["settings"].update(start=True),
    "a setting that is infinite": lambda header: header["settings"].update(other=1e999),
    "half a frame": lambda header: header["settings"].update(max_frames=0.5),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_other_types_is_damaged(name: str, folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    HEADERS[name](header)
    (folder / HEADER).write_text(json.dumps(header))
    with pytest.raises(
        ArchiveError, match=r"is damaged|has format version None|cannot be read: Infinity is no number$"
    ):
        ArchiveHeader.read(folder)


def test_a_header_without_end(folder: Path) -> None:
    for text, why in (("[" * 100_000, "lists or objects too deep"), (" " * (1 << 20) + "{}", "larger than 1 MiB")):
        (folder / HEADER).write_text(text)
        with pytest.raises(ArchiveError, match=f"cannot be read: {why}"):
            ArchiveHeader.read(folder)
    (folder / HEADER).unlink()
    os.mkfifo(folder / HEADER)
    with pytest.raises(ArchiveError, match=r"cannot be read: .*not a regular file"):
        ArchiveHeader.read(folder)


def changed(folder: Path, table: str, column: str, values: pa.Array | None) -> Path:
    """Puts other values into a column of the first part, or takes it away."""
    path = folder / part_name(1, table)
    found = pq.read_table(path)
    place = found.schema.get_field_index(column)
    pq.write_table(found.remove_column(place) if values is None else found.set_column(place, column, values), path)
    return path


MEDIA: dict[str, tuple[str, pa.Array | None, str]] = {
    "no path": ("path", None, "no column 'path' of the type string"),
    "a path that is null": ("path", pa.array([None], pa.string()), "a row without 'path'"),
    "a path that is a number": ("path", pa.array([1]), "no column 'path' of the type string"),
    "a path that is no UTF-8": (
        "path", pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
        "Invalid UTF8",
    ),
    "a number that is a text": ("medium", pa.array(["1"]), "no column 'medium' of the type int64"),
    "a number that is null": ("medium", pa.array([None], pa.int64()), "a row without 'medium'"),
    "fewer than no frames": ("frames", pa.array([-1]), "a medium without a number of frames"),
    "no number of frames": ("frames", pa.array([None], pa.int64()), "a medium without a number of frames"),
    "a time of another type": ("mtime", pa.array([7]), "no column 'mtime' of the type timestamp"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEDIA)
def test_media_of_other_types_are_damage_of_their_part_alone(name: str, folder: Path) -> None:
    column, values, why = MEDIA[name]
    changed(folder, "media", column, values)
    with open_archive(folder) as archive:
        assert [medium.path for medium in archive.each_medium()] == ["/x/b"]
        ((part, file, message),) = ((each.part, each.file, each.message) for each in archive.damage)
    assert (part, file) == (1, "media/part-000001.parquet")
    assert why in message


def captions(archive: Archive) -> object:
    return archive.captions(archive.medium(0))


def features(archive: Archive) -> object:
    return list(archive.features(archive.medium(0)))


def vectors(archive: Archive) -> object:
    return list(archive.vectors(1))


ROWS: dict[str, tuple[str, str, pa.Array | None, Callable[[Archive], object]]] = {
    "a time that is none": ("frames", "time", pa.array([0.5, np.nan, 1.5]), lambda archive: archive.frames(1)),
    "a time that is null": ("frames", "time", pa.array([0.5, None, 1.5]), lambda archive: archive.frames(1)),
    "a medium that is a text": ("frames", "medium", pa.array(["1"] * 3), lambda archive: archive.frames(1)),
    "vectors of another width": ("frames", "clip", pa.array([[0.0] * 3] * 3, pa.list_(pa.float16(), 3)), vectors),
    "a caption without an end": ("captions", "end", pa.array([None], pa.float64()), captions),
    "captions without a text": ("captions", "text", None, captions),
    "features of another width": ("features", "features", pa.array([b"x"] * 3, pa.binary(1)), features),
    "no features": ("features", "features", None, features),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_frames_and_captions_of_other_types_are_damage(name: str, folder: Path) -> None:
    table, column, values, read = ROWS[name]
    changed(folder, table, column, values)
    with open_archive(folder) as archive, pytest.raises(ArchiveError, match=f"^{table}/part-000001"):
        read(archive)


def test_a_mean_that_is_none(folder: Path) -> None:
    path = folder / part_name(1, "frames")
    table = pq.read_table(path)
    for text in (b"!", b"AAAA", b"AAAAAAAAAAA="):
        pq.write_table(table.replace_schema_metadata({b"llava_mini.clip_sum": text}), path)
        with open_archive(folder) as archive, pytest.raises(ArchiveError, match=r"^frames/part-000001"):
            archive.mean_vector()


def test_fewer_vectors_than_rows(folder: Path) -> None:
    (folder / part_name(1, "vectors")).unlink()
    with open_archive(folder) as archive:
        assert archive.vector_rows(1, np.array([2], np.int32)).shape == (1, 4)
        with pytest.raises(ArchiveError, match=r"^frames/part-000001"):
            archive.vector_rows(1, np.array([3], np.int32))


def test_a_name_of_a_column_that_is_no_text(folder: Path) -> None:
    path = folder / part_name(1, "media")
    path.write_bytes(path.read_bytes().replace(b"path", b"pa\xf4h"))
    with open_archive(folder) as archive:
        assert [medium.path for medium in archive.each_medium()] == ["/x/b"]
        assert [each.part for each in archive.damage] == [1]


@pytest.mark.parametrize("settings", [{}, {"fps": None}])
def test_a_header_that_does_not_tell_how_media_were_sampled(settings: dict[str, object], folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps({**header, "settings": settings}))
    with open_archive(folder) as archive, pytest.raises(ArchiveError, match="does not tell how its media were sampled"):
        sampling_of(archive, SamplingOptions())


@pytest.mark.parametrize("table", ["media", "frames"])
def test_a_pipe_in_place_of_a_part(table: str, folder: Path) -> None:
    path = folder / part_name(1, table)
    path.unlink()
    os.mkfifo(path)
    with open_archive(folder) as archive:
        assert [medium.path for medium in archive.each_medium()] == ["/x/b"]
        assert [(each.file, each.message) for each in archive.damage] == [
            (f"{table}/part-000001.parquet", "not a regular file")
        ]


def test_only_numbers_that_64_bits_hold_are_parts(folder: Path) -> None:
    for name in ("part-" + "9" * 200, "part-٣", "part-", "part-1x", "part--1"):
        (folder / "media" / f"{name}.parquet").touch()
    assert part_numbers(folder, "media") == [1, 2]
