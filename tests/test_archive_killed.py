"""Archives whose writers are killed at any moment, and archives of which any byte is another: the whole or a name."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_formats_archive import make

from llava_mini_cli.engine.similarity import scan_batches, scan_file
from llava_mini_cli.errors import ArchiveError
from llava_mini_cli.formats.archive.compact import Compacted, compact
from llava_mini_cli.formats.archive.layout import HEADER, files_of, part_name
from llava_mini_cli.formats.archive.manifest import MANIFEST, Manifest
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.sums import SUMMED, VectorSums
from llava_mini_cli.formats.archive.writer import open_for_writing
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, search

SCANNER = Scanner(scan_file, scan_batches)


def test_whoever_is_killed_leaves_what_was_there_before_or_what_was_to_be(tmp_path: Path) -> None:
    """At some of the moments; `archive_steps.py FOLDER 1` takes all of them."""
    script = Path(__file__).with_name("archive_steps.py")
    done = subprocess.run([sys.executable, script, tmp_path, "13"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for step in ("index", "prune", "compact"):
        ends = [line for line in lines if line["step"] == step]
        before, after = ends[0]["after"], ends[-1]["after"]
        assert before is not None
        assert (before == after) == (step == "compact")
        assert [line["ended"] for line in ends] == [-9] * (len(ends) - 1) + [0]
        for line in ends:
            assert line["after"] in (before, after)
            assert (line["later"], line["strays"]) == (line["after"], [])
    assert len(lines) > 12


def everything(folder: Path) -> tuple[list[str], set[str]]:
    """What is read of an archive, and the files that are named meanwhile."""
    read: list[str] = []
    named: set[str] = set()
    try:
        with open_archive(folder) as archive:
            query = np.array([1, 0.2, 0, 0], np.float32)
            read.append(repr(search(archive, query, SearchOptions(10), SCANNER)))
            for medium in archive.each_medium():
                read.append(repr(medium))
                try:
                    read.append(repr([(chunk.tolist(), times.tolist()) for chunk, times in archive.features(medium)]))
                    vectors = archive.embeddings(medium)
                    read.append(repr((archive.captions(medium), None if vectors is None else vectors.tolist())))
                except ArchiveError as error:
                    named.add(str(error))
            named |= {each.file for each in archive.damage}
    except ArchiveError as error:
        named.add(str(error))
    return read, named


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts, in which one medium was replaced."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    for number, paths in enumerate((("/x/a", "/x/b"), ("/x/c",), ("/x/b",))):
        make(folder, *paths, seed=number)
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_a_byte_that_is_another_is_named_or_changes_nothing(seed: int, whole: Path, tmp_path: Path) -> None:
    expected, _ = everything(whole)
    generator = random.Random(seed)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.name[0] != ".")
    for _ in range(30):
        victim = tmp_path / "a" / generator.choice(files).relative_to(whole)
        shutil.copytree(whole, tmp_path / "a", dirs_exist_ok=True)
        data = bytearray(victim.read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        victim.write_bytes(data)
        read, named = everything(tmp_path / "a")
        assert named or read == expected, victim


@pytest.mark.parametrize("harm", ["gone", "cut", "longer"])
def test_each_file_that_is_gone_or_of_another_length_is_named(harm: str, whole: Path, tmp_path: Path) -> None:
    for path in files_of(whole, 1):
        shutil.copytree(whole, tmp_path / "a", dirs_exist_ok=True)
        victim = tmp_path / "a" / path.relative_to(whole)
        data = victim.read_bytes()
        victim.write_bytes({"gone": b"", "cut": data[:-3], "longer": data + b"x"}[harm])
        if harm == "gone":
            victim.unlink()
        with open_archive(tmp_path / "a") as archive:
            assert [each.file for each in archive.damage] == [str(path.relative_to(whole))]
            left_out = path.parent.name in ("media", "frames")
            assert [medium.path for medium in archive.each_medium()] == ["/x/a", "/x/c", "/x/b"][left_out:]
        with open_for_writing(tmp_path / "a") as writer:  # what is lost is indexed again; plain numbers are no loss
            assert ("/x/a" in writer.known) == (path.parent.name == "vectors")


def test_embeddings_that_are_other_ones_are_had_from_the_table(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    victim = tmp_path / "a" / part_name(1, "vectors")
    data = bytearray(victim.read_bytes())
    data[7] ^= 1
    victim.write_bytes(data)
    query = np.array([1, 0, 0, 0], np.float32)
    with open_archive(whole) as archive:
        expected = search(archive, query, SearchOptions(10), SCANNER)
    with open_archive(tmp_path / "a") as archive:
        assert search(archive, query, SearchOptions(10), SCANNER) == expected
        assert [each.file for each in archive.damage] == [part_name(1, "vectors")]
    with open_archive(tmp_path / "a") as archive:
        rows = archive.vector_rows(1, np.array([5, 0], np.int32))
        assert rows.tolist() == np.concatenate(list(archive.vectors(1)))[[5, 0]].tolist()
        assert [each.file for each in archive.damage] == [part_name(1, "vectors")]


def test_compacting_one_part_brings_back_its_plain_embeddings(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    (tmp_path / part_name(1, "vectors")).unlink()
    assert compact(tmp_path) == Compacted(1, 1, [])
    read, named = everything(tmp_path)
    assert (len(read), named) == (4, set())
    assert compact(tmp_path) == Compacted(0, 0, [])


def test_sums_of_embeddings(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2 * SUMMED + 3, 5)).astype("<f2")
    (tmp_path / "v").write_bytes(rows.tobytes())
    sums = VectorSums.of_file(tmp_path / "v", 10)
    for first in (0, SUMMED, 2 * SUMMED):
        block = bytearray(rows[first : first + SUMMED].tobytes())
        sums.check(first, memoryview(block))
        for place in (0, len(block) // 2, len(block) - 1):
            block[place] ^= 128
            with pytest.raises(ValueError, match=f"from row {first} on are not those"):
                sums.check(first, block)
            block[place] ^= 128
    with pytest.raises(ValueError, match="from row 1536 on"):
        sums.check(3 * SUMMED, b"")
    assert len(sums.data) == 3 * 8


def test_a_scan_checks_every_vector_once(tmp_path: Path) -> None:
    import torch

    rows = np.random.default_rng(0).standard_normal((5 * SUMMED + 7, 4)).astype("<f2")
    (tmp_path / "v").write_bytes(rows.tobytes())
    seen: dict[int, bytes] = {}
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            seen.clear()
            scores = scan_file(
                tmp_path / "v", len(rows), np.ones(4, np.float32), lambda at, some: seen.update({at: bytes(some)})
            )
            assert b"".join(seen[first] for first in sorted(seen)) == rows.tobytes()
            assert sorted(seen) == list(range(0, len(rows), SUMMED))
            np.testing.assert_allclose(scores, rows.astype(np.float32).sum(1), atol=1e-2)
    finally:
        torch.set_num_threads(threads)


def test_numbers_of_parts_are_never_given_out_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    assert compact(tmp_path / "a") == Compacted(3, 1, [])
    with open_for_writing(tmp_path / "a") as writer:
        writer.drop(["/x/a", "/x/b", "/x/c"])
    assert compact(tmp_path / "a").after == 0
    assert not list((tmp_path / "a").rglob("part-*"))
    make(tmp_path / "a", "/x/new")
    with open_archive(tmp_path / "a") as archive:
        assert archive.parts == [6]
    assert Manifest.read(tmp_path / "a", is_kept=True).last == 6


def test_a_run_that_is_killed_before_there_is_a_header_leaves_no_other_things(tmp_path: Path) -> None:
    make(tmp_path, "/x/a")
    (tmp_path / HEADER).unlink()
    for path in files_of(tmp_path, 1):
        path.unlink()
        path.parent.rmdir()
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == [MANIFEST]
    make(tmp_path, "/x/b")
    with open_archive(tmp_path) as archive:
        assert ([medium.path for medium in archive.each_medium()], archive.damage) == (["/x/b"], [])
