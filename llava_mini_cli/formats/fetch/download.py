"""Remote media through fsspec: URLs told from paths, shown without credentials, downloaded whole or not at all.

`http`, `https`, `s3`, `gs`, `hf` and whatever else fsspec knows; the packages behind them are the extra [remote].
"""

import asyncio
import errno
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any
from urllib.parse import unquote

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs  # pyright: ignore[reportUnknownVariableType]

from llava_mini_cli.errors import FetchError, MediaErrorKind, UsageError, first_line
from llava_mini_cli.formats.fetch.urls import is_valid, parts_of, scrubbed, shown, without_signature
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.formats.source import FetchOptions

_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_POLL = 0.1  # seconds between looks at a download


@dataclass(frozen=True, eq=False)
class Download:
    """One remote file."""

    name: str  # the URL as given

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
            FetchError: not_found, unreadable, timeout or truncated.
            UsageError: the package for the protocol is not installed.
        """
        deadline = time.monotonic() + options.timeout
        wait = options.backoff
        for attempts_left in range(options.retries, -1, -1):
            try:
                _attempt(self.name, path, options, deadline, stopped)
                return
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
    """Sees a download's progress; raises within it once the run has stopped or the deadline is over."""

    def __init__(self, deadline: float, stopped: Event) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.moved = time.monotonic()
        self.expected: int | None = None
        self._deadline, self._stopped = deadline, stopped

    def set_size(self, size: int | None) -> None:
        self.expected = size

    def relative_update(self, inc: int = 1) -> None:
        self.moved = time.monotonic()
        if self._stopped.is_set() or self.moved > self._deadline:
            raise _GivenUpError

    def absolute_update(self, value: int) -> None:
        self.relative_update()


def _attempt(url: str, path: Path, options: FetchOptions, deadline: float, stopped: Event) -> None:
    """One attempt to download; translates whatever a protocol's package raises."""
    filesystem, remote = open_filesystem(url, options.stall)
    watch = _Watch(deadline, stopped)
    try:
        if getattr(filesystem, "async_impl", False):
            coroutine = filesystem._get_file(remote, str(path), callback=watch)
            _wait(asyncio.run_coroutine_threadsafe(coroutine, filesystem.loop), watch, options.stall, deadline, stopped)
        else:
            filesystem.get_file(remote, str(path), callback=watch)
    except FetchError:
        raise
    except _GivenUpError:
        raise FetchError("timeout", f"not here after {options.timeout:g} s (--fetch-timeout)") from None
    except OSError as error:
        if error.errno in _LOCAL or error.filename == str(path):
            raise  # the disk here, not the server there
        raise _translated(error) from None
    except Exception as error:  # noqa: BLE001 - each protocol's package has exceptions of its own
        raise _translated(error) from None
    size = path.stat().st_size if path.exists() else 0
    # aiohttp has seen to it itself, and knows what the announced bytes become where the server compresses.
    if not _is_http(url) and watch.expected is not None and size < watch.expected:
        raise _PassingError("truncated", f"the server sent {size} of {watch.expected} bytes")


def _wait(download: "Future[None]", watch: _Watch, stall: float, deadline: float, stopped: Event) -> None:
    """Waits for a download, and cancels it when it stands still, takes too long or is no longer wanted."""
    while True:
        try:
            download.result(timeout=_POLL)
            return
        except WaitTimeout:
            if download.done():
                raise
        now = time.monotonic()
        if stopped.is_set() or now > deadline:
            download.cancel()
            raise _GivenUpError
        if now - watch.moved > stall:
            download.cancel()
            raise _PassingError("timeout", f"the server sent nothing for {stall:g} s")


def open_filesystem(url: str, stall: float = FetchOptions.stall) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path within it.

    Raises:
        FetchError: the URL is none, or of no protocol that is known, or the server cannot be had.
        UsageError: the package for the protocol is not installed.
    """
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    try:
        if _is_http(url):
            import aiohttp

            if not is_valid(url):  # what is raised for it further down would name its password
                raise FetchError("unreadable", "not a valid URL")

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        return url_to_fs(url, **options)  # pyright: ignore
    except ImportError:
        raise UsageError(
            f"reading {scheme}:// needs a package that is not installed: pip install 'llava-mini-cli[remote]'"
        ) from None
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
        return _PassingError("timeout", "the server does not answer")
    if isinstance(status, int) and status < 500 and status not in (408, 425, 429):
        return FetchError("unreadable", f"the server answers {status}")
    if isinstance(status, int):
        return _PassingError("unreadable", f"the server answers {status}")
    return _PassingError("unreadable", scrubbed(first_line(error)))
