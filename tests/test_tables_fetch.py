"""Downloads of what a table names: redirects, passwords, proxies, and no file larger than the bound."""

import os
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from http_server import Server, serve
from input_doubles import jobs_of

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch import download
from llava_mini_cli.formats.fetch.download import Download, download_of
from llava_mini_cli.formats.fetch.embedded import Embedded, Member, OpenTar
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.piped import Piped
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.source import FetchOptions, Source
from llava_mini_cli.pipelines.fetch import FetchAhead

MB = 1_000_000


@pytest.fixture
def server() -> Iterator[Server]:
    with serve({"a.mp4": b"4"}) as running:
        yield running


def bounds(tmp_path: Path, **changes: object) -> FetchOptions:
    given = {"timeout": 20.0, "stall": 5.0, "backoff": 0.01, "retries": 1, "cache_dir": tmp_path / "cache", **changes}
    return FetchOptions(**given)  # pyright: ignore[reportArgumentType]


def fetch(source: Source, options: FetchOptions) -> bytes:
    with FileCache(options) as cache:
        return cache.get(source).read_bytes()


def refusal(source: Source, options: FetchOptions) -> tuple[str, str]:
    """The kind and the words of why a source cannot be had; nothing of it stays on the disk."""
    with FileCache(options) as cache:
        with pytest.raises(FetchError) as error:
            cache.get(source)
        left = {path.name for path in (options.cache_dir or Path()).glob("run-*/*") if path.suffix != ".zip"}
        assert left == {"lock"}
    return error.value.kind, str(error.value)


# Where a request goes.


def local_name(server: Server) -> str:
    """The same server under another name."""
    return server.url.replace("127.0.0.1", "localhost")


def test_every_redirect_of_what_a_table_names_is_looked_at(server: Server, tmp_path: Path) -> None:
    listed = Download(f"{server.url}/to/{quote(local_name(server), safe='')}%2Fa.mp4", is_listed=True)
    only_here = bounds(tmp_path, hosts=("127.0.0.1",))
    assert refusal(listed, only_here) == ("refused", "it leads on to 'localhost', which is not among --hosts")
    assert len(server.asked) == 1
    assert fetch(listed, bounds(tmp_path, hosts=("127.0.0.1", "local*"))) == b"4"
    assert fetch(Download(f"{server.url}/move/a.mp4", is_listed=True), only_here) == b"4"


def test_a_host_that_is_left_out_is_never_asked(server: Server, tmp_path: Path) -> None:
    for name in (f"{server.url}/a.mp4", f"{server.url.replace('//', '//good.example@')}/a.mp4"):
        listed = Download(name, is_listed=True)
        assert refusal(listed, bounds(tmp_path, hosts=("good.example",))) == (
            "refused",
            "'127.0.0.1' is not among --hosts",
        )
    assert server.asked == []


def test_what_the_user_typed_may_begin_anywhere_but_not_lead_on_to_anywhere(server: Server, tmp_path: Path) -> None:
    elsewhere = bounds(tmp_path, hosts=("good.example",))
    assert fetch(Download(f"{server.url}/a.mp4"), elsewhere) == b"4"
    assert refusal(Download(f"{server.url}/move/a.mp4"), elsewhere)[0] == "refused"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file:///etc/passwd", "it leads on to file://, which is no web server"),
        ("ftp://127.0.0.1/a", "it leads on to ftp://, which is no web server"),
        ("http://[x/a", "it leads on to what is no valid URL"),
    ],
)
def test_redirects_that_lead_to_no_web_server(server: Server, tmp_path: Path, place: str, words: str) -> None:
    kind, said = refusal(Download(f"{server.url}/to/{quote(place, safe='')}", is_listed=True), bounds(tmp_path))
    assert kind == "unreadable"
    assert said.startswith(words)


@pytest.mark.parametrize("status", ["301", "", "303", "307", "308"])
def test_every_kind_of_redirect_is_followed(server: Server, tmp_path: Path, status: str) -> None:
    assert fetch(Download(f"{server.url}/to{status}/{quote('/a.mp4', safe='')}"), bounds(tmp_path)) == b"4"


def test_redirects_without_end(server: Server, tmp_path: Path) -> None:
    assert refusal(Download(f"{server.url}/loop/a", is_listed=True), bounds(tmp_path)) == (
        "unreadable",
        "more than 10 redirects",
    )
    assert len(server.asked) == 11


BASIC = "Basic bWU6cHc="  # me:pw


def test_passwords_of_the_user_go_to_hosts_that_he_typed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password pw\ndefault login me password pw\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    url = f"{server.url}/a.mp4"
    for source, options in [
        (Download(url), bounds(tmp_path)),
        (Download(url, is_listed=True), bounds(tmp_path)),
        (Download(url, is_listed=True), bounds(tmp_path, netrc=True)),
        (Download(url.replace("://", "://you:pw@"), is_listed=True), bounds(tmp_path)),
    ]:
        fetch(source, options)
    assert server.passwords == [BASIC, None, BASIC, "Basic eW91OnB3"]


def test_a_password_in_a_url_goes_no_further_than_its_server(server: Server, tmp_path: Path) -> None:
    mine = server.url.replace("://", "://me:pw@")
    for target in (f"{server.url}/a.mp4", "/a.mp4", f"{local_name(server)}/a.mp4"):
        fetch(Download(f"{mine}/to/{quote(target, safe='')}", is_listed=True), bounds(tmp_path))
    assert server.passwords == [BASIC, BASIC, BASIC, BASIC, BASIC, None]


def test_the_proxy_of_the_environment_is_used_also_without_netrc(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("://", "://me:pw@"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(Download("http://nowhere.invalid/x.mp4", is_listed=True), bounds(tmp_path, hosts=("nowhere.invalid",)))
    fetch(Download(f"{server.url}/a.mp4", is_listed=True), bounds(tmp_path))
    assert server.asked == ["http://nowhere.invalid/x.mp4", "a.mp4"]
    assert server.passwords == [BASIC, None]


def test_servers_that_are_not_there(tmp_path: Path) -> None:
    for url in ("http://[::1]:9/a", "http://127.0.0.1:9/a", "http://nowhere.invalid/a"):
        assert refusal(Download(url, is_listed=True), bounds(tmp_path))[0] == "unreachable"


# Which schemes.


@pytest.mark.parametrize(
    "url",
    [
        "memory://a/b.jpg", "dir://a", "reference://a", "github://a:b@/c", "jupyter://a", "dask://a", "arrow_hdfs://a",
        "hdfs:///etc/a.jpg", "libarchive://a::/b", "tar://a.jpg::file:///b.tar", "simplecache://a", "data://a", "x://a",
        "zip://a.jpg", "zip://::file:///a.zip", "s3://a/b::file:///etc/passwd", "ftp://a/b::memory://c",
        "zip://a::zip://b::zip://c::zip://d::zip://e::/f.zip", "async_wrapper://a", "git://a", "generic://a",
    ],
)  # fmt: skip
def test_schemes_that_only_a_person_may_name(tmp_path: Path, url: str) -> None:
    kind, words = refusal(download_of(url), bounds(tmp_path))
    assert kind == "refused"
    assert words.startswith(f"{url.partition(':')[0]}:// is not among what") or "zip://FILE::ARCHIVE" in words


def test_a_missing_package_is_a_row_of_a_table_and_the_end_of_a_run_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    kind, words = refusal(download_of("s3://a/b.jpg"), bounds(tmp_path))
    assert (kind, words) == (
        "unreadable",
        "reading s3:// needs a package that is not installed: pip install 'llava-mini-cli[remote]'",
    )
    with pytest.raises(UsageError, match="reading s3://"):
        fetch(Download("s3://a/b.jpg"), bounds(tmp_path))


# How much.


@pytest.mark.parametrize("manner", ["endless", "packed", "lie"])
@pytest.mark.parametrize("is_listed", [False, True])
def test_no_download_is_larger_than_the_cache(server: Server, tmp_path: Path, manner: str, is_listed: bool) -> None:
    source = Download(f"{server.url}/{manner}/a", is_listed)
    kind, words = refusal(source, bounds(tmp_path, cache_bytes=2 * MB))
    announced = ": 10000000000000 bytes are announced" if manner == "lie" else ""
    assert (kind, words) == ("too_large", f"more than --cache-size 2000000 bytes{announced}")
    smaller = bounds(tmp_path, cache_bytes=2 * MB, max_file_bytes=MB)
    assert refusal(source, smaller)[1] == f"more than --max-file-size 1000000 bytes{announced}"
    assert len(server.asked) == 2  # it is not tried again


def test_a_file_of_exactly_the_bound_is_taken(server: Server, tmp_path: Path) -> None:
    server.files["big"] = b"z" * MB
    source = Download(f"{server.url}/big")
    assert len(fetch(source, bounds(tmp_path, max_file_bytes=MB))) == MB
    assert refusal(source, bounds(tmp_path, max_file_bytes=MB - 1))[0] == "too_large"
    assert len(fetch(Download(f"{server.url}/packed/a"), bounds(tmp_path, max_file_bytes=3 * MB))) == 3 * MB


def zipped(**members: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_file_in_a_zip_is_unpacked_up_to_the_bound(server: Server, tmp_path: Path) -> None:
    server.files["z.zip"] = packed = zipped(bomb=bytes(3 * MB), small=b"here")
    (tmp_path / "z.zip").write_bytes(packed)
    options = bounds(tmp_path, max_file_bytes=MB)
    for archive in (f"{server.url}/z.zip", f"file://{tmp_path}/z.zip", f"{tmp_path}/z.zip"):
        assert fetch(download_of(f"zip://small::{archive}"), options) == b"here"
        assert refusal(download_of(f"zip://bomb::{archive}"), options)[0] == "too_large"
        assert refusal(download_of(f"zip://gone::{archive}"), options) == ("not_found", "no 'gone' in the zip archive")
    lying = packed.replace((3 * MB).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    assert lying != packed
    (tmp_path / "z.zip").write_bytes(lying)
    assert refusal(download_of(f"zip://bomb::{tmp_path}/z.zip"), options)[0] == "corrupt"


def test_an_archive_is_fetched_once_for_its_files_and_may_be_as_large_as_the_cache(
    server: Server, tmp_path: Path
) -> None:
    server.files["z.zip"] = data = zipped(a=os.urandom(1000), b=b"2")
    with FileCache(bounds(tmp_path, cache_bytes=len(data))) as cache:
        paths = [cache.get(download_of(f"zip://{name}::{server.url}/z.zip")) for name in "ab"]
        assert paths[1].read_bytes() == b"2"
        assert server.asked == ["z.zip"] * 2  # it had to make room
    with FileCache(bounds(tmp_path)) as cache:
        paths = [cache.get(download_of(f"zip://{name}::{server.url}/z.zip")) for name in "ab"]
        assert server.asked == ["z.zip"] * 3
    nested = zipped(**{"in.zip": data})
    server.files["n.zip"] = nested
    assert fetch(download_of(f"zip://b::zip://in.zip::{server.url}/n.zip"), bounds(tmp_path)) == b"2"


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"no archive", "corrupt"), (b"PK\5\6" + b"\xff" * 18, "corrupt"), (b"", "corrupt")],
)
def test_what_is_no_zip(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "z.zip").write_bytes(data)
    assert refusal(download_of(f"zip://a::{tmp_path}/z.zip"), bounds(tmp_path))[0] == kind


def test_a_pipe_in_the_place_of_a_zip_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "z.zip")
    assert refusal(download_of(f"zip://a::{tmp_path}/z.zip"), bounds(tmp_path)) == (
        "unreadable",
        "not a regular file",
    )
    assert refusal(download_of(f"zip://a::{tmp_path}/gone.zip"), bounds(tmp_path))[0] == "not_found"


def test_no_other_way_onto_the_disk_is_larger_than_the_bound(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 101)
    reader, writer = os.pipe()
    os.write(writer, b"x" * 101)
    os.close(writer)
    options = bounds(tmp_path, max_file_bytes=100)
    for source in (
        Embedded("a", ".jpg", b"x" * 101),
        Member("b", ".jpg", OpenTar(tmp_path / "a.tar"), 0, 101),
        Piped(f"/dev/fd/{reader}"),
    ):
        kind, words = refusal(source, options)
        assert kind == "too_large"
        assert words.startswith("more than --max-file-size 100 bytes")
    os.close(reader)
    assert fetch(Embedded("a", ".jpg", b"x" * 100), options) == b"x" * 100


def most_on_disk(folder: Path, stop: threading.Event) -> int:
    """The most bytes of files that were there at one time."""
    most = 0
    while not stop.wait(0.002):
        size = 0
        for path in folder.glob("run-*/*"):
            try:
                size += path.stat().st_size
            except OSError:
                continue
        most = max(most, size)
    return most


def test_downloads_at_once_stay_within_the_bound_together_and_all_arrive(server: Server, tmp_path: Path) -> None:
    server.files |= {f"m{number}": bytes([number]) * 700_000 for number in range(12)}
    urls = [f"{server.url}/{'slow/' if number == 0 else ''}m{number}" for number in range(12)]
    urls[3:3] = [f"{server.url}/endless/a", f"{server.url}/packed/b"]
    options = bounds(tmp_path, cache_bytes=2 * MB)
    stop = threading.Event()
    jobs = [Job(url, url, (), source=Download(url, is_listed=True)) for url in urls]
    with ThreadPoolExecutor(1) as watching, FileCache(options) as cache, FetchAhead(jobs, cache) as ahead:
        most = watching.submit(most_on_disk, tmp_path / "cache", stop)
        sizes: dict[str, int] = {}
        try:
            for job in ahead:
                time.sleep(0.01)
                sizes[job.path] = Path(job.file).stat().st_size if job.fault is None else -1
                assert job.fault is None or job.fault.kind == "too_large"
                if job.local is not None:
                    cache.release(Path(job.local))
        finally:
            stop.set()
        assert 700_000 <= most.result() <= 2 * MB
    assert sizes == {url: -1 if "endless" in url or "packed" in url else 700_000 for url in urls}


def test_a_file_that_waits_for_room_is_overtaken_by_those_that_take_it(tmp_path: Path) -> None:
    """The first file comes when the others are there already, and there is no room for it until they are taken."""
    late = threading.Event()

    class Late(Embedded):
        def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
            late.wait(20)
            super().write_to(path, options, stopped)

    sources = [Late("a", ".jpg", bytes(60)), *(Embedded(name, ".jpg", bytes(40)) for name in "bc")]
    jobs = [Job(source.name, source.name, (), source=source) for source in sources]
    with FileCache(bounds(tmp_path, cache_bytes=100)) as cache, FetchAhead(jobs, cache) as ahead:
        while len(list((tmp_path / "cache").glob("run-*/*.jpg"))) < 2:
            time.sleep(0.01)
        late.set()
        taken: list[str] = []
        for job in ahead:
            taken.append(job.path)
            cache.release(Path(job.file))
    assert taken == ["b", "a", "c"] or taken == ["b", "c", "a"]


def test_a_run_that_ends_does_not_wait_for_room(tmp_path: Path) -> None:
    with FileCache(bounds(tmp_path, cache_bytes=100)) as cache:
        cache.get(Embedded("a", "", bytes(100)))
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(cache.get, Embedded("b", "", bytes(1)))
            while not cache.lacks_room:
                time.sleep(0.01)
            cache.stopped.set()
            cache.wake()
            with pytest.raises(FetchError, match="the run has stopped"):
                waiting.result(timeout=20)
    assert list((tmp_path / "cache").iterdir()) == []


# What stands behind tables and lists.


def test_shards_and_files_of_a_list_and_of_a_remote_table_are_asked_of_hosts_alone(
    server: Server, tmp_path: Path
) -> None:
    server.files |= {"t.csv": b"path\na.mp4\n", "s.tar": bytes(10240)}
    (tmp_path / "list").write_text(f"{server.url}/s.tar\n{server.url}/a.mp4\n")
    for hosts, kinds in ((("good.example",), ["refused"] * 3), (("127.*",), [None] * 2)):
        options = bounds(tmp_path, hosts=hosts)
        listed = jobs_of(options=InputOptions(files_from=str(tmp_path / "list")), fetch=options)
        jobs = [*listed, *jobs_of(f"{server.url}/t.csv", fetch=options)]  # the table itself was typed
        with FileCache(options) as cache, FetchAhead(jobs, cache) as ahead:
            assert [job.fault and job.fault.kind for job in ahead] == kinds
    assert server.asked == ["t.csv", "s.tar", "t.csv", "a.mp4"]


def test_a_shard_without_end_is_a_row(server: Server, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{server.url}/endless/s.tar\n")
    options = bounds(tmp_path, max_file_bytes=MB)
    (job,) = jobs_of(options=InputOptions(files_from=str(tmp_path / "list")), fetch=options)
    assert job.fault == ("fetch", "too_large", "more than --max-file-size 1000000 bytes")
    with pytest.raises(UsageError, match=r"cannot read the table '.*': more than --max-file-size 1000000 bytes"):
        jobs_of(f"{server.url}/endless/t.csv", fetch=options)


class Dripping:
    """A filesystem that is asked for a file and never gives it, in a thread of its own."""

    async_impl = False

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def get_file(self, remote: str, path: str, callback: object) -> None:
        self.let_go.wait(60)


def test_a_server_that_never_lets_go_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Dripping()
    options = bounds(tmp_path, timeout=0.3)
    for opening in (lambda url, stall, client: (store, "a"), lambda url, stall, client: store.let_go.wait(60)):
        monkeypatch.setattr(download, "open_filesystem", opening)
        began = time.monotonic()
        assert refusal(Download("ftp://a/b", is_listed=True), options) == (
            "timeout",
            "not here after 0.3 s (--fetch-timeout)",
        )
        assert time.monotonic() - began < 20
    store.let_go.set()
