"""What a medium holds, as a digest of parts of it, and rows looked up by it."""

import os
import tracemalloc
from pathlib import Path

import pytest

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.content import PART, WHOLE, content_of, content_of_job, file_content, size_of
from llava_mini_cli.formats.fetch.download import Download
from llava_mini_cli.formats.fetch.embedded import Embedded, Member, OpenTar
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.outputs.known_contents import KnownContents

LARGE = WHOLE + 1000


def spoilt(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def content(data: bytes, read: list[tuple[int, int]] | None = None) -> str:
    """Of bytes in memory; notes what was read."""

    def read_at(size: int, offset: int) -> bytes:
        if read is not None:
            read.append((offset, size))
        return data[offset : offset + size]

    return content_of(len(data), read_at)


@pytest.mark.parametrize("size", [0, 1, 5000, WHOLE])
def test_a_small_file_is_read_whole(size: int) -> None:
    data = os.urandom(size)
    read: list[tuple[int, int]] = []
    assert content(data, read) == content(data)
    assert sum(length for _, length in read) == size
    for place in {0, size // 3, size - 1} if size else ():
        assert content(spoilt(data, place)) != content(data)


def test_of_a_large_file_three_parts_are_read() -> None:
    data = os.urandom(LARGE)
    read: list[tuple[int, int]] = []
    found = content(data, read)
    middle, end = (LARGE - PART) // 2, LARGE - PART
    assert (WHOLE, PART) == (1024 * 1024, 64 * 1024)  # other parts are other digests, and rows are forgotten
    assert read == [(0, 4), (0, PART), (middle, PART), (end, PART)]
    for place in (0, PART - 1, middle, middle + PART - 1, end, LARGE - 1):
        assert content(spoilt(data, place)) != found
    for place in (PART, middle - 1, middle + PART, end - 1):
        assert content(spoilt(data, place)) == found
    assert content(data + b"x") != found


@pytest.mark.parametrize("mark", [b"BM", b"II*\0", b"MM\0*", b"P1\n", b"P5\n", b"P7\n"])
def test_pictures_without_compression_are_read_whole(mark: bytes) -> None:
    data = mark + os.urandom(LARGE)
    for place in range(PART, LARGE, LARGE // 9):
        assert content(spoilt(data, place)) != content(data)


def test_a_content_says_its_size() -> None:
    assert content(b"x" * 7).startswith("7-")
    assert size_of("7-abc-def") == 7


def test_what_cannot_be_read_and_what_is_no_file_has_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"12345")
    assert file_content(str(path), 5) == content(b"12345")
    assert file_content(str(tmp_path / "gone"), 5) is None
    assert file_content("nul\0byte", 5) is None
    assert file_content(str(tmp_path), 4096) is None


def test_media_inside_other_files_are_told_by_their_own_bytes(tmp_path: Path) -> None:
    data = os.urandom(5000)
    path = tmp_path / "x.tar"
    path.write_bytes(b"before" + data)
    job = Job("x.tar/a.mp4", "x.tar/a.mp4", (), item=("/x.tar/a.mp4", 5000, 0))
    member = Member("a", ".mp4", OpenTar(path), 6, 5000)
    assert content_of_job(job._replace(source=member), job.item or ("", 0, 0)) == content(data)
    assert content_of_job(job._replace(source=Embedded("a", ".mp4", data)), ("", 5000, 0)) == content(data)
    with pytest.raises(FetchError):
        Member("a", ".mp4", OpenTar(path), 9000, 5000).read_at(1, 0)
    assert content_of_job(job._replace(source=Member("a", ".mp4", OpenTar(path), 9000, 5000)), ("", 5000, 0)) is None


def test_a_url_has_no_content_before_it_is_fetched_and_what_is_missing_has_none() -> None:
    url = "https://example.org/a.mp4"
    assert (
        content_of_job(Job(url, "a.mp4", (), item=(url, None, None), source=Download(url)), (url, None, None)) is None
    )
    member = Member("a", ".mp4", OpenTar(__file__), 0, -5)
    assert content_of_job(Job("x.tar/a", "a", (), item=("/x.tar/a", -5, 0), source=member), ("/x.tar/a", -5, 0)) is None
    assert content_of_job(Job("gone", "gone", ()), ("/gone", None, None)) is None
    assert content_of_job(Job("a", "a", (), content="5-abc"), ("/a", 5, 0)) == "5-abc"
    assert content_of_job(Job("a", "a", (), item=("/a", 5, 0)), ("/a", 5, 0)) is None  # of an archive of before


def test_rows_are_found_by_digest_and_size() -> None:
    works = [bytes([number] * 10) for number in range(3)]
    numbered = works[0] + (1).to_bytes(4, "big")
    rows = [
        (works[0], 5, "7-aa-bb"),
        (works[1], 6, "9-aa-bb"),
        (numbered, 2**48 - 1, "7-aa-bb"),
        (works[2], 0, "0-b-b"),
    ]
    known = KnownContents(rows)
    assert known.find("7-aa-bb") == [(works[0], 5), (numbered, 2**48 - 1)]
    assert known.find("9-aa-bb") == [(works[1], 6)]
    assert known.find("0-b-b") == [(works[2], 0)]
    assert known.find("7-aa-bc") == []
    assert [size for size in range(12) if known.has_size(size)] == [0, 7, 9]
    assert not KnownContents([]).has_size(7)
    assert KnownContents([]).find("7-aa-bb") == []


def test_a_million_rows_take_forty_megabytes() -> None:
    count = 20_000
    tracemalloc.start()
    known = KnownContents((number.to_bytes(10), number, f"{number}-{number:020x}-{0:020x}") for number in range(count))
    used = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert used < 45  # bytes a row
    assert known.find(f"17-{17:020x}-{0:020x}") == [((17).to_bytes(10), 17)]
