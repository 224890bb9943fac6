"""Inputs as nobody would write them: each odd cell, name or member is one bad row, and no run waits for ever."""

import errno
import fcntl
import gzip
import io
import json
import math
import os
import tarfile
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from http_server import QuietHandler, serve, serving
from input_doubles import WHAT, faults, inputs, jobs_of, touch

from llava_mini_cli.errors import FetchError, ModelNotFound, OutputError, UsageError
from llava_mini_cli.formats.fetch import file_cache as cache_module
from llava_mini_cli.formats.fetch.download import Download
from llava_mini_cli.formats.fetch.embedded import Embedded
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.piped import Piped
from llava_mini_cli.formats.fetch.urls import is_remote, local_path, shown, without_signature
from llava_mini_cli.formats.inputs.columns import as_kind, as_text
from llava_mini_cli.formats.inputs.listing import check_listing, read_listing
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.read import open_inputs
from llava_mini_cli.formats.job import Job, Prompt
from llava_mini_cli.formats.outputs.open_output import OutputOptions
from llava_mini_cli.formats.outputs.row_keys import RowKeys, file_identity
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.hub import find_model
from llava_mini_cli.media.open import is_media_path
from llava_mini_cli.pipelines.fetch import FetchAhead
from llava_mini_cli.pipelines.open_job import fault_of


def options(tmp_path: Path, size: int = 1 << 30) -> FetchOptions:
    return FetchOptions(timeout=20.0, stall=5.0, backoff=0.01, cache_dir=tmp_path / "cache", cache_bytes=size)


def member(name: str, data: bytes = b"", type: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.type = len(data), 1_700_000_000, type
    return info, data


def write_tar(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)  # pyright: ignore
    return path


def pictures(*contents: bytes | None) -> bytes:
    """A Parquet table of pictures, as a file."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": list(contents)}), stream)  # pyright: ignore
    return stream.getvalue()


@contextmanager
def each_query_its_file(answer: Callable[[str], bytes], **headers: str) -> Generator[str]:
    """A server that answers by the value of the URL's query."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - as http.server calls it
            body = answer(self.path.rpartition("=")[2])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url


def contents(tmp_path: Path, *arguments: object, size: int = 1 << 30) -> list[bytes]:
    """What the media of some arguments hold once they are fetched, each released when it is read."""
    fetch, held = options(tmp_path, size), list[bytes]()

    def read() -> None:
        with FileCache(fetch) as cache:
            opened = open_inputs([str(each) for each in arguments], WHAT, is_media_path, cache)
            with FetchAhead(opened.jobs, cache) as ahead:
                for job in ahead:
                    held.append(Path(job.file).read_bytes())
                    cache.release(Path(job.file))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert not reader.is_alive(), "it waits for room that will never be"
    return held


# What hung.


def test_a_table_and_a_shard_as_large_as_the_cache_leave_room_for_media(tmp_path: Path) -> None:
    rows = "".join(f"m/{number}.jpg\n" for number in range(300))
    shard = write_tar(tmp_path / "a.tar", [member(f"{number}.jpg", b"%d" % number) for number in range(9)])
    with serve({"t.csv": b"path\n" + rows.encode(), "s.tar": shard.read_bytes()}) as server:
        server.files |= {f"m/{number}.jpg": b"%d" % number for number in range(300)}
        expected = [b"%d" % number for number in range(300)]
        assert contents(tmp_path, f"{server.url}/t.csv", size=len(server.files["t.csv"])) == expected
        assert contents(tmp_path, f"{server.url}/s.tar", size=len(server.files["s.tar"])) == expected[:9]


# Another's bytes.


def test_members_of_one_name_keep_their_bytes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [member("1.jpg", b"old"), member("2.jpg", b"2"), member("1.jpg", b"new")])
    assert contents(tmp_path, shard) == [b"old", b"2", b"new"]


def test_remote_tables_that_differ_in_the_query_alone_are_two(tmp_path: Path) -> None:
    splits = {"a": pictures(b"one", b"1"), "b": pictures(b"two", b"2")}
    with each_query_its_file(splits.__getitem__) as url:
        tables = [f"{url}/t.parquet?split={split}" for split in splits]
        assert contents(tmp_path, *tables) == [b"one", b"1", b"two", b"2"]
        jobs = jobs_of(*tables, fetch=options(tmp_path))
    assert len({job.item and job.item[0] for job in jobs}) == len({job.path for job in jobs}) == 4
    assert jobs[0].path == f"{tables[0]}/1"


def test_rows_about_what_is_in_a_remote_table_do_not_carry_its_password(tmp_path: Path) -> None:
    with each_query_its_file(lambda _: pictures(b"one", None)) as url:
        url = url.replace("://", "://me:secret@") + "/t.parquet?split=a&X-Amz-Signature=secret"
        jobs = jobs_of(url, fetch=options(tmp_path))
    assert [job.fault is None for job in jobs] == [True, False]
    assert "secret" not in "".join([job.path + job.questions[0].id for job in jobs])


def test_other_pictures_of_the_same_size_are_other_work(tmp_path: Path) -> None:
    keys = RowKeys("model", None, {})
    (before,) = jobs_of(write_parquet(tmp_path / "t.parquet", image=[b"one"]))
    (same,) = jobs_of(write_parquet(tmp_path / "t.parquet", image=[b"one"]))
    (after,) = jobs_of(write_parquet(tmp_path / "t.parquet", image=[b"two"]))
    states = [keys.state(keys.item(job)) for job in (before, same, after)]
    assert states[0] == states[1] != states[2]
    assert keys.item(before)[0] == keys.item(after)[0]  # the newer row replaces the older one


# What ended a run.


def test_a_name_with_a_nul_byte_is_a_bad_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list").write_bytes(f"{tmp_path}/a.jpg\0{tmp_path}/b.tar\0\n{tmp_path}/b.jpg\n".encode())
    (tmp_path / "t.csv").write_text("path\nfile:///x%00.jpg\n")
    listed, good = jobs_of(options=InputOptions(files_from=str(tmp_path / "list")))
    named = jobs_of(*(f"file:///x%00{end}" for end in (".jpg", ".csv", ".parquet", ".tar", "*.jpg")))
    for job in (listed, *named):
        ((stage, kind, message),) = faults([job])
        assert (stage, kind) == ("input", "bad_row")
        assert message.startswith("no file's name holds a NUL byte")
        assert file_identity(job.path) == (job.path, None, None)
        assert fault_of(job._replace(fault=None)) == ("decode", "not_found", "no file can have this name")
    assert good.path == f"{tmp_path}/b.jpg"
    row = faults(jobs_of(tmp_path / "t.csv"))
    assert row == [("input", "bad_row", f"{tmp_path}/t.csv, line 2: column 'path' holds no path")]


BAD_URLS = ["http://[www.example.com]/a.jpg", "http://me:secret@[x/a.jpg?token=secret", "https://a\u2100b/a.jpg"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_parsed_is_an_error_row(tmp_path: Path, url: str) -> None:
    assert is_remote(url)
    assert "secret" not in shown(url) + without_signature(url)
    (tmp_path / "t.csv").write_text(f"url\n{url}\nhere.jpg\n")
    (tmp_path / "list").write_text(f"{url}\n{url.replace('.jpg', '.tar')}\n")
    listed = InputOptions(files_from=str(tmp_path / "list"))
    for arguments, chosen, count in (
        ([url], InputOptions(), 1),
        ([tmp_path / "t.csv"], InputOptions(), 2),
        ([], listed, 2),
    ):
        with inputs(*arguments, options=chosen, fetch=options(tmp_path)) as opened:
            cache = FileCache(options(tmp_path))
            with cache, FetchAhead(opened.jobs, cache) as ahead:
                jobs = list(ahead)
        assert len(jobs) == count
        assert jobs[0].file_name == "a.jpg"
        assert faults(jobs)[0] == ("fetch", "unreadable", "not a valid URL")
    with pytest.raises(UsageError, match="not a valid URL") as error:
        jobs_of(url.replace("a.jpg", "a.csv"), fetch=options(tmp_path))
    assert "secret" not in str(error.value)


def test_a_file_url_with_an_odd_host_is_its_path() -> None:
    assert local_path("file://[x]/a%20b.jpg") == "/a b.jpg"


@pytest.mark.parametrize("url", ["reference://x", "ftp://127.0.0.1:1/a.jpg"])
def test_a_protocol_that_cannot_be_set_up_is_an_error_row(tmp_path: Path, url: str) -> None:
    """Some connect at once; what they raise is not about the cache here."""
    with FileCache(options(tmp_path)) as cache, pytest.raises(FetchError):
        cache.get(Download(url))
    with pytest.raises(UsageError, match="cannot list '"):
        jobs_of(f"{url}/*")


def test_a_suffix_that_no_file_can_have_is_left_out(tmp_path: Path) -> None:
    with serve({}) as server, FileCache(options(tmp_path)) as cache:
        assert cache.get(Download(f"{server.url}/a.j%00pg")).suffix == ".jpg"
    with FileCache(options(tmp_path)) as cache:
        assert cache.get(Embedded("1", ".\udcffp\0ng", b"x")).read_bytes() == b"x"


def test_values_that_python_cannot_hold_are_bad_rows(tmp_path: Path) -> None:
    texts = pa.array([b"a.jpg", b"\xff.jpg", b"c.jpg", b"d.jpg"])
    table = write_parquet(
        tmp_path / "t.parquet",
        path=pa.Array.from_buffers(pa.string(), len(texts), texts.buffers()),  # pyright: ignore
        day=pa.array([0, 0, 10**7, 1], pa.int32()).cast(pa.date32()),
        at=pa.array([0, 0, 0, 10**18], pa.int64()).cast(pa.timestamp("us")),
    )
    jobs = jobs_of(table, options=InputOptions(keep_all=True))
    assert [job.file_name for job in jobs if job.fault is None] == ["a.jpg"]
    (_, kind, text), (_, _, day), (_, _, at) = faults(jobs)
    assert (kind, text) == ("bad_row", f"{table}, row 2: column 'path' is not valid UTF-8")
    assert day.startswith(f"{table}, row 3: column 'day' holds what cannot be read: ")
    assert at.startswith(f"{table}, row 4: column 'at' holds what cannot be read: ")
    assert [job.file_name for job in jobs_of(table)] == ["a.jpg", "t.parquet", "c.jpg", "d.jpg"]  # the rest is unread


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a.jpg"])] * 2, names=["path", "path"])
    pq.write_table(twice, tmp_path / "t.parquet")  # pyright: ignore
    with pytest.raises(UsageError, match="it has two columns named 'path'"):
        jobs_of(tmp_path / "t.parquet")
    (tmp_path / "parts").mkdir()
    write_parquet(tmp_path / "parts" / "0.parquet", path=["a.jpg"])
    (tmp_path / "t.parquet").rename(tmp_path / "parts" / "1.parquet")
    jobs = jobs_of(tmp_path / "parts")
    assert [kind for _, kind, _ in faults(jobs)] == ["bad_row"]
    assert len(jobs) == 2


def test_kept_values_that_json_and_utf8_do_not_have(tmp_path: Path) -> None:
    assert [as_kind(value, "float64") for value in (math.inf, -math.inf, math.nan, 1)] == [None, None, None, 1.0]
    for text in ("\ud800", "é\udcff"):
        kept = as_text({"k": [text]})
        kept.encode()
        assert json.loads(kept) == {"k": [text]}
    (tmp_path / "t.csv").write_bytes("path,café\na.jpg,Who?\n".encode("latin-1"))
    with inputs(tmp_path / "t.csv", options=InputOptions(keep_all=True)) as opened:
        assert [column.name for column in opened.kept] == ["path", "caf\\xe9"]
        assert [dict(job.questions[0].kept) for job in opened.jobs] == [{"path": "a.jpg", "caf\\xe9": "Who?"}]
    (job,) = jobs_of(tmp_path / "t.csv", prompts=(), options=InputOptions(prompt_columns=("caf\udce9",)))
    assert job.questions[0].prompt == Prompt("Who?", "caf\\xe9")


def test_a_note_nested_too_deeply_is_a_bad_row(tmp_path: Path) -> None:
    deep = b'{"a":' * 9999 + b"1" + b"}" * 9999
    shard = write_tar(tmp_path / "a.tar", [member("1.jpg", b"x"), member("1.json", deep), member("2.jpg", b"y")])
    bad, good = jobs_of(shard)
    assert (bad.fault and bad.fault.kind, good.path) == ("bad_row", f"{shard}/2.jpg")


def test_a_member_of_no_time_that_there_is_keeps_its_row(tmp_path: Path) -> None:
    odd, data = member("1.jpg", b"x")
    odd.pax_headers = {"mtime": "nan"}
    (job,) = jobs_of(write_tar(tmp_path / "a.tar", [(odd, data)]))
    assert job.item == (f"{tmp_path}/a.tar/1.jpg", 1, None)


# What was fetched wrongly, or twice.


def test_a_file_that_grows_when_the_server_compresses_it_is_whole(tmp_path: Path) -> None:
    picture = os.urandom(5000)
    packed = gzip.compress(picture)
    assert len(packed) > len(picture)
    with each_query_its_file(lambda _: packed, Content_Encoding="gzip") as url, FileCache(options(tmp_path)) as cache:
        assert cache.get(Download(f"{url}/a.jpg")).read_bytes() == picture


def test_a_folder_that_another_run_took_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, waits = fcntl.flock, [1, 1]

    def late(descriptor: int, mode: int) -> None:
        if mode == fcntl.LOCK_EX and waits:
            waits.pop()
            cache_module._remove_dead(tmp_path)  # pyright: ignore[reportPrivateUsage]
        lock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", late)
    with FileCache(FetchOptions(cache_dir=tmp_path)) as cache:
        assert cache.get(Embedded("1", ".jpg", b"x")).read_bytes() == b"x"
        assert waits == []
        cache_module._remove_dead(tmp_path)  # pyright: ignore[reportPrivateUsage]
        assert cache.get(Embedded("2", ".jpg", b"y")).read_bytes() == b"y"
    assert os.listdir(tmp_path) == []


def test_remote_shards_of_a_list_are_not_fetched_to_be_counted(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [member("1.jpg", b"x")])
    with serve({"a.tar": shard.read_bytes()}) as server:
        (tmp_path / "list").write_text(f"b.jpg\n{server.url}/a.tar\n{shard}\n")
        listed = InputOptions(files_from=str(tmp_path / "list"))
        with inputs(options=listed, fetch=options(tmp_path)) as opened:
            assert opened.again is not None
            with pytest.raises(UsageError, match="is not here yet"):
                list(opened.again())
            assert server.asked == []
            assert len(list(opened.jobs)) == 3
    (tmp_path / "list").write_text(f"b.jpg\n{shard}\n")
    with inputs(options=listed) as opened:
        assert opened.again is not None
        assert len(list(opened.again())) == 2


# What was passed over.


def test_links_in_a_shard_are_bad_rows(tmp_path: Path) -> None:
    links = [member("2.jpg", type=tarfile.LNKTYPE), member("3.jpg", type=tarfile.SYMTYPE)]
    for info, _ in links:
        info.linkname = "1.jpg"
    other = member("4.npy", type=tarfile.LNKTYPE)
    shard = write_tar(tmp_path / "a.tar", [member("1.jpg", b"x"), *links, other, member("4.jpg", b"y")])
    jobs = jobs_of(shard)
    assert [job.path for job in jobs if job.fault is None] == [f"{shard}/1.jpg", f"{shard}/4.jpg"]
    assert [message for _, _, message in faults(jobs)] == [
        f"{shard}, sample {number}: {number}.jpg: a link, which is not read" for number in (2, 3)
    ]


def test_a_sample_whose_jsonl_is_blank_is_a_bad_row(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [member("1.jpg", b"x"), member("1.jsonl", b"\n \n"), member("2.jpg", b"y")])
    jobs = jobs_of(shard)
    assert [message for _, _, message in faults(jobs)] == [f"{shard}, sample 1: 1.jsonl: no line"]
    assert len(jobs) == 2


def test_a_list_from_windows_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    marked = tmp_path / "list"
    marked.write_bytes(b"\xef\xbb\xbfa.jpg\r\n\xef\xbb\xbfb.jpg\r\n")
    assert [os.fsencode(entry) for entry in read_listing(str(marked), null=False)] == [b"a.jpg", b"\xef\xbb\xbfb.jpg"]
    marked.write_bytes(b"\xef\xbb\xbf\r\n")
    assert list(read_listing(str(marked), null=False)) == []
    marked.write_bytes(b"\xef\xbb\xbfa.jpg\0")
    assert [os.fsencode(entry) for entry in read_listing(str(marked), null=True)] == [b"\xef\xbb\xbfa.jpg"]


def test_a_folder_of_a_list_without_media_is_an_error_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "full/a.jpg", "full/b.jpg", "none/notes.txt")
    Path("list").write_text("full\nnone\n")
    jobs: list[Job] = jobs_of(options=InputOptions(files_from="list"))
    assert [job.path for job in jobs] == ["full/a.jpg", "full/b.jpg", "none"]
    assert faults(jobs) == [("input", "empty", "no images or videos in the folder 'none'")]
    chosen = jobs_of(options=InputOptions(files_from="list", include=("a.*",)))
    assert [message.partition("' ")[2] for _, _, message in faults(chosen)] == ["that --include and --exclude leave"]


def test_a_cache_on_a_disk_without_locks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FileCache(FetchOptions(cache_dir=tmp_path)) as cache, pytest.raises(OutputError, match="No locks available"):
        cache.get(Embedded("1", ".jpg", b"x"))
    assert os.listdir(tmp_path) == []


# What the disk will not say.


@pytest.fixture
def unwilling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files `stale.jpg` and `closed/a.jpg` cannot be looked at, with good ones beside them."""
    touch(tmp_path, "a.jpg", "stale.jpg", "closed/a.jpg", "z.jpg")
    look = os.stat
    refused = {"stale.jpg": errno.ESTALE, "closed/a.jpg": errno.EACCES}

    def stat(path: Any, **options: Any) -> os.stat_result:
        for end, number in refused.items():
            if str(path).endswith(end):
                raise OSError(number, os.strerror(number), str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "stat", lambda self, **options: stat(self, **options))
    return tmp_path


LONG = "x" * 300 + ".jpg"


def why(jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """The messages of jobs that cannot be opened, by their paths in a folder; empty files are left out."""
    found = {os.path.relpath(job.path, folder): fault_of(job) for job in jobs}
    return {path: fault.message for path, fault in found.items() if fault is not None and fault.kind != "empty"}


@pytest.mark.parametrize("how", ["arguments", "list", "table", "folder", "glob"])
def test_an_entry_that_cannot_be_looked_at_is_a_row(unwilling: Path, how: str) -> None:
    names = ["a.jpg", "stale.jpg", "closed/a.jpg", LONG, "z.jpg"]
    paths = [str(unwilling / name) for name in names]
    (unwilling / "list.txt").write_text("\n".join(paths))
    (unwilling / "table.csv").write_text("path\n" + "\n".join(paths))
    given: dict[str, list[str]] = {"arguments": paths, "list": [], "table": [str(unwilling / "table.csv")]}
    given |= {"folder": [str(unwilling)], "glob": [f"{unwilling}/**/*.jpg"]}
    listing = InputOptions(files_from=str(unwilling / "list.txt")) if how == "list" else InputOptions()
    jobs = jobs_of(*given[how], options=listing)
    found = [name for name in names if name != LONG or how not in ("folder", "glob")]
    assert sorted(os.path.relpath(job.path, unwilling) for job in jobs) == sorted(found)
    said = {"stale.jpg": os.strerror(errno.ESTALE).lower(), "closed/a.jpg": "permission denied"}
    assert why(jobs, unwilling) == (said | {LONG: "file name too long"} if LONG in found else said)


@pytest.mark.parametrize("question", ["x" * 256, "\N{CJK UNIFIED IDEOGRAPH-95EE}" * 86, "a/" * 3000, "what\0?"])
def test_a_question_is_no_file_however_long_it_is(question: str) -> None:
    from llava_mini_cli.commands.ask import split_question

    assert split_question(["a.mp4", question], alone=False) == (["a.mp4"], (Prompt(question),))


@pytest.mark.parametrize("name", ["x" * 300, "closed/" + "y" * 300])
def test_a_model_or_an_output_of_a_name_too_long_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="no such directory, and not a hub id"):
        find_model(name)
    with pytest.raises(OutputError, match=r"File name too long|there is no folder"):
        OutputOptions.parse(str(tmp_path / name) + ".jsonl", None).check()
    with pytest.raises(UsageError, match="no such file"):
        check_listing(name)


# What comes through a descriptor.


def through_a_pipe(data: bytes, tmp_path: Path, *, size: int = 1 << 30, stopped: bool = False) -> bytes:
    """What is left of bytes that come through a pipe, one by one, once they lie in a file."""
    reader, writer = os.pipe()
    event = threading.Event()
    if stopped:
        event.set()
    try:
        sender = threading.Thread(target=lambda: ([os.write(writer, data[i : i + 1]) for i in range(len(data))]))
        sender.start()
        sender.join()
        if not stopped:
            os.close(writer)
        Piped(f"/dev/fd/{reader}").write_to(tmp_path / "copy", options(tmp_path, size), event)
        return (tmp_path / "copy").read_bytes()
    finally:
        os.close(reader)


def test_a_pipe_is_copied_to_its_end(tmp_path: Path) -> None:
    assert through_a_pipe(b"0123456789", tmp_path) == b"0123456789"


def test_a_pipe_that_holds_more_than_the_cache_may_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="more than --cache-size 9 bytes") as caught:
        through_a_pipe(b"0123456789", tmp_path, size=9)
    assert caught.value.kind == "too_large"
    assert through_a_pipe(b"0123456789", tmp_path, size=10) == b"0123456789"


def test_a_pipe_is_left_when_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="the run has stopped"):
        through_a_pipe(b"", tmp_path, stopped=True)


def test_a_silent_pipe_is_given_up(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with pytest.raises(FetchError, match=r"no byte came for 0\.2 s") as caught:
        Piped(f"/dev/fd/{reader}").write_to(tmp_path / "copy", FetchOptions(timeout=0.2), threading.Event())
    assert caught.value.kind == "timeout"
    os.close(reader)
    os.close(writer)


def test_a_descriptor_is_another_medium_each_time(tmp_path: Path) -> None:
    (first,), (second,) = jobs_of("/dev/stdin"), jobs_of("/dev/stdin")
    assert isinstance(first.source, Piped)
    assert (first.path, first.file_name) == ("/dev/stdin", "stdin")
    keys = RowKeys("model", None, {})
    assert keys.state(keys.item(first)) != keys.state(keys.item(second))
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(FetchError, match="no such file"):
        Piped(f"/dev/fd/{closed}").write_to(tmp_path / "copy", FetchOptions(), threading.Event())
    assert jobs_of("/dev/null")[0].source is None
