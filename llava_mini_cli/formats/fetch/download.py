"""Remote media through fsspec: URLs told from paths, shown without credentials, downloaded whole or not at all.

`http`, `https`, `s3`, `gs`, `hf` and whatever else fsspec knows; the packages behind them are the extra [remote].
"""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from typing import Any, TypeVar
from urllib.parse import unquote

from fsspec import filesystem as filesystem_of  # pyright: ignore[reportUnknownVariableType]
from fsspec import get_filesystem_class  # pyright: ignore[reportUnknownVariableType]
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs  # pyright: ignore[reportUnknownVariableType]

from llava_mini_cli.errors import PASSING_KINDS, FetchError, MediaErrorKind, UsageError, first_line, kind_of
from llava_mini_cli.formats.fetch.allowed import check_url, zip_parts
from llava_mini_cli.formats.fetch.new_file import CHUNK, NewFile
from llava_mini_cli.formats.fetch.urls import is_remote, is_valid, parts_of, scrubbed, shown, without_signature
from llava_mini_cli.formats.fetch.web_client import WebClient
from llava_mini_cli.formats.fetch.zipped import ZippedHere, ZippedThere
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.formats.source import FetchOptions, NoRoomError
from llava_mini_cli.needs import REMOTE

_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
# The names that the packages behind the protocols give to a server that cannot be reached; most are no OSError.
_UNREACHABLE = frozenset(
    {"ClientConnectionError", "ConnectError", "TransportError", "HTTPClientError", "NoValidConnections"}
)
Result = TypeVar("Result")
_POLL = 0.1  # seconds between looks at a download


@dataclass(frozen=True, eq=False)
class Download:
    """One remote file."""

    name: str  # the URL as given
    is_listed: bool = False  # named by a table, a list or an archive, and not by the user himself

    @property
    def file_name(self) -> str:
        """The last part of the URL's path."""
        return PurePosixPath(unquote(parts_of(self.name).path)).name or shown(self.name)

    @property
    def suffix(self) -> str:
        """The suffix of the file's name, with its dot, or nothing."""
        return PurePosixPath(self.file_name).suffix

    @property
    def item(self) -> ItemIdentity:
        """The URL without size and date: to ask the server for them would cost a round trip for every finished row."""
        return without_signature(self.name), None, None

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Downloads the file, again after failures that may pass.

        Raises:
            FetchError: it cannot be had, or must not be; the package for the protocol of a listed URL is missing.
            NoRoomError: there is no room for it now.
            UsageError: the package for the protocol of a typed URL is not installed.
        """
        if self.is_listed:
            check_url(self.name, options.hosts)
        client = WebClient(options.hosts, not self.is_listed, options.netrc)
        deadline = time.monotonic() + options.timeout
        wait = options.backoff
        for attempts_left in range(options.retries, -1, -1):
            try:
                _attempt(self.name, path, options, client, _Watch(options, deadline, stopped))
                return
            except UsageError as error:
                if not self.is_listed:
                    raise
                raise FetchError("unreadable", str(error)) from None
            except _PassingError as error:
                if attempts_left == 0 or time.monotonic() + wait >= deadline or stopped.wait(wait):
                    raise FetchError(error.media_kind, str(error)) from None
                wait *= 2


class _PassingError(FetchError):
    """A failure that may be gone with the next attempt."""

    def __init__(self, kind: MediaErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.media_kind: MediaErrorKind = kind


class _GivenUpError(Exception):
    """The deadline is over, or nobody wants the file any more."""


class _Watch(Callback):
    """Sees a download's progress; raises within it once it is too large, nobody wants it or the deadline is over."""

    def __init__(self, options: FetchOptions, deadline: float, stopped: Event) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.moved = time.monotonic()
        self.expected: int | None = None
        self.is_counted = False  # the bytes are counted where they are written
        self._size = 0
        self._options, self._deadline, self._stopped = options, deadline, stopped

    def set_size(self, size: int | None) -> None:
        self.expected = size
        self._options.check_size(self._size, size)

    def relative_update(self, inc: int = 1) -> None:
        self._size += inc
        if not self.is_counted:
            self._options.check_size(self._size)
        self.moved = time.monotonic()
        if self.is_over():
            raise _GivenUpError

    def absolute_update(self, value: int) -> None:
        self.relative_update(value - self._size)

    def is_over(self) -> bool:
        """True once the file comes too late."""
        return self._stopped.is_set() or time.monotonic() > self._deadline


def _attempt(url: str, path: Path, options: FetchOptions, client: WebClient, watch: _Watch) -> None:
    """One attempt to download; translates whatever a protocol's package raises."""
    try:
        if _is_http(url):
            filesystem, remote = open_filesystem(url, options.stall, client)
        else:  # some connect at once, and may wait for ever: they are left behind when the time is over
            filesystem, remote = _wait(_in_thread(lambda: open_filesystem(url, options.stall, client)), watch)
        if not getattr(filesystem, "async_impl", False):
            _wait(_in_thread(lambda: filesystem.get_file(remote, str(path), callback=watch)), watch)
        elif _is_http(url):
            watch.is_counted = True
            with NewFile(path, options) as target:
                coroutine = filesystem._get_file(remote, target, chunk_size=CHUNK, callback=watch)
                _wait(asyncio.run_coroutine_threadsafe(coroutine, filesystem.loop), watch, options.stall)
        else:
            coroutine = filesystem._get_file(remote, str(path), callback=watch)
            _wait(asyncio.run_coroutine_threadsafe(coroutine, filesystem.loop), watch, options.stall)
    except (FetchError, NoRoomError, UsageError):
        raise
    except _GivenUpError:
        raise FetchError("timeout", f"not here after {options.timeout:g} s (--fetch-timeout)") from None
    except OSError as error:
        if error.errno in _LOCAL or error.filename == str(path):
            raise  # the disk here, not the server there
        raise _translated(error) from None
    except Exception as error:  # noqa: BLE001 - each protocol's package has exceptions of its own
        raise _translated(error) from None
    if path.is_dir():
        raise FetchError("unreadable", "a folder, not a file")
    size = path.stat().st_size if path.exists() else 0
    # aiohttp has seen to it itself, and knows what the announced bytes become where the server compresses.
    if not _is_http(url) and watch.expected is not None and size < watch.expected:
        raise _PassingError("truncated", f"the server sent {size} of {watch.expected} bytes")


def _in_thread(call: Callable[[], Result]) -> "Future[Result]":
    """A call in a thread that nobody has to wait for."""
    future = Future[Result]()
    future.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    Thread(target=run, name="download", daemon=True).start()
    return future


def _wait(download: "Future[Result]", watch: _Watch, stall: float = inf) -> Result:
    """Waits for a download, and cancels it when it stands still, takes too long or is no longer wanted."""
    watch.moved = time.monotonic()
    while True:
        try:
            return download.result(timeout=_POLL)
        except WaitTimeout:
            if download.done():
                raise
        if watch.is_over():
            download.cancel()
            raise _GivenUpError
        if time.monotonic() - watch.moved > stall:
            download.cancel()
            raise _PassingError("unreachable", f"the server sent nothing for {stall:g} s")


def download_of(
    url: str, roots: tuple[str, ...] = (), *, is_listed: bool = True
) -> "Download | ZippedHere | ZippedThere":
    """The source of a URL.

    Args:
        roots: folders that a local file must lie below.
        is_listed: as for `Download`.
    """
    parts = zip_parts(url)
    if parts is None:
        return Download(url, is_listed)
    member, archive = parts
    if is_remote(archive):
        return ZippedThere(url, member, download_of(archive, roots, is_listed=is_listed))
    return ZippedHere(url, member, archive, roots)


def check_installed(url: str) -> None:
    """Raises `UsageError` where the packages for the protocols of a URL are missing. Connects to nothing."""
    for link in url.split("::"):
        scheme, found, _ = link.partition("://")
        if not found:
            continue
        try:
            get_filesystem_class(scheme.lower())
        except ImportError as error:
            raise _missing(scheme.lower(), error) from None
        except ValueError:  # no protocol that is known: an error row
            continue


def _missing(scheme: str, error: ImportError) -> UsageError:
    in_extra = scheme in ("http", "https", "s3", "s3a", "gs", "gcs")
    what = REMOTE.install if in_extra else first_line(error)
    return UsageError(f"reading {scheme}:// needs a package that is not installed: {what}")


def open_filesystem(
    url: str,
    stall: float = FetchOptions.stall,
    client: WebClient = WebClient(),  # noqa: B008 - frozen
) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path within it.

    Raises:
        FetchError: the URL is none, or of no protocol that is known, or the server cannot be had.
        UsageError: the package for the protocol is not installed.
    """
    scheme = url.partition("://")[0].lower()
    try:
        if _is_http(url):
            import aiohttp

            if not is_valid(url):  # what is raised for it further down would name its password
                raise FetchError("unreadable", "not a valid URL")

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
            session = {"timeout": timeout, "trust_env": client.trust_env}
            # Not through url_to_fs, which takes the :: of an IPv6 address for a chain.
            return filesystem_of("http", client_kwargs=session, get_client=client), url
        return url_to_fs(url)  # pyright: ignore
    except ImportError as error:
        raise _missing(scheme, error) from None
    except FetchError:
        raise
    except ValueError as error:
        if "protocol not known" in str(error).lower():
            raise FetchError("unreadable", f"{scheme}:// is no protocol that fsspec knows") from None
        raise FetchError("unreadable", scrubbed(first_line(error))) from None
    except Exception as error:  # noqa: BLE001 - some connect at once, some miss an argument
        raise _translated(error) from None


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _translated(error: Exception) -> FetchError:
    """An exception of a protocol's package as one of ours, with nothing in it that could be a credential."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FetchError("not_found", "no such file on the server")
    if isinstance(error, PermissionError) or status in (401, 403):
        return FetchError("unreadable", f"the server refuses it{f' ({status})' if status else ''}")
    if type(error).__name__ == "ClientPayloadError":  # aiohttp's, for a connection that ends too early
        return _PassingError("truncated", "the server sent less than it announced")
    if isinstance(error, TimeoutError):
        return _PassingError("unreachable", "the server does not answer")
    if isinstance(status, int) and status < 500 and status not in (408, 425, 429):
        return FetchError("unreadable", f"the server answers {status}")
    if isinstance(status, int):
        return _PassingError("unreachable", f"the server answers {status}")
    return _PassingError(_kind_of(error), scrubbed(first_line(error)))


def _kind_of(error: Exception) -> MediaErrorKind:
    """The kind of what is no answer of a server: that there is none, or that the machine has nothing left."""
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, ssl.SSLCertVerificationError) or "Certificate" in type(error).__name__:
        return "unreadable"
    causes = (error, getattr(error, "os_error", None), error.__cause__)
    for cause in causes:
        if isinstance(cause, OSError) and kind_of(cause) in PASSING_KINDS:
            return kind_of(cause)
    is_named = any(parent.__name__ in _UNREACHABLE for parent in type(error).__mro__)
    return "unreachable" if is_named or isinstance(error, ConnectionError | socket.gaierror) else "unreadable"
