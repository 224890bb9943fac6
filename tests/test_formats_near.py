"""The approximate index: the media of the nearest frames, what is measured of it, and an index that is damaged."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_formats_archive import add, frames, header, make

from llava_mini_cli.errors import ArchiveError, OutputError, OutputLocked, UsageError
from llava_mini_cli.formats.archive import near
from llava_mini_cli.formats.archive.compact import compact
from llava_mini_cli.formats.archive.layout import Shapes
from llava_mini_cli.formats.archive.locks import writing
from llava_mini_cli.formats.archive.near import NearFacts, build, nearest
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.writer import open_for_writing

Change = Callable[[Path], object]  # of an index's folder
COUNTS = {"/x/a": 30, "/x/b": 50, "/x/c": 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 frames in two parts, two of their media in the first."""
    for part in (["/x/a", "/x/b"], ["/x/c"]):
        with open_for_writing(tmp_path) as writer:
            writer.start(header())
            for path in part:
                add(writer, path, count=COUNTS[path], seed=COUNTS[path])
    return tmp_path


def built(folder: Path) -> NearFacts:
    with open_archive(folder) as archive:
        return build(archive)


def clip(path: str) -> NDArray[np.float32]:
    vectors = frames(COUNTS[path], COUNTS[path]).clip
    assert vectors is not None
    return vectors.astype(np.float32)


def test_the_media_of_the_nearest_frames_with_all_their_frames(folder: Path) -> None:
    facts = built(folder)
    assert facts == NearFacts.read(folder)
    assert (facts.parts, facts.rows, facts.cells, facts.probes) == ([1, 2], 100, 2, 2)
    assert 0.97 < facts.recall <= 1.0  # the index rounds
    with open_archive(folder) as archive:
        assert facts.mean == archive.mean_vector().tolist()
    for path, part, medium, first in [("/x/a", 1, 1, 0), ("/x/b", 1, 2, 30), ("/x/c", 2, 3, 0)]:
        found, stretches = nearest(folder, clip(path)[7], 1)
        assert found == facts
        (stretch,) = stretches
        assert (stretch.part, stretch.medium) == (part, medium)
        assert stretch.rows.tolist() == list(range(first, first + COUNTS[path]))
        assert stretch.time.tolist() == stretch.last_time.tolist() == [n + 0.5 for n in range(COUNTS[path])]


def test_each_medium_comes_once_the_nearest_first(folder: Path) -> None:
    built(folder)
    query = clip("/x/c")[3]
    scores = {path: float((clip(path) @ query).max()) for path in COUNTS}
    expected = [number for _, number in sorted(zip(scores.values(), (1, 2, 3), strict=True), reverse=True)]
    _, stretches = nearest(folder, query, 500)  # more than there are
    assert [stretch.medium for stretch in stretches] == expected


def test_one_frame_is_one_cell_and_none_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "one", "/x/a", features=None)
    facts = built(tmp_path / "one")
    assert (facts.rows, facts.cells, facts.probes) == (3, 1, 1)
    with open_for_writing(tmp_path / "none") as writer:
        writer.start(header())
        writer.finish(writer.begin(), {"path": "/x", "status": "error", "error": "bad"})
    with pytest.raises(UsageError, match="holds no embeddings to index"):
        built(tmp_path / "none")


def test_an_archive_without_embeddings_is_refused(tmp_path: Path) -> None:
    shapes = Shapes(token=(1, 8), clip=None, features=(1, 9, 6))
    with open_for_writing(tmp_path) as writer:
        bare = header()
        writer.start(type(bare)(**{**vars(bare), "shapes": shapes}))
        medium = writer.begin()
        writer.add_frames(medium, FrameRows(**{**vars(frames(3, 0)), "clip": None}))
        writer.finish(medium, {"path": "/x", "file_name": "x", "status": "ok", "media": "image", "frames": 3})
    with pytest.raises(UsageError, match="holds no embeddings to index"):
        built(tmp_path)


def test_probes_double_until_enough_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "TRAINED_ON", 5)  # 20 cells
    monkeypatch.setattr(near, "LEAST_PROBES", 1)
    facts = built(folder)
    assert facts.cells == 20
    assert facts.probes in (2, 4, 8, 16, 20)
    assert facts.recall >= 0.98
    monkeypatch.setattr(near, "WANTED_RECALL", 0.0)
    assert built(folder).probes == 1
    monkeypatch.setattr(near, "WANTED_RECALL", 1.1)
    assert built(folder).probes == 20


def test_adding_a_few_frames_at_once_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "ADDED_AT_ONCE", 7)
    built(folder)
    for path, medium in [("/x/a", 1), ("/x/b", 2), ("/x/c", 3)]:
        for query in clip(path)[::9]:
            _, stretches = nearest(folder, query, 1)
            assert next(stretches).medium == medium


def test_no_index_and_a_damaged_one(folder: Path) -> None:
    with pytest.raises(UsageError, match="has no approximate index; llava-mini index --ann makes one"):
        nearest(folder, clip("/x/a")[0], 1)
    built(folder)
    assert sorted(path.name for path in (folder / "near").iterdir()) == ["frames.npy", "near.json", "vectors.faiss"]
    built(folder)  # in place of the first
    facts = (folder / "near" / "near.json").read_text()
    for text in ("{", "[]", json.dumps({"parts": []})):
        (folder / "near" / "near.json").write_text(text)
        with pytest.raises(ArchiveError, match=r"near\.json' is damaged"):
            NearFacts.read(folder)
    (folder / "near" / "near.json").write_text(facts)
    (folder / "near" / "vectors.faiss").write_bytes(b"no index")
    with pytest.raises(ArchiveError, match=r"vectors\.faiss' is damaged: [^\n]+$"):
        nearest(folder, clip("/x/a")[0], 1)


def changed_facts(**more: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "near.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return change


def changed_table(column: str, value: int) -> Change:
    def change(folder: Path) -> None:
        table = np.load(folder / "frames.npy")
        table[column] = value
        np.save(folder / "frames.npy", table)

    return change


def piped(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


DAMAGE: dict[str, Change] = {
    "parts that are a text": changed_facts(parts="12"),
    "rows of another archive": changed_facts(rows=99),
    "a mean of another width": changed_facts(mean=[0.0]),
    "a mean of texts": changed_facts(mean=["0", "0", "0", "0"]),
    "no probes": changed_facts(probes=0),
    "facts from a pipe": piped("near.json"),
    "vectors from a pipe": piped("vectors.faiss"),
    "frames from a pipe": piped("frames.npy"),
    "another table": lambda folder: np.save(folder / "frames.npy", np.zeros(100)),
    "a medium that begins nowhere": changed_table("first", 100),
    "a medium that begins before the table": changed_table("first", -1),
    "a medium without a frame": changed_table("count", 0),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_index_of_a_stranger_is_damaged_in_one_line(name: str, folder: Path) -> None:
    built(folder)
    DAMAGE[name](folder / "near")
    with pytest.raises(ArchiveError, match=r"is damaged: [^\n]+$"):
        list(nearest(folder, clip("/x/a")[0], 1)[1])


def test_an_index_of_parts_that_were_compacted_names_none_of_a_later_part(folder: Path) -> None:
    facts = built(folder)
    assert compact(folder).after == 1
    with open_archive(folder) as archive:
        assert (archive.parts, facts.parts) == ([3], [1, 2])
    assert built(folder).parts == [3]


def test_an_index_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "near").write_text("a file")
    with pytest.raises(OutputError, match=f"^cannot write '{folder}/near': "):
        built(folder)
    (folder / "near").unlink()
    with pytest.raises(OutputLocked), writing(folder):
        built(folder)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'llava-mini-cli\[ann\]'"):
        built(folder)
