"""URLs as text, what a server's answers mean, media inside other files, and the bounded cache: no network."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llava_mini_cli.errors import FetchError, OutputError, UsageError, first_line
from llava_mini_cli.formats.fetch import download
from llava_mini_cli.formats.fetch.download import Download, open_filesystem
from llava_mini_cli.formats.fetch.embedded import Embedded, Member, OpenTar
from llava_mini_cli.formats.fetch.file_cache import FileCache, default_folder
from llava_mini_cli.formats.fetch.urls import (
    has_listing,
    is_remote,
    is_valid,
    local_path,
    parts_of,
    plain_name,
    scrubbed,
    shown,
    without_signature,
)
from llava_mini_cli.formats.source import FetchOptions

BROKEN = "http://[www.example.com]/a/b.jpg?q=1#f"
QUICK = FetchOptions(backoff=0.001)


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("https://a.b/c", True), ("S3://b/c", True), ("hf+x.y-1://b", True), ("file:///a", False), ("LOCAL://a", False),
        ("a/b", False), ("://a", False), ("1a://b", False), ("C:/a", False), ("x http://a", False),
    ],
)  # fmt: skip
def test_what_is_not_on_this_disk(name: str, remote: bool) -> None:
    assert is_remote(name) is remote


def test_the_parts_of_urls_good_and_bad() -> None:
    assert (is_valid("http://a.b/c"), is_valid(BROKEN)) == (True, False)
    assert tuple(parts_of(BROKEN)) == ("http", "[www.example.com]", "/a/b.jpg", "q=1", "f")
    assert tuple(parts_of("http://[x]")) == ("http", "[x]", "", "", "")
    assert parts_of("http://me@a.b:8/c?d#e").netloc == "me@a.b:8"
    assert local_path("file:///a%20b/c.mp4") == "/a b/c.mp4"
    assert local_path("FILE:///a%20b") == "/a b"
    assert local_path("local:///a") == "/a"
    assert local_path("http://x/a%20b") == "http://x/a%20b"
    assert plain_name("s3://b/c.csv?v=1") == "/c.csv"
    assert plain_name("a?b.csv") == "a?b.csv"
    listings = {"s3://b/": True, "s3://b/*.jpg": True, "s3://b/a.jpg": False, "http://b/": False, "HTTPS://b/*": False}
    assert {url: has_listing(url) for url in listings} == listings


def test_urls_without_what_is_secret() -> None:
    assert shown("https://me:pw@a.b/c?token=1#x") == "https://a.b/c?…"
    assert shown("file://me:pw@a/b?c") == "file://me:pw@a/b?c"
    assert shown("a@b?c") == "a@b?c"
    assert scrubbed("no https://me:pw@a.b/c?d=e, 'http://x@y/z'") == "no https://a.b/c?… 'http://y/z'"
    assert scrubbed("me@there") == "me@there"
    assert without_signature("https://me:pw@a.b/c?id=&x-goog-a=1&Expires=2&my_token=3&sigh=4#f") == (
        "https://a.b/c?id=&sigh=4"
    )


def test_a_download_by_its_url() -> None:
    source = Download("https://me@a.b/x/c%20d.MP4?sig=1")
    assert (source.file_name, source.suffix) == ("c d.MP4", ".MP4")
    assert source.item == ("https://a.b/x/c%20d.MP4", None, None)
    bare = Download("https://me@a.b/?x")
    assert (bare.file_name, bare.suffix) == ("https://a.b/?…", "")


class ClientPayloadError(Exception):
    """Has the name of aiohttp's."""


def answering(status: int, *, inside: bool = False) -> Exception:
    error = Exception("words of https://me:pw@a.b/c?secret\nand more")
    holder = error
    if inside:
        holder = error.response = type("Response", (), {})()  # type: ignore[attr-defined]
        holder.status_code = status  # type: ignore[attr-defined]
    else:
        error.status = status  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words", "passes"),
    [
        (FileNotFoundError("x"), "not_found", "no such file on the server", False),
        (answering(404), "not_found", "no such file on the server", False),
        (answering(410), "not_found", "no such file on the server", False),
        (answering(404, inside=True), "not_found", "no such file on the server", False),
        (PermissionError("x"), "unreadable", "the server refuses it", False),
        (answering(401), "unreadable", "the server refuses it (401)", False),
        (answering(403, inside=True), "unreadable", "the server refuses it (403)", False),
        (ClientPayloadError(), "truncated", "the server sent less than it announced", True),
        (TimeoutError(), "unreachable", "the server does not answer", True),
        (answering(400), "unreadable", "the server answers 400", False),
        (answering(499), "unreadable", "the server answers 499", False),
        (answering(408), "unreachable", "the server answers 408", True),
        (answering(425), "unreachable", "the server answers 425", True),
        (answering(429), "unreachable", "the server answers 429", True),
        (answering(500), "unreachable", "the server answers 500", True),
        (Exception("of http://me:pw@a.b/c\nand more"), "unreadable", "of http://a.b/c", True),
        (Exception(), "unreadable", "Exception", True),
    ],
)
def test_what_a_servers_answer_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, words: str, passes: bool
) -> None:
    attempts: list[str] = []

    class Failing:
        async_impl = False

        def get_file(self, remote: str, path: str, callback: object) -> None:
            attempts.append(remote)
            raise error

    monkeypatch.setattr(download, "open_filesystem", lambda url, stall, client: (Failing(), "there"))
    with pytest.raises(FetchError) as raised:
        Download("x://a").write_to(tmp_path / "a", QUICK, threading.Event())
    assert (raised.value.kind, str(raised.value)) == (kind, words)
    assert attempts == ["there"] * (4 if passes else 1)


@dataclass
class Store:
    """A filesystem of fsspec's kind that writes so many bytes and says how many there are."""

    sent: int
    announced: int | None
    async_impl: bool = False
    error: Callable[[str], Exception] | None = None

    def get_file(self, remote: str, path: str, callback: Any) -> None:
        callback.set_size(self.announced)
        if self.error is not None:
            raise self.error(path)
        if self.sent:
            Path(path).write_bytes(b"x" * self.sent)
        callback.absolute_update(self.sent)


def download_from(
    monkeypatch: pytest.MonkeyPatch, path: Path, store: Store, url: str = "x://a", options: FetchOptions = QUICK
) -> int:
    """The attempts that it took."""
    attempts: list[float] = []
    monkeypatch.setattr(
        download, "open_filesystem", lambda url, stall, client: (attempts.append(stall) or (store, "there"))
    )  # fmt: skip
    Download(url).write_to(path, options, threading.Event())
    assert set(attempts) == {options.stall}
    return len(attempts)


def test_a_file_that_is_shorter_than_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    assert download_from(monkeypatch, path, Store(5, 5)) == 1
    assert download_from(monkeypatch, path, Store(5, 4)) == 1
    assert download_from(monkeypatch, path, Store(5, None)) == 1
    assert download_from(monkeypatch, path, Store(4, 5), "HTTP://a") == 1  # aiohttp knows better
    for sent in (4, 0):
        path.unlink(missing_ok=True)
        with pytest.raises(FetchError, match=f"the server sent {sent} of 5 bytes") as raised:
            download_from(monkeypatch, path, Store(sent, 5))
        assert raised.value.kind == "truncated"


def test_errors_of_this_disk_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    for error in (lambda _: OSError(28, "full"), lambda name: OSError(13, "denied", name)):
        with pytest.raises(OSError, match=r"full|denied"):
            download_from(monkeypatch, path, Store(1, 1, error=error))
    with pytest.raises(FetchError, match="refuses it"):
        download_from(monkeypatch, path, Store(1, 1, error=lambda name: PermissionError(13, "denied", "there")))


def test_pauses_grow_and_end_with_the_deadline_or_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return len(pauses) == 5

    monkeypatch.setattr(download, "open_filesystem", lambda url, stall, client: (Store(0, 1), "there"))
    options = FetchOptions(timeout=60.0, backoff=2.0, retries=3)
    with pytest.raises(FetchError):
        Download("x://a").write_to(tmp_path / "a", options, Stopped())
    assert pauses == [2.0, 4.0, 8.0]
    with pytest.raises(FetchError):
        Download("x://a").write_to(tmp_path / "a", options, Stopped())
    assert pauses == [2.0, 4.0, 8.0, 2.0, 4.0]  # stopped
    pauses.clear()
    with pytest.raises(FetchError):
        Download("x://a").write_to(tmp_path / "a", FetchOptions(timeout=3.0, backoff=2.0), Stopped())
    assert pauses == [2.0]  # four more seconds would be too late


def test_a_download_that_is_over_its_time_ends_at_its_next_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FetchOptions(timeout=1e-9, retries=0)
    with pytest.raises(FetchError, match=r"not here after 1e-09 s \(--fetch-timeout\)") as raised:
        download_from(monkeypatch, tmp_path / "a", Store(1, 1), options=options)
    assert raised.value.kind == "timeout"
    stopped = threading.Event()
    stopped.set()
    monkeypatch.setattr(download, "open_filesystem", lambda url, stall, client: (Store(1, 1), "there"))
    with pytest.raises(FetchError, match="not here"):
        Download("x://a").write_to(tmp_path / "a", QUICK, stopped)


class Slow:
    """An asynchronous filesystem: a download moves so often, so many seconds apart, or fails of itself."""

    async_impl = True

    def __init__(self, moves: int, apart: float, error: Exception | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.cancelled = threading.Event()
        self._moves, self._apart, self._error = moves, apart, error
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def _get_file(self, remote: str, path: str, callback: Any) -> None:
        try:
            for _ in range(self._moves):
                await asyncio.sleep(self._apart)
                callback.relative_update(1)
            await asyncio.sleep(0 if self._moves > 1 else self._apart)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self._error is not None:
            raise self._error
        Path(path).write_bytes(b"whole")


def test_a_slow_download_may_go_on_as_long_as_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_POLL", 0.01)
    store: Slow | None = None

    def fetch(moves: int, apart: float, error: Exception | None = None, **options: float) -> None:
        nonlocal store
        store = Slow(moves, apart, error)
        monkeypatch.setattr(download, "open_filesystem", lambda url, stall, client: (store, "there"))
        bounds: Any = {"retries": 0, "stall": 0.3} | options
        Download("x://a").write_to(tmp_path / "a", FetchOptions(**bounds), threading.Event())

    fetch(8, 0.1)
    assert (tmp_path / "a").read_bytes() == b"whole"
    with pytest.raises(FetchError, match=r"the server sent nothing for 0\.3 s"):
        fetch(1, 9.0)
    assert store is not None
    assert store.cancelled.wait(5)
    with pytest.raises(FetchError, match=r"not here after 0\.2 s"):
        fetch(1, 9.0, timeout=0.2)
    assert store.cancelled.wait(5)
    with pytest.raises(FetchError, match="the server does not answer"):
        fetch(2, 0.0, error=TimeoutError())


def test_filesystems_of_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, path = open_filesystem("memory://b/c.jpg")
    assert (type(filesystem), path) == (type(fsspec.filesystem("memory")), "/b/c.jpg")
    filesystem, path = open_filesystem("http://127.0.0.1:9/c", 7.5)
    timeout = filesystem.client_kwargs["timeout"]
    assert (path, timeout.total, timeout.sock_connect, timeout.sock_read) == ("http://127.0.0.1:9/c", None, 7.5, 7.5)
    assert filesystem.client_kwargs["trust_env"] is True
    with pytest.raises(FetchError, match="not a valid URL"):
        open_filesystem(BROKEN)
    with pytest.raises(FetchError, match="nope:// is no protocol that fsspec knows"):
        open_filesystem("Nope://a")
    for error, raised, words in [
        (ImportError("no s3fs"), UsageError, r"^reading s3:// needs a package that is not installed: pip install"),
        (ValueError("odd https://me:pw@a/b\nmore"), FetchError, "^odd https://a/b$"),
        (OSError("unreached"), FetchError, "^unreached$"),
    ]:

        def fail(url: str, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr(download, "url_to_fs", fail)
        with pytest.raises(raised, match=words):
            open_filesystem("s3://a/b")


def test_the_first_line_of_an_error() -> None:
    errors = [ValueError(" one\ntwo"), ValueError("\n "), KeyError("x")]
    assert [first_line(error) for error in errors] == ["one", "ValueError", "'x'"]


def test_a_member_is_copied_in_pieces_and_told_when_it_is_cut(tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 100)
    (tmp_path / "a.tar").write_bytes(b"head" + data)
    archive = OpenTar(tmp_path / "a.tar")
    (tmp_path / "a.tar").unlink()  # it stays open
    for size in (0, 5, len(data)):
        Member("a/1", ".bin", archive, 4, size).write_to(tmp_path / "out", QUICK, threading.Event())
        assert (tmp_path / "out").read_bytes() == data[:size]
    with pytest.raises(FetchError, match="the archive ends within this member") as raised:
        Member("a/1", ".bin", archive, 4, len(data) + 1).write_to(tmp_path / "out", QUICK, threading.Event())
    assert raised.value.kind == "truncated"
    with pytest.raises(FetchError, match="invalid argument"):
        Member("a/1", ".bin", archive, -1, 1).write_to(tmp_path / "out", QUICK, threading.Event())
    Embedded("a", ".jpg", b"xy").write_to(tmp_path / "out", QUICK, threading.Event())
    assert (tmp_path / "out").read_bytes() == b"xy"


def test_a_shard_is_closed_when_nobody_wants_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    archive = OpenTar(tmp_path / "a.tar")
    descriptor = archive.descriptor
    os.fstat(descriptor)
    del archive
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@dataclass(eq=False)
class Blob:
    """A source of so many bytes; fails where it has an error."""

    name: str
    size: int = 1
    suffix: str = ".bin"
    error: Exception | None = None
    asked: int = 0

    def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
        self.asked += 1
        path.write_bytes(b"x" * self.size)
        if self.error is not None:
            raise self.error


def cache_of(tmp_path: Path, most: int = 1000) -> FileCache:
    return FileCache(FetchOptions(cache_dir=tmp_path / "cache", cache_bytes=most))


def has_room(cache: FileCache) -> bool:
    """Whether `wait_for_room` returns at once."""
    stopped = threading.Event()
    waiting = threading.Thread(target=cache.wait_for_room, args=(stopped,))
    waiting.start()
    waiting.join(0.1)
    at_once = not waiting.is_alive()
    stopped.set()
    cache.wake()
    waiting.join(10)
    assert not waiting.is_alive()
    return at_once


def test_files_within_the_bound_stay_and_the_oldest_go_first(tmp_path: Path) -> None:
    blobs = [Blob(name, 500) for name in "abcd"]
    with cache_of(tmp_path) as cache:
        a, b = (cache.get(blob) for blob in blobs[:2])
        cache.release(b)
        cache.release(a)
        assert (a.exists(), b.exists()) == (True, True)  # 1000 bytes are not too many
        c = cache.get(blobs[2])
        assert (a.exists(), b.exists(), c.exists()) == (False, True, True)  # as they came, not as they were let go
        assert not list(a.parent.glob(".*"))
        cache.release(Path("elsewhere"))
        assert cache.get(blobs[1]) == b
        assert [blob.asked for blob in blobs] == [1, 1, 1, 0]
        d = cache.get(blobs[3])
        assert (b.exists(), c.exists(), d.exists()) == (True, True, True)  # all are in use
        cache.release(b)
        assert (b.exists(), c.exists(), d.exists()) == (False, True, True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_room_is_counted_in_media_that_are_in_use(tmp_path: Path) -> None:
    with cache_of(tmp_path) as cache:
        assert has_room(cache)
        cache.get(Blob("table", 1000), pinned=True)
        assert has_room(cache)
        first = cache.get(Blob("a", 999))
        assert has_room(cache)
        cache.get(Blob("b", 1))
        assert not has_room(cache)
        threading.Timer(0.1, cache.release, (first,)).start()
        began = time.monotonic()
        cache.wait_for_room(threading.Event())
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("error", [FetchError("timeout", "late"), KeyError("odd"), OSError(30, "full")])
def test_a_file_that_failed_is_let_go_and_asked_for_again(tmp_path: Path, error: Exception) -> None:
    blob = Blob("a", 600, error=error)
    with cache_of(tmp_path) as cache:
        for times in (1, 2):
            with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as raised:
                cache.get(blob)
            if isinstance(error, OSError):
                (folder,) = (tmp_path / "cache").iterdir()
                assert str(raised.value) == f"cannot write the cache '{folder}': full"
            assert blob.asked == times
            assert [path.name for path in (tmp_path / "cache").glob("run-*/*")] == ["lock"]
        blob.error = None
        path = cache.get(blob)
        cache.release(path)  # nobody else holds it
        cache.get(Blob("b", 600))
        assert not path.exists()


def test_who_waits_for_a_file_that_fails_is_told_too(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Waiting(Blob):
        def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
            began.set()
            go_on.wait(10)
            raise FetchError("timeout", "late")

    raised: list[str] = []

    def ask(cache: FileCache, blob: Blob) -> None:
        try:
            cache.get(blob)
        except FetchError as error:
            raised.append(str(error))

    with cache_of(tmp_path) as cache:
        blob = Waiting("a")
        threads = [threading.Thread(target=ask, args=(cache, blob)) for _ in range(2)]
        threads[0].start()
        began.wait(10)
        threads[1].start()
        threads[1].join(0.1)
        go_on.set()
        for thread in threads:
            thread.join(10)
    assert raised == ["late", "late"]


def test_names_of_cached_files(tmp_path: Path) -> None:
    with cache_of(tmp_path) as cache:
        names = [cache.get(Blob("a", suffix=suffix)).name for suffix in (".mp4",)]
        names += [
            cache.get(Blob(name, suffix=suffix)).name for name, suffix in [("b", ".é\0jpg"), ("\ud800", "." * 40)]
        ]
    assert [name[24:] for name in names] == [".mp4", ".jpg", "." * 16]
    assert len({name[:24] for name in names}) == 3


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llava-mini" / "fetched"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/llava-mini/fetched")
    (tmp_path / "file").touch()
    cache = FileCache(FetchOptions(cache_dir=tmp_path / "file"))
    with cache, pytest.raises(OutputError, match=f"^cannot write the cache '{tmp_path}/file': File exists$"):
        cache.get(Blob("a"))
    assert cache.stopped.is_set()


def test_folders_of_the_cache_that_are_not_ours_stay(tmp_path: Path) -> None:
    for name in ("run-new_1234", "other"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "cache" / "run-dead1234").mkdir(0o700)
    (tmp_path / "cache" / "run-dead1234" / "lock").touch()
    with cache_of(tmp_path) as cache:
        folder = cache.get(Blob("a")).parent
        names = {path.name for path in (tmp_path / "cache").iterdir()}
        assert names == {"run-new_1234", "other", folder.name}  # one without a lock is being made
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"run-new_1234", "other"}


@pytest.mark.parametrize("bounds", [{"timeout": 0.0}, {"timeout": float("inf")}, {"timeout": -1}, {"cache_bytes": 0}])
def test_bounds_that_are_none(bounds: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--fetch-timeout must be above 0 seconds and finite|--cache-size must be"):
        FetchOptions(**bounds)
    FetchOptions(timeout=0.1, cache_bytes=1)
    plain = FetchOptions()
    assert (plain.timeout, plain.stall, plain.retries, plain.backoff) == (600.0, 30.0, 3, 1.0)
    assert (plain.cache_dir, plain.cache_bytes) == (None, 10 * 2**30)
