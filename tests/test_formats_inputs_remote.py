"""URLs: downloads from servers good and bad, the bounded cache, remote tables, credentials that nobody sees."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
from http_server import Server, serve
from hypothesis import given
from hypothesis import strategies as st
from input_doubles import asked, inputs, jobs_of

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch.download import Download
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.urls import is_remote, local_path, shown, without_signature
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Job, Prompt
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.pipelines.fetch import FETCHING, MOST_AHEAD, FetchAhead


@pytest.fixture
def server() -> Iterator[Server]:
    with serve({"a.mp4": b"4", "b.jpg": b"1", "big": b"z" * 300_000}) as running:
        yield running


def quick(tmp_path: Path, **changes: float) -> FetchOptions:
    return FetchOptions(**({"timeout": 20.0, "stall": 5.0, "backoff": 0.01} | changes), cache_dir=tmp_path / "cache")  # pyright: ignore


def fetch(url: str, options: FetchOptions) -> bytes:
    with FileCache(options) as cache:
        return cache.get(Download(url)).read_bytes()


def test_a_file_is_downloaded_whole(server: Server, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/big", quick(tmp_path)) == b"z" * 300_000
    assert fetch(f"{server.url}/move/move/a.mp4", quick(tmp_path)) == b"4"  # redirects
    assert os.listdir(tmp_path / "cache") == []


def test_failures_that_pass_are_tried_again(server: Server, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/flaky/a.mp4", quick(tmp_path)) == b"4"
    assert server.asked == ["flaky/a.mp4"] * 3


@pytest.mark.parametrize(
    ("path", "kind", "words", "attempts"),
    [
        ("404/a.mp4", "not_found", "no such file on the server", 1),
        ("403/a.mp4", "unreadable", r"the server refuses it \(403\)", 1),
        ("418/a.mp4", "unreadable", "the server answers 418", 1),
        ("500/a.mp4", "unreachable", "the server answers 500", 4),
        ("429/a.mp4", "unreachable", "the server answers 429", 4),
        ("short/big", "truncated", "the server sent less than it announced", 4),
    ],
)
def test_what_cannot_be_had(server: Server, tmp_path: Path, path: str, kind: str, words: str, attempts: int) -> None:
    with pytest.raises(FetchError, match=words) as error:
        fetch(f"{server.url}/{path}", quick(tmp_path))
    assert error.value.kind == kind
    assert len(server.asked) == attempts
    assert os.listdir(tmp_path / "cache") == []  # nothing half-written stays


def test_a_server_that_stalls_is_given_up(server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"nothing for 0\.5 s|does not answer") as error:
        fetch(f"{server.url}/stall/big", quick(tmp_path, stall=0.5, retries=1))
    assert error.value.kind == "unreachable"
    assert time.monotonic() - began < 15
    assert len(server.asked) == 2


def test_a_server_that_drips_meets_the_deadline(server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"not here after 1 s \(--fetch-timeout\)") as error:
        fetch(f"{server.url}/drip/big", quick(tmp_path, timeout=1.0))
    assert error.value.kind == "timeout"
    assert time.monotonic() - began < 15


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as error:
        fetch("http://user:secret@127.0.0.1:9/a.mp4?token=secret", quick(tmp_path, retries=1))
    assert error.value.kind == "unreachable"
    assert "secret" not in str(error.value)
    with pytest.raises(FetchError, match="nope:// is no protocol that fsspec knows"):
        fetch("nope://x/a.mp4", quick(tmp_path))


def test_a_full_disk_is_of_the_moment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Download, "write_to", full)
    with pytest.raises(FetchError, match=r"cannot write the cache '.*': No space left on device") as error:
        fetch(f"{server.url}/a.mp4", quick(tmp_path))
    assert error.value.kind == "no_resources"


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UsageError, match=r"pip install 'llava-mini-cli\[remote\]'"):
        fetch("https://example.invalid/a.mp4", quick(tmp_path))


@pytest.mark.parametrize(
    ("url", "printed", "stands_for"),
    [
        ("https://a.b/c.mp4", "https://a.b/c.mp4", "https://a.b/c.mp4"),
        ("https://me:pw@a.b:8/c.mp4", "https://a.b:8/c.mp4", "https://a.b:8/c.mp4"),
        ("https://a.b/c?id=7&X-Amz-Signature=s&X-Amz-Date=d", "https://a.b/c?…", "https://a.b/c?id=7"),
        ("https://a.b/c?sig=s&se=2026", "https://a.b/c?…", "https://a.b/c"),
        ("s3://bucket/a b.mp4", "s3://bucket/a b.mp4", "s3://bucket/a b.mp4"),
    ],
)
def test_urls_without_credentials(url: str, printed: str, stands_for: str) -> None:
    assert is_remote(url)
    assert shown(url) == printed
    assert without_signature(url) == stands_for


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_paths_are_no_urls(text: str) -> None:
    if "://" not in text:
        assert not is_remote(text)
        assert shown(text) == local_path(text) == text
    assert local_path("file:///x/a%20b.mp4") == "/x/a b.mp4"


@dataclass(eq=False)
class Bytes:
    """A source of so many bytes that counts how often it is asked."""

    name: str
    size: int
    suffix: str = ".bin"
    written: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
        self.written += 1
        path.write_bytes(b"x" * self.size)


def test_the_oldest_file_that_nobody_uses_goes_first(tmp_path: Path) -> None:
    first, second, third = (Bytes(name, 400) for name in "abc")
    with FileCache(FetchOptions(cache_dir=tmp_path, cache_bytes=1000)) as cache:
        a, b = cache.get(first), cache.get(second)
        cache.release(b)
        c = cache.get(third)
        assert (a.exists(), b.exists(), c.exists()) == (True, False, True)  # a is older, but in use
        assert cache.get(first) == a
        assert first.written == 1
        cache.release(a)
        cache.release(a)
        cache.release(c)
        assert cache.get(second).exists()
        assert (a.exists(), second.written) == (False, 2)
    assert os.listdir(tmp_path) == []


def test_several_threads_fetch_a_file_once(tmp_path: Path) -> None:
    source = Bytes("a", 10)
    with FileCache(FetchOptions(cache_dir=tmp_path)) as cache:
        threads = [threading.Thread(target=cache.get, args=(source,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert source.written == 1


def test_the_folder_of_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from llava_mini_cli.formats.fetch.file_cache import FileCache\n"
        "from llava_mini_cli.formats.source import FetchOptions\n"
        "from llava_mini_cli.formats.fetch.embedded import Embedded\n"
        "cache = FileCache(FetchOptions(cache_dir=Path(sys.argv[1])))\n"
        "cache.get(Embedded('a', '.jpg', b'x'))\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with FileCache(FetchOptions(cache_dir=tmp_path)) as alive:
        here = alive.get(Bytes("b", 1))
        assert len(os.listdir(tmp_path)) == 1
        with FileCache(FetchOptions(cache_dir=tmp_path)) as other:
            other.get(Bytes("c", 1))
            assert here.exists()  # a run that lives is left alone


def test_downloads_overlap_and_keep_their_order(server: Server, tmp_path: Path) -> None:
    urls = [f"{server.url}/slow/{number}.jpg" for number in range(12)]
    urls.insert(3, f"{server.url}/404/x.jpg")
    urls.insert(5, "here.jpg")
    cache = FileCache(quick(tmp_path))
    with inputs(*urls, fetch=quick(tmp_path)) as opened, cache, FetchAhead(opened.jobs, cache) as ahead:
        jobs = list(ahead)
    assert [job.path for job in jobs] == urls
    assert [job.fault and job.fault[:2] for job in jobs] == [
        ("fetch", "not_found") if number == 3 else None for number in range(14)
    ]
    assert 2 <= server.most_at_once <= FETCHING
    assert jobs[5].local is None
    assert all(job.local is not None and job.file == job.local for job in jobs if "slow" in job.path)


def test_no_more_is_read_ahead_than_allowed_and_no_download_begins_without_room(tmp_path: Path) -> None:
    sources = [Bytes(f"{number}", 600) for number in range(40)]
    cache = FileCache(FetchOptions(cache_dir=tmp_path, cache_bytes=1000))
    with cache, FetchAhead([Job(s.name, s.name, (), source=s) for s in sources], cache) as ahead:
        time.sleep(0.5)
        assert sum(source.written for source in sources) <= 2 + FETCHING
        most = 0
        for job in ahead:
            most = max(most, sum(file.stat().st_size for file in tmp_path.glob("run-*/*.bin")))
            cache.release(Path(job.file))
        assert sum(source.written for source in sources) == 40
        assert most <= 1000 + FETCHING * 600
    local = iter([Job(f"{number}", "", ()) for number in range(1000)])
    with FileCache(FetchOptions(cache_dir=tmp_path)) as cache, FetchAhead(local, cache) as ahead:
        next(ahead)
        time.sleep(0.2)
        assert int(next(local).path) <= MOST_AHEAD + 3


def test_a_mistake_in_the_inputs_is_raised_where_they_are_used(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield Job("a", "a", ())
        raise UsageError("broken list")

    with FileCache(FetchOptions(cache_dir=tmp_path)) as cache, FetchAhead(jobs(), cache) as ahead:
        assert next(ahead).path == "a"
        with pytest.raises(UsageError, match="broken list"):
            next(ahead)


def test_leaving_early_stops_downloads(server: Server, tmp_path: Path) -> None:
    with inputs(*[f"{server.url}/stall/{number}" for number in range(9)], fetch=quick(tmp_path)) as opened:
        began = time.monotonic()
        with FileCache(quick(tmp_path, stall=60.0)) as cache, FetchAhead(opened.jobs, cache):
            while not server.asked:
                time.sleep(0.01)
        assert time.monotonic() - began < 15


def test_a_remote_table_and_what_is_in_it(server: Server, tmp_path: Path) -> None:
    table = f"path,name\nx/a.mp4,Ann\n{server.url}/b.jpg?id=1&sig=s,Bob\n/here.jpg,Eve\n"
    server.files["t/people.csv"] = table.encode()
    url = f"{server.url}/t/people.csv?sig=secret"
    jobs = jobs_of(url, prompts=[Prompt("{name}?")], fetch=quick(tmp_path))
    assert asked(jobs) == [
        (f"{server.url}/t/x/a.mp4", ["Ann?"]),
        (f"{server.url}/b.jpg?id=1&sig=s", ["Bob?"]),
        ("/here.jpg", ["Eve?"]),
    ]
    assert [job.file_name for job in jobs] == ["x/a.mp4", "b.jpg", "here.jpg"]
    assert [job.item for job in jobs] == [
        (f"{server.url}/t/x/a.mp4", None, None), (f"{server.url}/b.jpg?id=1", None, None), None,
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"cannot read the table 'http[^?]*404/t.csv\?…': no such file"):
        jobs_of(f"{server.url}/404/t.csv?sig=s", fetch=quick(tmp_path))


def test_folders_and_globs_of_a_store_that_lists(tmp_path: Path) -> None:
    """fsspec's own store in memory stands for s3, gs and hf."""
    store = fsspec.filesystem("memory")
    for name in ("/b/x/2.mp4", "/b/1.jpg", "/b/x/y/3.jpg", "/b/notes.txt"):
        store.pipe(name, b"1")
    try:
        jobs = jobs_of("memory://b/")
        assert [(job.path, job.file_name) for job in jobs] == [
            ("memory:///b/1.jpg", "1.jpg"), ("memory:///b/x/2.mp4", "x/2.mp4"), ("memory:///b/x/y/3.jpg", "x/y/3.jpg"),
        ]  # fmt: skip
        assert [job.file_name for job in jobs_of("memory://b/", options=InputOptions(recursive=False))] == ["1.jpg"]
        assert [job.file_name for job in jobs_of("memory://b/**/*.jpg")] == ["1.jpg", "x/y/3.jpg"]
        assert fetch(jobs[0].path, quick(tmp_path)) == b"1"
        with pytest.raises(FetchError) as error:
            fetch("memory://b/gone.jpg", quick(tmp_path))
        assert error.value.kind == "not_found"
        with pytest.raises(UsageError, match="no images or videos match 'memory://b/z/"):
            jobs_of("memory://b/z/*.jpg")
    finally:
        store.rm("/b", recursive=True)


def test_a_run_over_urls(server: Server, tmp_path: Path) -> None:
    """Through the command line: rows with the URL as given, messages without its credentials, a cache left empty."""
    doubles = str(Path(__file__).parent / "cli_doubles.py")
    host = server.url.removeprefix("http://")
    urls = [f"http://me:secret@{host}/a.mp4?sig=secret", f"http://me:secret@{host}/404/b.mp4?sig=secret"]
    command = [sys.executable, doubles, "ask", *urls, "-p", "What?", "--cache-dir", str(tmp_path / "cache"), "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    rows = sorted(done.stdout.splitlines(), key=lambda line: '"error"' in line)
    assert len(rows) == 2
    assert all(url in done.stdout for url in urls)
    assert '"text": "What? [4]"' in done.stdout
    assert '"error_type": "not_found", "error_stage": "fetch"' in done.stdout
    assert "secret" not in done.stderr
    assert f"http://{host}/404/b.mp4" in done.stderr
    assert os.listdir(tmp_path / "cache") == []
