"""Shards of strangers: damage is one row of the shard, those before it stand, and neither time nor memory runs away."""

import os
import time
from itertools import islice
from pathlib import Path

import pytest
from hostile_tars import base256, header, member, pax, record, write
from input_doubles import faults, inputs, jobs_of
from peak_memory import forget_peak, peak

from llava_mini_cli.formats.inputs.tar_members import LARGEST_HEADER

LAST = member(b"last.png", b"last")
DAMAGE = {
    "a size below zero": (header(b"bad.png", base256(-512)), "a size below zero in bad.png"),
    "a size below zero in digits": (header(b"bad.png", b"-0000001000"), "a size below zero in bad.png"),
    "a size that is no number": (header(b"bad.png", b"12x"), "invalid header at byte 1024"),
    "a size beyond the end": (header(b"bad.png", base256(1 << 60)), "it ends within bad.png"),
    "a name of 2^40 bytes": (header(b"long", base256(1 << 40), b"L"), "it ends within the header at byte 1024"),
    "a name of -512 bytes": (header(b"long", base256(-512), b"L"), "a size below zero in the header at byte 1024"),
    "a link's name of -512 bytes": (
        header(b"long", base256(-512), b"K"), "a size below zero in the header at byte 1024",
    ),
    "a name of 2 MiB": (member(b"long", b"x" * (1 << 21), b"L"), "a header of 2097152 bytes at byte 1024"),
    "pax of -512 bytes": (header(b"pax", base256(-512), b"x"), "a size below zero in the header at byte 1024"),
    "pax of 2 MiB": (member(b"pax", b"x" * (1 << 21), b"g"), "a header of 2097152 bytes at byte 1024"),
    "a pax length of 24 digits": (pax(b"9" * 24 + b" path=x\n"), "a pax record that is none at byte 1536"),
    "a pax length of 200 kB of digits": (pax(b"9" * 200_000), "a pax record that is none at byte 1536"),
    "a pax length of zero": (pax(b"0 path=x\n"), "a pax record that is none at byte 1536"),
    "a pax length that is too short": (pax(b"3 path=x\n"), "a pax record that is none at byte 1536"),
    "a pax length beyond the header": (pax(b"99 path=x\n"), "a pax record that is none at byte 1536"),
    "a pax record without an equals sign": (pax(b"7 path\n"), "a pax record that is none at byte 1536"),
    "a pax record without an end": (pax(b"8 path=x"), "a pax record that is none at byte 1536"),
    "a second pax record": (pax(record(b"comment", b"x"), b"x"), "a pax record that is none at byte 1549"),
    "a pax size of 200 kB of digits": (
        pax(record(b"size", b"9" * 200_000)) + LAST, "a size that is no number in last.png",
    ),
    "a pax size that is no number": (pax(record(b"size", b"-512")) + LAST, "a size that is no number in last.png"),
    "a pax size for all that is beyond": (
        pax(record(b"size", b"9" * 20), kind=b"g") + LAST, "it ends within last.png",
    ),
    "a sparse size that is no number": (
        header(b"bad.png", 0, b"S", more=b"\0" * 97 + b"x" * 12), "invalid header at byte 1024",
    ),
    "no header": (b"x" * 512, "invalid header at byte 1024"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_row_and_those_before_it_stand(name: str, tmp_path: Path) -> None:
    parts, why = DAMAGE[name]
    shard, other = write(tmp_path / "a.tar", parts), write(tmp_path / "b.tar")
    begin = time.process_time()
    jobs = jobs_of(shard, other)
    assert time.process_time() - begin < 1
    assert faults(jobs) == [("input", "truncated", f"the shard cannot be read to its end: {why}")]
    assert [job.path for job in jobs if job.fault is None] == [f"{shard}/good.png", f"{other}/good.png"]


UNREAD = {
    "a sparse file of GNU's": (header(b"bad.png", 0, b"S"), "a sparse file"),
    "a sparse file with a longer map": (
        header(b"bad.png", 0, b"S", more=b"\0" * 96 + b"\1") + bytes(504) + b"\1" + bytes(7 + 512), "a sparse file",
    ),
    "a sparse map that is none": (pax(record(b"GNU.sparse.map", b"x,y,")) + member(b"bad.png", b""), "a sparse file"),
    "a sparse size that is none": (pax(record(b"GNU.sparse.size", b"x")) + member(b"bad.png", b""), "a sparse file"),
    "a sparse file of version 1.0": (
        pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.name", b"bad.png"))
        + member(b"GNUSparseFile.0/x", b"9" * 1024), "a sparse file",
    ),
    "a link": (header(b"bad.png", base256(-512), b"2"), "a link"),
    "a hard link": (header(b"bad.png", base256(1 << 60), b"1"), "a link"),
    "a pipe": (header(b"bad.png", 0, b"6"), "a device, a pipe or the like"),
    "a device": (header(b"bad.png", 0, b"3"), "a device, a pipe or the like"),
    "what nobody knows": (member(b"bad.png", b"x" * 600, b"Z"), "a device, a pipe or the like"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_a_member_that_is_no_plain_file_is_a_row_and_the_rest_is_read(name: str, tmp_path: Path) -> None:
    parts, why = UNREAD[name]
    shard = write(tmp_path / "a.tar", parts, LAST)
    jobs = jobs_of(shard)
    assert faults(jobs) == [("input", "bad_row", f"{shard}, sample bad: bad.png: {why}, which is not read")]
    assert [job.path for job in jobs if job.fault is None] == [f"{shard}/good.png", f"{shard}/last.png"]


def test_a_sparse_map_that_never_ends(tmp_path: Path) -> None:
    map_goes_on = b"\0" * 96 + b"\1"
    shard = write(tmp_path / "a.tar", header(b"bad.png", 0, b"S", more=map_goes_on), b"\1" * 5100, end=b"")
    why = "the shard cannot be read to its end: it ends within the map of a sparse file"
    assert faults(jobs_of(shard)) == [("input", "truncated", why)]


def test_names_that_no_file_has_are_rows(tmp_path: Path) -> None:
    long = b"x" * 100_000 + b".png"
    shard = write(
        tmp_path / "a.tar",
        pax(record(b"path", b"a\0b.png")), member(b"1.png", b"1"),
        pax(record(b"path", long)), member(b"2.png", b"2"),
        member(b"long", long + b"\0", b"L"), member(b"3.png", b"3"),
        member(b"long", b"../../etc/4.png\0and more", b"L"), member(b"4.png", b"4"),
        pax(record(b"path", b"/etc/5.png")), member(b"5.png", b"5"),
    )  # fmt: skip
    jobs = jobs_of(shard)
    assert [message.rpartition(": ")[2] for _, _, message in faults(jobs)] == [
        "a name with a NUL byte", "a name of more than 4096 bytes", "a name of more than 4096 bytes",
    ]  # fmt: skip
    assert len({job.identity for job in jobs}) == len(jobs) == 6
    assert max(len(job.path) for job in jobs) < len(str(shard)) + 200
    good = [job for job in jobs if job.fault is None]
    assert [job.path for job in good] == [f"{shard}/{name}.png" for name in ("good", "../../etc/4", "/etc/5")]
    assert [job.source.read_at(9, 0) for job in good] == [b"good", b"4", b"5"]  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"12.75", 12), (b"1e300", None), (b"nan", None), (b"inf", None), (b"soon", 0), (b"1" * 200_000, None)],
)
def test_times_of_change_that_are_none(value: bytes, seconds: int | None, tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", pax(record(b"mtime", value)), LAST, header(b"z.png", mtime=base256(-(1 << 80))))
    _, job, other = jobs_of(shard)
    assert job.item == (f"{shard}/last.png", 4, seconds)
    assert other.item == (f"{shard}/z.png", 0, None)


def test_many_headers_before_a_member_and_many_members_cost_no_memory(tmp_path: Path) -> None:
    headers = pax(record(b"path", b"name.png"), record(b"comment", b"x" * 300)) * 20_000
    shard = write(tmp_path / "a.tar", headers, LAST, b"".join(member(b"%d.png" % n, b"") for n in range(10_000)))
    begin, before = time.monotonic(), forget_peak()
    with inputs(shard) as opened:
        names = [job.path.removeprefix(f"{shard}/") for job in islice(opened.jobs, 2)]
        assert names == ["good.png", "name.png"]
        assert sum(1 for job in opened.jobs if job.fault is None) == 10_000
    assert time.monotonic() - begin < 10
    assert peak() - before < 5 << 10  # KiB


def test_a_name_of_a_mebibyte_is_the_most_that_is_looked_at(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", member(b"long", b"x" * LARGEST_HEADER, b"L"), LAST, LAST)
    assert [job.path for job in jobs_of(shard) if job.fault is None][1:] == [f"{shard}/last.png"]


def test_a_pipe_and_a_device_are_no_shards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    jobs = jobs_of(tmp_path / "pipe.tar", tmp_path / "zero.tar", write(tmp_path / "a.tar"))
    assert faults(jobs) == [("input", "unreadable", "not a regular file")] * 2
    assert [job.path for job in jobs if job.fault is None] == [f"{tmp_path}/a.tar/good.png"]
