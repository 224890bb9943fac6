"""The server of a page: this machine alone, one token, GET and HEAD, and nothing but rows, their pictures and media."""

import hmac
import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_mini_cli.view.filters import Filter, Finder
from llava_mini_cli.view.media import JPEG, MediaPlaces, shown_type
from llava_mini_cli.view.page.document import POLICIES, SCRIPT, STYLES, asset, document
from llava_mini_cli.view.shown_rows import shown_row
from llava_mini_cli.view.table import RowTable

MOST_ROWS_AT_ONCE = 500
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": f"{POLICIES['server']}; frame-ancestors 'none'",
}
_NO_PAGE = "default-src 'none'; sandbox"  # of media and pictures, should somebody open one by itself


class Guard:
    """Refuses whatever has another host name, no token, or another method than GET and HEAD."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                more = [
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in there
                ]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].decode("latin-1").lower() not in self._hosts:
            return PlainTextResponse("another host name", 403)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("GET alone", 405, {"allow": "GET, HEAD"})
        given, _, rest = scope["raw_path"].removeprefix(b"/").partition(b"/")
        if not hmac.compare_digest(given, self._token):
            return PlainTextResponse("the address lacks its token", 403)
        path = f"/{rest.decode('latin-1')}"
        scope.update(path=path, raw_path=path.encode("latin-1"))
        return None


def application(table: RowTable, places: MediaPlaces, title: str, token: str, port: int) -> ASGIApp:
    """The server's application, for `http://127.0.0.1:PORT/TOKEN/`."""
    pages = _Pages(table, places, title)
    routes = {
        "/": pages.page, f"/{SCRIPT}": pages.script, f"/{STYLES}": pages.styles, "/api/about": pages.about,
        "/api/find": pages.find, "/api/rows": pages.rows, "/api/medium": pages.same_medium, "/api/paths": pages.paths,
        "/picture/{n:int}": pages.picture, "/medium/{n:int}": pages.medium,
    }  # fmt: skip
    app = Starlette(
        routes=[Route(path, _answered(made), methods=["GET"]) for path, made in routes.items()],
        exception_handlers={ValueError: _bad_value},
    )
    app.router.redirect_slashes = False
    return Guard(app, token, frozenset({f"127.0.0.1:{port}", f"localhost:{port}"}))


def _answered(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """A function that Starlette runs in a thread, since it is no coroutine."""

    def run(request: Request) -> Response:
        return answer(request)

    return run


async def _bad_value(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"no such rows: {error}"[:200], 400)


class _Pages:
    """The answers."""

    def __init__(self, table: RowTable, places: MediaPlaces, title: str) -> None:
        self._table = table
        self._places = places
        self._title = title
        self._finder = Finder(table)

    def page(self, request: Request) -> Response:
        return Response(document(self._title, "server"), media_type="text/html")

    def script(self, request: Request) -> Response:
        return Response(asset(SCRIPT), media_type="text/javascript")

    def styles(self, request: Request) -> Response:
        return Response(asset(STYLES), media_type="text/css")

    def about(self, request: Request) -> Response:
        return _json(self._finder.about())

    def find(self, request: Request) -> Response:
        found = self._finder.find(Filter.of(request.query_params))
        return _json(
            {
                "rows": found.rows,
                "media": found.media,
                "items": len(found.numbers),
                "histogram": found.histogram,
                "version": found.version,
            }
        )

    def rows(self, request: Request) -> Response:
        given = request.query_params
        first, last = (int(given.get(name, "0")) for name in ("from", "to"))
        if first < 0 or last - first > MOST_ROWS_AT_ONCE:
            raise ValueError("too many at once")
        found = self._finder.find(Filter.of(given), int(given.get("version", "0")))
        numbers = [int(n) for n in found.numbers[first:last]]
        shown = self._shown(numbers)
        if found.counts is not None:
            counts = dict(zip(numbers, (int(count) for count in found.counts[first:last]), strict=True))
            for row in shown:
                row["count"] = counts[row["n"]]
        return _json(shown)

    def same_medium(self, request: Request) -> Response:
        n = int(request.query_params.get("n", "-1"))
        sql = "SELECT n FROM rows WHERE medium = (SELECT medium FROM rows WHERE n = ?) ORDER BY n LIMIT ?"
        return _json(self._shown([row[0] for row in self._table.ask(sql, (n, MOST_ROWS_AT_ONCE))]))

    def paths(self, request: Request) -> Response:
        found = self._finder.find(Filter.of(request.query_params))
        sql = "SELECT path FROM rows WHERE n IN (SELECT unnest($n)) GROUP BY path ORDER BY min(n)"
        return _json([row[0] for row in self._table.ask(sql, {"n": found.numbers})])

    def picture(self, request: Request) -> Response:
        row = self._row(request)
        if row is None or row["picture"] is None:
            return _nothing()
        name = row["picture"]
        data = self._places.picture(name) if name else self._table.picture(row["part"], row["place"])
        if data is None or not data.startswith(JPEG):
            return _nothing()
        headers = {"cache-control": "private, max-age=3600", "content-security-policy": _NO_PAGE}
        return Response(data, headers=headers, media_type="image/jpeg")

    def medium(self, request: Request) -> Response:
        row = self._row(request)
        path = self._places.medium(row) if row else None
        kind = shown_type(path) if path else None
        if path is None or kind is None:
            return _nothing()
        headers = {"content-security-policy": _NO_PAGE, "cache-control": "private, no-cache"}
        return FileResponse(path, headers=headers, media_type=kind)  # answers ranges, so that a player may seek

    def _row(self, request: Request) -> dict[str, Any] | None:
        return next(iter(self._table.rows([request.path_params["n"]])), None)

    def _shown(self, numbers: list[int]) -> list[dict[str, Any]]:
        return [
            shown_row(
                row,
                self._places,
                None if row["picture"] is None else f"picture/{row['n']}",
                lambda n, path: f"medium/{n}",
            )
            for row in self._table.rows(numbers)
        ]


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json", headers={"cache-control": "no-store"})


def _nothing() -> Response:
    return PlainTextResponse("no row has this", 404)
