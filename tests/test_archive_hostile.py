"""Archives of strangers: a header or a table that is not as it is written is damage, in one line."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_steps import SCANNER
from test_formats_archive import as_format_1, header, make

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.compact import compact
from llava_mini_cli.formats.archive.layout import (
    HEADER,
    ArchiveHeader,
    Shapes,
    frame_schema,
    media_schema,
    part_name,
    part_numbers,
)
from llava_mini_cli.formats.archive.manifest import MANIFEST
from llava_mini_cli.formats.archive.reader import Archive, open_archive
from llava_mini_cli.formats.archive.writer import open_for_writing
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.pipelines.archive_media import StoredMedia, sampling_of
from llava_mini_cli.pipelines.search_archive import SearchOptions, search


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive of two parts, whose files are checked by nothing but what they hold."""
    for name in ("a", "b"):
        make(tmp_path / "x", f"/x/{name}")
    return as_format_1(tmp_path / "x")


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
    "fewer than no frames": ("frames", pa.array([-1]), "'frames' that is none"),
    "no number of frames": ("frames", pa.array([None], pa.int64()), "a row without 'frames'"),
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


# What a stranger puts into a table, and in which file of it that is damage.


def texts(value: str | None) -> pa.Array:
    return pa.array([value], pa.string())


LIST = pa.array([["/x/a"]], pa.list_(pa.string()))
STRANGE: dict[str, tuple[str, str, pa.Array | None]] = {
    "a name that is null": ("media", "file_name", texts(None)),
    "a NUL byte in a path": ("media", "path", texts("/x/\0a")),
    "a NUL byte in a name": ("media", "file_name", texts("a\0")),
    "no name": ("media", "file_name", None),
    "no kind of medium": ("media", "media", None),
    "a kind that is null": ("media", "media", texts(None)),
    "a kind of no medium": ("media", "media", texts("sound")),
    "a status of its own": ("media", "status", texts("well")),
    "a status that is a list": ("media", "status", LIST),
    "a path that is a list": ("media", "path", LIST),
    "large texts": ("media", "path", pa.array(["/x/a"], pa.large_string())),
    "a duration without end": ("media", "duration_s", pa.array([np.inf])),
    "a duration of 1e308": ("media", "duration_s", pa.array([1e308])),
    "a duration below nothing": ("media", "duration_s", pa.array([-1.0])),
    "no frames a second": ("media", "fps_sampled", pa.array([np.nan])),
    "a width of the largest number": ("media", "width", pa.array([2**31 - 1], pa.int32())),
    "frames of a medium below nothing": ("frames", "medium", pa.array([-(2**63)] * 3)),
    "a number below nothing": ("media", "medium", pa.array([-1])),
    "the largest number": ("media", "medium", pa.array([2**63 - 1])),
    "a time of 1e308": ("frames", "time", pa.array([0.5, 1e308, 1.5])),
    "a last time without end": ("frames", "last_time", pa.array([0.5, 1.0, np.inf])),
    "tokens of another width": ("frames", "token", pa.array([[0.0]] * 3, pa.list_(pa.float16(), 1))),
    "tokens of another type": ("frames", "token", pa.array([[0.0] * 8] * 3, pa.list_(pa.float32(), 8))),
    "a caption of 1e308": ("captions", "start", pa.array([1e308])),
    "a caption that is no text": ("captions", "text", pa.array([b"x"])),
    "features at 1e308": ("features", "time", pa.array([1e308] * 3)),
    "a time of features that is null": ("features", "time", pa.array([0.5, None, 1.5])),
    "features as texts": ("features", "features", pa.array(["x"] * 3)),
}  # fmt: skip


def everything(folder: Path) -> set[str]:
    """The files that are named when all of an archive is read."""
    named: set[str] = set()
    with open_archive(folder) as archive:
        found = search(archive, np.full(4, 0.5, np.float32), SearchOptions(10), SCANNER)
        stored = StoredMedia(archive, lambda *_, **__: None)  # pyright: ignore
        for job in (*stored.jobs((Prompt("?"),)), *stored.moment_jobs(Prompt("?"), found)):
            stored.find_fault(job)
        for medium in archive.each_medium():
            try:
                list(archive.features(medium))
                archive.embeddings(medium)
                archive.captions(medium)
            except ArchiveError as error:
                named.add(str(error).partition(": ")[0])
        return named | {each.file for each in archive.damage}


@pytest.mark.parametrize("name", STRANGE)
def test_what_cannot_be_is_damage_of_its_file(name: str, folder: Path) -> None:
    table, column, values = STRANGE[name]
    changed(folder, table, column, values)
    assert everything(folder) == {f"{table}/part-000001.parquet"}
    with open_for_writing(folder) as writer:  # also for whoever writes
        writer.start(header("float32"))
    compact(folder)
    assert everything(folder) <= {f"{table}/part-000001.parquet"}


def test_a_column_that_is_there_twice(folder: Path) -> None:
    for table in ("media", "frames", "features", "captions"):
        path = folder / part_name(1, table)
        there = pq.read_table(path)
        pq.write_table(there.append_column(there.schema.field(0), there.column(0)), path)
    assert everything(folder) == {"media/part-000001.parquet"}


@pytest.mark.parametrize("table", ["features", "captions", "vectors"])
def test_a_pipe_or_a_folder_in_place_of_another_table(table: str, folder: Path) -> None:
    path = folder / part_name(1, table)
    for make_there in (os.mkfifo, os.mkdir):
        path.rmdir() if path.is_dir() else path.unlink()
        make_there(path)
        assert everything(folder) == {f"{table}/{path.name}"}


def few_texts(folder: Path) -> None:
    """A text of which there are very many, and one that is long."""
    rows = pq.read_table(folder / part_name(1, "media")).to_pylist() * 4096
    rows = [row | {"medium": number, "path": f"/x/{number}"} for number, row in enumerate(rows)]
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), ["x" * (1 << 20)])
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "error"}
    table = pa.table({"error": same} | columns)
    types = {field.name: field.type for field in media_schema()}
    fields = [pa.field(name, same.type if name == "error" else types[name]) for name in table.column_names]
    pq.write_table(table.cast(pa.schema(fields)), folder / part_name(1, "media"), store_schema=False)


def zeros(folder: Path) -> None:
    """4 GB of embeddings, as they would be stored for a hundredth of the rows."""
    schema = frame_schema(Shapes((1, 8), 4, (1, 9, 6)))
    wide = pa.list_(pa.float16(), 1 << 16)
    fields = [field if field.name != "clip" else pa.field("clip", wide) for field in schema]
    rows = pq.read_table(folder / part_name(1, "frames"))
    clip = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3 << 16, np.float16)), 1 << 16)
    with pq.ParquetWriter(folder / part_name(1, "frames"), pa.schema(fields), compression="zstd") as file:
        for _ in range(20):
            file.write_table(rows.set_column(rows.schema.get_field_index("clip"), "clip", clip))


@pytest.mark.parametrize(("bomb", "table"), [(few_texts, "media"), (zeros, "frames")])
def test_what_unpacks_to_more_than_its_rows_need_is_not_unpacked(
    bomb: Callable[[Path], None], table: str, folder: Path
) -> None:
    bomb(folder)
    assert (folder / part_name(1, table)).stat().st_size < 4 << 20
    gc.collect()
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    assert everything(folder) == {f"{table}/part-000001.parquet"}
    assert (pool.max_memory() or 0) - before < 1 << 30


def manifest_of_strangers() -> dict[str, str]:
    facts = {"media": [1, 2]}
    return {
        "nothing": "", "a list": "[]", "no parts": '{"last": 1}', "parts that are a list": '{"last": 1, "parts": []}',
        "a part without a number": '{"last": 1, "parts": {"a": null}}', "no last": '{"parts": {}}',
        "a part below nothing": '{"last": 1, "parts": {"-1": null}}', "nested": '{"parts":' * 100_000,
        "a last that is a text": '{"last": "1", "parts": {}}',
        "a number of 100 digits": json.dumps({"last": 10**100, "parts": {}}),
        "facts that are a list": json.dumps({"last": 1, "parts": {"1": [facts]}}),
        "a size that is a text": json.dumps({"last": 1, "parts": {"1": {"media": ["1", 2]}}}),
        "another table": json.dumps({"last": 1, "parts": {"1": {"../x": [1, 2]}}}),
    }  # fmt: skip


@pytest.mark.parametrize("name", manifest_of_strangers())
def test_a_manifest_that_is_none_is_named_and_each_part_counts(name: str, tmp_path: Path) -> None:
    for path in ("/x/a", "/x/b"):
        make(tmp_path, path)
    (tmp_path / MANIFEST).write_text(manifest_of_strangers()[name])
    with open_archive(tmp_path) as archive:
        ((part, file),) = ((each.part, each.file) for each in archive.damage)
        assert (part, file, archive.parts) == (0, MANIFEST, [1, 2])
    with open_for_writing(tmp_path) as writer:
        assert [each.file for each in writer.damage] == [MANIFEST]
    assert everything(tmp_path) == set()


def test_a_manifest_that_names_what_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    facts = json.loads((tmp_path / MANIFEST).read_text())["parts"]["1"]
    (tmp_path / MANIFEST).write_text(json.dumps({"last": 1, "parts": {"1": facts, "9": facts}}))
    assert everything(tmp_path) == {part_name(9, table) for table in facts}
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    assert everything(tmp_path) == {MANIFEST}
