"""The folder of fetched files: what a URL or somebody else's folder can do to it, and what the system's errors mean."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_doubles import faults, jobs_of

from llava_mini_cli.errors import FetchError, LlavaMiniError, OutputError
from llava_mini_cli.formats.fetch.download import Download
from llava_mini_cli.formats.fetch.embedded import Embedded
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs import parquet_table
from llava_mini_cli.formats.inputs.csv_table import CsvTable
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.source import FetchOptions


@dataclass(eq=False)
class Failing:
    """A source that leaves something and fails."""

    error: Exception
    leaves: str = "file"
    name: str = "a"
    suffix: str = ".jpg"

    def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
        if self.leaves == "folder":
            (path / "in").mkdir(parents=True)
        else:
            path.write_bytes(b"half")
        raise self.error


def cache_of(tmp_path: Path) -> FileCache:
    return FileCache(FetchOptions(cache_dir=tmp_path / "new" / "cache"))


@pytest.mark.parametrize("suffix", ["./../../x", ".jp/g", ".%d", ".j\0pg", ".jpg\n", ".*?[a]", ".b\N{SNOWMAN}"])
def test_a_name_chooses_no_path(tmp_path: Path, suffix: str) -> None:
    with cache_of(tmp_path) as cache:
        path = cache.get(Embedded("../../etc/passwd", suffix, b"1"))
        assert path.parent.parent == tmp_path / "new" / "cache"
        assert path.name.replace(".", "").isalnum()
        assert cache.get(
            Embedded("http://a/..%2f..%2fx", Download("http://a/..%2f..%2fx.m%2fp").suffix, b"1")
        ).is_file()


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with cache_of(tmp_path) as cache:
            path = cache.get(Embedded("a", ".jpg", b"1"))
            modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)]
    finally:
        os.umask(umask)
    assert modes == [0o600, 0o700, 0o700]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    with cache_of(tmp_path) as cache:
        first = cache.get(Embedded("a", ".jpg", b"1"))
        digest = "3e23e8160039594a33894f65"  # sha256 of "b"
        (first.parent / f".{digest}.jpg.part").symlink_to(tmp_path / "victim")
        with pytest.raises(OutputError, match=r"cannot write the cache"):
            cache.get(Embedded("b", ".jpg", b"1"))
    assert (tmp_path / "victim").read_text() == "mine"


def test_folders_of_others_are_not_taken_for_those_of_killed_runs(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    for name in ("run-1", "run-training", "run-abcdefgh", "run-filledup", "run-fifofifo"):
        (cache / name).mkdir(parents=True, mode=0o700)
        (cache / name / "model").write_text("mine")
    for name in ("run-1", "run-training"):
        (cache / name / "lock").touch()
    (cache / "run-training").chmod(0o755)
    (cache / "run-filledup" / "lock").write_text("4711")
    os.mkfifo(cache / "run-fifofifo" / "lock")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "elsewhere" / "lock").touch()
    (cache / "run-linklink").symlink_to(tmp_path / "elsewhere")
    (cache / "run-abcdefgh" / "lock").symlink_to(tmp_path / "elsewhere" / "lock")
    with cache_of(tmp_path) as running:
        running.get(Embedded("a", "", b"1"))
    assert sorted(path.name for path in cache.iterdir()) == [
        "run-1", "run-abcdefgh", "run-fifofifo", "run-filledup", "run-linklink", "run-training",
    ]  # fmt: skip
    assert all((cache / name / "model").exists() for name in ("run-1", "run-abcdefgh", "run-fifofifo", "run-filledup"))
    assert (tmp_path / "elsewhere" / "lock").exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, "no_resources"),
        (errno.EMFILE, "no_resources"),
        (errno.ENFILE, "no_resources"),
        (errno.ENOMEM, "out_of_memory"),
        (errno.EROFS, None),
        (errno.EACCES, None),
        (errno.EIO, None),
    ],
)
def test_a_cache_that_cannot_be_written_now_or_ever(tmp_path: Path, number: int, kind: str | None) -> None:
    with cache_of(tmp_path) as cache:
        with pytest.raises(LlavaMiniError, match=r"cannot write the cache '.*': said") as error:
            cache.get(Failing(OSError(number, "said")))
        assert [path.name for path in (tmp_path / "new" / "cache").glob("run-*/*")] == ["lock"]
    assert (error.value.kind if isinstance(error.value, FetchError) else None) == kind


def test_a_folder_that_a_package_left_is_taken_away(tmp_path: Path) -> None:
    with cache_of(tmp_path) as cache:
        with pytest.raises(FetchError, match="odd"):
            cache.get(Failing(FetchError("unreadable", "odd"), "folder"))
        assert [path.name for path in (tmp_path / "new" / "cache").glob("run-*/*")] == ["lock"]


def test_a_download_that_was_left_behind_counts_no_more(tmp_path: Path) -> None:
    kept: list[FetchOptions] = []

    class Left(Failing):
        def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
            kept.append(options)
            raise self.error

    with FileCache(FetchOptions(cache_dir=tmp_path, cache_bytes=10)) as cache:
        for _ in range(2):
            with pytest.raises(FetchError, match="late"):
                cache.get(Left(FetchError("timeout", "late")))
        with pytest.raises(FetchError, match="nobody waits for it any more"):
            kept[0].check_size(10)
        assert cache.get(Embedded("b", "", bytes(10))).stat().st_size == 10


def test_a_list_does_not_name_what_the_run_has_open(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("/dev/stdin\n/dev/fd/0\n/proc/self/fd/3\n")
    jobs = jobs_of(options=InputOptions(files_from=str(tmp_path / "list")))
    words = "a list may not name what the run has open; as an argument it may be given"
    assert faults(jobs) == [("input", "refused", words)] * 3
    assert [job.source for job in jobs] == [None] * 3


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, "unreachable"), (errno.EISDIR, "bad_row")])
def test_a_table_on_a_mount_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    (tmp_path / "t.csv").write_text("path\na.jpg\n")

    def rows(self: CsvTable, columns: object) -> object:
        raise OSError(number, "Said")

    monkeypatch.setattr(CsvTable, "rows", rows)
    ((stage, found, words),) = faults(jobs_of(tmp_path / "t.csv"))
    assert (stage, found) == ("input", kind)
    assert words.endswith("cannot read the table '" + str(tmp_path / "t.csv") + "': said")


def test_a_part_of_a_parquet_table_on_a_mount_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other parts are read, and the row is one of the moment."""
    (tmp_path / "t").mkdir()
    for name in "ab":
        pq.write_table(pa.table({"path": [f"{name}.jpg"]}), tmp_path / "t" / f"{name}.parquet")
    whole = parquet_table._opened

    def opened(path: str, columns: Sequence[str]) -> pq.ParquetFile:
        if path.endswith("a.parquet"):
            raise OSError(errno.ESTALE, "Said")
        return whole(path, columns)

    monkeypatch.setattr(parquet_table, "_opened", opened)
    failed, read = jobs_of(tmp_path / "t")
    assert (read.file_name, read.fault) == ("b.jpg", None)
    assert failed.fault is not None
    assert failed.fault[:2] == ("input", "unreachable")


def test_a_pattern_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava_mini_cli", "ask", "a.jpg", "-p", "What?", "--hosts", "a/b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--hosts: 'a/b' is no host" in done.stderr
