"""The server of `llava-mini view`: what it refuses, what it gives, how it follows a run, and how it ends."""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from browser import wait_for
from view_rows import picture_rows, row, write_parquet

from llava_mini_cli.errors import OutputError
from llava_mini_cli.view import reading
from llava_mini_cli.view import serve as serve_module
from llava_mini_cli.view.media import MediaPlaces
from llava_mini_cli.view.serve import serve
from llava_mini_cli.view.server import application
from llava_mini_cli.view.sources import open_rows
from llava_mini_cli.view.table import RowTable

TOKEN = "a-token"
Answer = tuple[int, dict[str, str], bytes]


def ask(app: Any, path: str, *, method: str = "GET", host: str | None = "127.0.0.1:7000", **headers: str) -> Answer:
    """One request to the application, without a socket: status, headers and body."""
    import asyncio

    raw, _, query = path.partition("?")
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if host is not None:
        given.append((b"host", host.encode()))
    scope = {
        "type": "http", "method": method, "path": raw, "raw_path": raw.encode(), "query_string": query.encode(),
        "headers": given, "http_version": "1.1", "root_path": "", "scheme": "http",
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)  # nobody goes away
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
    start = sent[0]
    names = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return start["status"], names, b"".join(message.get("body", b"") for message in sent[1:])


class Served(NamedTuple):
    app: Any
    table: RowTable
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "clip.mp4").write_bytes(bytes(range(256)) * 8)
    (folder / "secret.mp4").write_bytes(b"secret")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    rows = [
        row(id=str(folder / "clip.mp4"), file_name="clip.mp4", media="video", prompt="Why?", text="Because."),
        row(id=str(folder / "page.html"), file_name="page.html", media="image", prompt="Why?", text="x"),
        row(id=str(folder / "gone.jpg"), file_name="gone.jpg", media="image", prompt="Why?", text="y"),
        row(id="https://example.org/a.jpg", file_name="a.jpg", media="image", prompt="Why?", text="z"),
        row(id="javascript:alert(1)", file_name="b.jpg", media="image", prompt="Why?", text="z"),
        *picture_rows(folder, 10, 5),
    ]
    write_parquet(rows, folder / "rows.parquet")
    with RowTable(open_rows(folder / "rows.parquet")) as table:
        table.refresh()
        yield Served(application(table, MediaPlaces(folder), "rows", TOKEN, 7000), table, folder)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:7001", "localhost.evil.example:7000", "", None]
)
def test_another_host_name_is_refused(served: Served, host: str | None) -> None:
    status, _, body = ask(served.app, f"/{TOKEN}/api/about", host=host)
    assert (status, body) == (403, b"another host name")
    assert ask(served.app, f"/{TOKEN}/api/about", host="LOCALHOST:7000")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/about", "/x/", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", f"//{TOKEN}/", f"/?{TOKEN}"]
)
def test_without_the_token_there_is_nothing(served: Served, path: str) -> None:
    assert ask(served.app, path)[::2] == (403, b"the address lacks its token")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_there_is_get_and_head_alone(served: Served, method: str) -> None:
    status, headers, _ = ask(served.app, f"/{TOKEN}/", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert ask(served.app, f"/{TOKEN}/", method="HEAD")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "medium/../../etc/passwd", "medium/%2e%2e/%2e%2e/etc/passwd", "../etc/passwd", "medium//etc/passwd", "medium/x",
        "medium/999", "medium/-1", "picture/999", "picture/0", "medium/1", "medium/2", "medium/3", "medium/4",
        "secret.mp4", "view.html", "page/view.js", "api", "api/rows/", "medium/18446744073709551617",
    ],
)  # fmt: skip
def test_nothing_is_served_that_no_row_has(served: Served, path: str) -> None:
    assert ask(served.app, f"/{TOKEN}/{path}")[0] == 404


def test_a_medium_comes_in_the_ranges_that_a_player_asks_for(served: Served) -> None:
    whole = (served.folder / "clip.mp4").read_bytes()
    status, headers, body = ask(served.app, f"/{TOKEN}/medium/0")
    assert (status, headers["content-type"], headers["accept-ranges"]) == (200, "video/mp4", "bytes")
    assert body == whole
    status, headers, body = ask(served.app, f"/{TOKEN}/medium/0", range="bytes=100-199")
    assert (status, headers["content-range"], body) == (206, f"bytes 100-199/{len(whole)}", whole[100:200])
    assert ask(served.app, f"/{TOKEN}/medium/0", range="bytes=9999-")[0] == 416
    assert ask(served.app, f"/{TOKEN}/medium/0", method="HEAD")[2] == b""


def test_no_answer_may_run_or_load_anything(served: Served) -> None:
    for path in ("", "view.js", "medium/0", "picture/6", "api/about", "nothing"):
        _, headers, _ = ask(served.app, f"/{TOKEN}/{path}")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert "sandbox" in ask(served.app, f"/{TOKEN}/medium/0")[1]["content-security-policy"]


def test_a_kept_picture_is_served_and_nothing_else_that_is_in_its_place(served: Served) -> None:
    status, headers, body = ask(served.app, f"/{TOKEN}/picture/6")
    assert (status, headers["content-type"], body[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")


def find(served: Served, query: str) -> dict[str, Any]:
    status, _, body = ask(served.app, f"/{TOKEN}/api/find?{query}")
    assert status == 200, body
    return json.loads(body)


def test_filters_are_values_and_never_sql(served: Served) -> None:
    for name in ("text", "file", "status", "question", "error", "label", "kind"):
        assert find(served, f"{name}={quote(chr(39) + ' OR 1=1 --')}")["rows"] == 0
    for query in ("sort=n%3B%20DROP%20TABLE%20rows", "group=path", "low=x", "high=", "low=1e999"):
        status = ask(served.app, f"/{TOKEN}/api/find?{query}")[0]
        assert status == (200 if query in ("high=", "low=1e999") else 400), query
    for query in ("from=-1&to=2", "from=0&to=501", "from=x", "version=y"):
        assert ask(served.app, f"/{TOKEN}/api/rows?{query}")[0] == 400
    assert find(served, "")["rows"] == 25


def test_rows_say_where_their_media_are(served: Served) -> None:
    rows = json.loads(ask(served.app, f"/{TOKEN}/api/rows?from=0&to=6")[2])
    told = [{name: one.get(name) for name in ("source", "link", "gone", "picture")} for one in rows]
    nothing = dict.fromkeys(("source", "link", "gone", "picture"))
    assert told == [
        nothing | {"source": "medium/0"}, nothing, nothing | {"gone": True}, nothing | {"link": "https://example.org/a.jpg"},
        nothing | {"gone": True}, nothing | {"gone": True},
    ]  # fmt: skip


# A run that goes on


def lines(path: Path, numbers: range) -> bytes:
    rows = (
        row(id=f"/m/{n}.jpg", file_name=f"{n}.jpg", media="image", prompt="Why?", text=f"text {n}") for n in numbers
    )
    return b"".join(json.dumps({k: v for k, v in one.items() if k != "thumbnail"}).encode() + b"\n" for one in rows)


def texts(table: RowTable) -> list[str]:
    return [text for (text,) in table.ask("SELECT text FROM rows ORDER BY n")]


def test_json_lines_are_followed_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written = lines(path, range(5))
    path.write_bytes(written[:-20])
    with RowTable(open_rows(path)) as table:
        assert table.refresh()
        assert texts(table) == [f"text {n}" for n in range(4)]
        assert not table.refresh()
        path.write_bytes(written + b"no row\n[1]\n" + lines(path, range(5, 6)))
        assert table.refresh()
        assert texts(table) == [f"text {n}" for n in range(6)]
        path.rename(tmp_path / "old")
        path.write_bytes(lines(path, range(2)))  # begun anew
        assert table.refresh()
        assert texts(table) == ["text 0", "text 1"]
        path.unlink()
        table.refresh()
        assert texts(table) == ["text 0", "text 1"]  # what was read stays
        assert list(table.unread) == [path]


def test_csv_is_followed_by_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    head, first, second = (
        "id,text,choice_probs\n",
        'a.jpg,"two\nlines, ""quoted""","{""x"": 0.25, ""y"": 0.75}"\n',
        "b.jpg,plain,\n",
    )
    with path.open("w", newline="") as file:
        file.write(head + first + second[:4])
    with RowTable(open_rows(path)) as table:
        table.refresh()
        assert table.ask("SELECT path, text, p FROM rows") == [("a.jpg", 'two\nlines, "quoted"', 0.75)]
        with path.open("a", newline="") as file:
            file.write(second[4:])
        table.refresh()
        assert table.ask("SELECT path, text, p FROM rows ORDER BY n")[1] == ("b.jpg", "plain", None)


def test_parts_of_parquet_come_and_become_one_file(tmp_path: Path) -> None:
    parts, path = tmp_path / "rows.parquet.parts", tmp_path / "rows.parquet"
    parts.mkdir()
    rows = picture_rows(tmp_path, 4, 0)
    write_parquet(rows[:2], parts / "part-1.parquet")
    with RowTable(open_rows(path)) as table:
        table.refresh()
        assert len(texts(table)) == 2
        write_parquet(rows[2:], parts / "part-2.parquet")
        (parts / ".part-3.parquet").write_bytes(b"unfinished")
        table.refresh()
        assert texts(table) == [one["text"] for one in rows]
        part, place = table.ask("SELECT part, place FROM rows WHERE n = 2")[0]
        assert table.picture(part, place) == rows[2]["thumbnail"]
        write_parquet(rows, path)
        for one in parts.iterdir():
            one.unlink()
        table.refresh()
        assert texts(table) == [one["text"] for one in rows]
        assert table.picture(part, place) == rows[2]["thumbnail"]  # kept, although its file is gone
        assert table.unread == {}


def test_the_first_rows_of_a_large_file_are_there_before_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_ROWS", 3)
    rows = picture_rows(tmp_path, 5, 0)
    path = write_parquet(rows, tmp_path / "rows.parquet")
    with RowTable(open_rows(path)) as table:
        seen = list[int]()
        insert = reading.Reader._insert

        def watched(self: reading.Reader, *arguments: Any) -> None:
            insert(self, *arguments)
            seen.append(len(texts(table)))

        monkeypatch.setattr(reading.Reader, "_insert", watched)
        table.refresh()
        assert seen == [3, 10]
        assert texts(table) == [one["text"] for one in rows]
        assert [place for (place,) in table.ask("SELECT place FROM rows ORDER BY n")] == list(range(10))
        assert table.picture(0, 8) == rows[8]["thumbnail"]


def test_files_are_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "LOOKS", 0.2)
    read_once, over, looks = Event(), Event(), list[float]()

    class Table:
        def refresh(self) -> None:
            assert read_once.is_set() == bool(looks)
            looks.append(time.monotonic())
            if len(looks) == 3:
                over.set()

    serve_module._look_again(Table(), read_once, over)  # type: ignore[arg-type]
    assert len(looks) == 3
    assert all(second - first > 0.19 for first, second in pairwise(looks))


# The process

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heard() -> None:
    """Has signals end a process also where the tests ignore them: begun by a script in the background, or by nohup."""
    for number in ENDS:
        signal.signal(number, signal.SIG_DFL)


def start(path: Path, *arguments: str) -> "tuple[subprocess.Popen[str], str]":
    command = [sys.executable, "-m", "llava_mini_cli", "view", str(path), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", ENDS)
def test_it_ends_with_ctrl_c_and_with_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(path, range(3)))
    process, address = start(path)
    url = urlsplit(address)
    assert url.hostname == "127.0.0.1"
    with closing(http.client.HTTPConnection(url.netloc, timeout=10)) as connection:
        wait_for(lambda: _rows_at(connection, url.path) == 3, 10, "three rows")
        begun = time.monotonic()
        process.send_signal(number)  # with a connection that stays open
        _, said = process.communicate(timeout=10)
    assert time.monotonic() - begun < 5
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "until Ctrl-C" in said
    with closing(http.client.HTTPConnection(url.netloc, timeout=1)) as connection, pytest.raises(ConnectionError):
        connection.request("GET", url.path)


def _rows_at(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", f"{path}api/about")
    return json.loads(connection.getresponse().read())["rows"]


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(path, range(3)))
    with socket.socket() as taken, RowTable(open_rows(path)) as table:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"cannot serve at port {port}: address already in use"):
            serve(table, MediaPlaces(tmp_path), "rows", port, lambda address: None)
