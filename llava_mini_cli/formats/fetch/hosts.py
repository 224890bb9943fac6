"""`--hosts`: the servers, buckets and hubs that URLs of tables and lists may lead to, as patterns of names.

A pattern is compared with the whole name of a host: `*` stands for any characters, `?` for one. It holds for every
port, unless it names one. `s3://NAME` is a bucket, and so for every other store: a bucket can be called like a host,
and belongs to somebody else.
"""

import os
import re
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch.urls import parts_of

WITH_HOSTS = {"http": 80, "https": 443, "ftp": 21, "sftp": 22, "ssh": 22, "smb": 445, "webdav": 443, "webdavs": 443}
_HUB = "https://huggingface.co"
_PORT = re.compile(r"(.*):(\d+)")


@dataclass(frozen=True)
class Place:
    """Where a URL leads to: a host, or a bucket of a store."""

    name: str
    port: int | None = None
    store: str | None = None  # the scheme of a bucket's store; None: a host

    def __str__(self) -> str:
        return f"{self.store}://{self.name}" if self.store else self.name


def place_of(url: str) -> Place:
    """Where a URL leads to; of `hf` it is the hub's host."""
    parts = parts_of(url)
    scheme = parts.scheme.lower()
    if scheme == "hf":
        hub = urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
        return host_place(hub.hostname or "", hub.port or WITH_HOSTS.get(hub.scheme))
    if scheme not in WITH_HOSTS:
        return Place(url.partition("://")[2].partition("/")[0], None, scheme)
    try:
        return host_place(parts.hostname or "", parts.port or WITH_HOSTS[scheme])
    except ValueError:  # a port that is none
        return Place("")


def host_place(host: str, port: int | None) -> Place:
    """A host by the one spelling that all its spellings have in common: lower case, ASCII, no dot at the end."""
    return Place(_plain(host), port)


def check_place(place: Place, patterns: tuple[str, ...], *, is_redirect: bool = False) -> None:
    """Raises `FetchError` of the kind `refused` where patterns are given and none of them matches."""
    if patterns and not any(matcher(place) for matcher in map(_matcher, patterns)):
        what = f"it leads on to '{place}', which" if is_redirect else f"'{place}'"
        raise FetchError("refused", f"{what} is not among --hosts")


def check_patterns(patterns: tuple[str, ...]) -> None:
    """Raises `UsageError` where one of them can match nothing."""
    for pattern in patterns:
        name = pattern.rpartition("://")[2]
        if not name or not name.isprintable() or any(sign in name for sign in "/ ,"):
            raise UsageError(f"--hosts: '{pattern}' is no host, such as '*.example.org', and no bucket: 's3://photos'")


@dataclass(frozen=True)
class _Matcher:
    name: re.Pattern[str]
    port: int | None
    store: str | None

    def __call__(self, place: Place) -> bool:
        is_there = self.store == place.store and self.name.fullmatch(place.name) is not None
        return is_there and self.port in (None, place.port)


@cache
def _matcher(pattern: str) -> _Matcher:
    scheme, found, name = pattern.rpartition("://")
    store = scheme.lower() if found and scheme.lower() not in WITH_HOSTS else None
    port = None
    if store is None:
        with_port = None if name.count(":") > 1 and not name.startswith("[") else _PORT.fullmatch(name)
        name, port = (with_port[1], int(with_port[2])) if with_port else (name, None)
        port = port or (WITH_HOSTS[scheme.lower()] if found else None)
        name = _plain(name)
    signs = {"*": ".*", "?": "."}
    return _Matcher(re.compile("".join(signs.get(char) or re.escape(char) for char in name), re.DOTALL), port, store)


def _plain(host: str) -> str:
    host = host.strip("[]").rstrip(".").lower() if host.startswith("[") else host.lower().removesuffix(".")
    try:
        return str(ip_address(host))
    except ValueError:
        return ".".join(map(_ascii, host.split(".")))


def _ascii(label: str) -> str:
    """A part of a host's name as name servers know it."""
    try:
        return label if label.isascii() else label.encode("idna").decode()
    except UnicodeError:
        return label
