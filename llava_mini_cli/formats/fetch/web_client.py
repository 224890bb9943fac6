"""What `http` and `https` files are asked of: follows redirects itself, so that each host on the way is looked at.

Stands in for aiohttp's session in fsspec's filesystem. Passwords of ~/.netrc go only to hosts that the user typed,
unless he wants them to go to others, too.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.fetch.hosts import check_place, host_place

if TYPE_CHECKING:  # aiohttp and yarl belong to the extra [remote]
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class WebClient:
    """The rules for one kind of request; makes the session that keeps them."""

    hosts: tuple[str, ...] = ()  # patterns of --hosts
    is_typed: bool = True  # by the user; then redirects alone are looked at
    netrc: bool = False  # the user's passwords may go to hosts that he did not type

    @property
    def trust_env(self) -> bool:
        """True if aiohttp may look into ~/.netrc, which also has it look for proxies itself."""
        return self.is_typed or self.netrc

    async def __call__(self, **options: Any) -> "WebSession":
        """A session, as fsspec asks for it."""
        import aiohttp

        options.pop("loop", None)  # the one that this runs in
        return WebSession(aiohttp.ClientSession(**options), self)


class WebSession:
    """The part of aiohttp's session that a download needs."""

    def __init__(self, session: "ClientSession", rules: WebClient) -> None:
        self._session = session
        self._connector = session.connector  # by this name fsspec closes it when its loop has ended
        self._rules = rules

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def get(self, url: "URL", **options: Any) -> "AsyncGenerator[ClientResponse]":
        """The answer at the end of all redirects.

        Raises:
            FetchError: a host that --hosts leaves out, or redirects that never end or lead to no web server.
        """
        rules = self._rules
        for hop in range(MOST_REDIRECTS + 1):
            if hop or not rules.is_typed:
                check_place(host_place(url.raw_host or "", url.port), rules.hosts, is_redirect=hop > 0)
            proxy = None if rules.trust_env else await asyncio.to_thread(_proxy_of, url)
            async with self._session.get(url, allow_redirects=False, proxy=proxy, **options) as answer:
                place = answer.headers.get("Location") if answer.status in _REDIRECTS else None
                if place is None:
                    yield answer
                    return
                url = _next(url, place)
        raise FetchError("unreadable", f"more than {MOST_REDIRECTS} redirects")


def _next(url: "URL", place: str) -> "URL":
    """Where a redirect leads to; a password goes no further than to the server that it was meant for."""
    from yarl import URL

    try:
        target = url.join(URL(place))
    except ValueError:
        raise FetchError("unreadable", "it leads on to what is no valid URL") from None
    if target.scheme not in ("http", "https") or not target.raw_host:
        raise FetchError("unreadable", f"it leads on to {target.scheme or 'what'}://, which is no web server")
    if target.user is None and target.origin() == url.origin():
        target = target.with_user(url.user).with_password(url.password) if url.user is not None else target
    return target


def _proxy_of(url: "URL") -> str | None:
    """The proxy that the environment names for a URL, as aiohttp finds it; the rest of the environment is left out."""
    if url.host is not None and proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)
