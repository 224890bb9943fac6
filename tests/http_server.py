"""A server on this machine with good and bad manners, one for each first part of a path."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Server:
    """What it was asked, and what it holds."""

    url: str
    files: dict[str, bytes]  # by path without its leading slash
    asked: list[str] = field(default_factory=list[str])
    passwords: list[str | None] = field(default_factory=list[str | None])  # that were sent along
    most_at_once: int = 0
    busy: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)  # ends what stalls


class QuietHandler(BaseHTTPRequestHandler):
    """A handler of requests that says nothing on standard error."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(handler: type[QuietHandler]) -> Iterator[str]:
    """The address of a server on this machine that has requests answered by `handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Server]:
    """Serves `files`; `/404/`, `/403/`, `/500/`, `/flaky/`, `/stall/`, `/short/`, `/drip/` and `/move/` misbehave.

    `/to/URL` (or `/to301/URL`) leads on to the URL, `/endless/` has no end, `/packed/` is a hundred times what it
    looks like, `/lie/` announces 10 TB, and `/loop/` leads on to itself.
    """
    lock = threading.Lock()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            with lock:
                server.asked.append(path)
                server.passwords.append(self.headers.get("Authorization") or self.headers.get("Proxy-Authorization"))
                server.busy += 1
                server.most_at_once = max(server.most_at_once, server.busy)
            try:
                self.answer(path)
            except OSError:  # the client went away
                self.close_connection = True
            finally:
                with lock:
                    server.busy -= 1

        def answer(self, path: str) -> None:
            manner, _, rest = path.partition("/")
            whole, rest = path.partition("?")[0], rest.partition("?")[0]
            body = server.files.get(whole) or server.files.get(rest) or b"x" * 100_000
            if manner.isdigit():
                self.head(int(manner), 0)
            elif manner == "flaky" and server.asked.count(path) < 3:
                self.head(503, 0)
            elif manner == "move":
                self.send_response(302)
                self.send_header("Location", f"{server.url}/{rest}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif manner in ("to", "to301", "to303", "to307", "to308", "loop"):
                self.send_response(int(manner.removeprefix("to")) if manner[2:].isdigit() else 302)
                self.send_header("Location", f"/{path}" if manner == "loop" else unquote(rest))
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif manner == "endless":
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                while not server.let_go.is_set():
                    self.wfile.write(bytes(100_000))
            elif manner == "packed":
                self.send_response(200)
                packed = gzip.compress(bytes(3_000_000))
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(packed)))
                self.end_headers()
                self.wfile.write(packed)
            elif manner == "lie":
                self.head(200, 10**13)
                self.wfile.write(body)
                server.let_go.wait(30)
            elif manner in ("stall", "drip", "short"):
                self.head(200, len(body))
                self.wfile.write(body[: len(body) // 2])
                if manner == "stall":
                    server.let_go.wait(30)
                while manner == "drip" and not server.let_go.wait(0.05):
                    self.wfile.write(b"x")
                self.close_connection = True
            elif manner == "slow":
                server.let_go.wait(0.2)
                self.whole(body)
            else:
                self.whole(body)

        def whole(self, body: bytes) -> None:
            self.head(200, len(body))
            self.wfile.write(body)

        def head(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()

    with serving(Handler) as url:
        server = Server(url, files)
        try:
            yield server
        finally:
            server.let_go.set()
