"""A medium that is not a file on this disk, as something that can be written to one. Knows no protocol."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from threading import Event
from typing import Protocol, runtime_checkable

from llava_mini_cli.errors import FetchError, UsageError

GIB = 1 << 30


@dataclass(frozen=True)
class FetchOptions:
    """Bounds on downloads and on the files they leave."""

    timeout: float = 600.0  # seconds for one file, all attempts together
    stall: float = 30.0  # seconds without a byte before an attempt is given up
    retries: int = 3  # after failures that may pass
    backoff: float = 1.0  # seconds before the second attempt; twice as long before each further one
    cache_dir: Path | None = None  # None: llava-mini below the user's cache folder
    cache_bytes: int = 10 * GIB
    max_file_bytes: int | None = None  # of one file; None: as many as the cache may hold
    hosts: tuple[str, ...] = ()  # patterns of where URLs of tables and lists may lead to; none: anywhere
    netrc: bool = False  # passwords of ~/.netrc are sent to hosts that tables and lists name, too
    # Told the size that a file is about to have, and what it may come to; raises `NoRoomError`. None: one file alone.
    meter: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout < inf:
            raise UsageError(f"--fetch-timeout must be above 0 seconds and finite, not {self.timeout:g}")
        if self.cache_bytes < 1:
            raise UsageError("--cache-size must be above 0")
        if self.max_file_bytes is not None and self.max_file_bytes < 1:
            raise UsageError("--max-file-size must be above 0")

    def check_size(self, size: int, announced: int | None = None) -> None:
        """To be called before a file has so many bytes.

        Args:
            announced: how many there will be, where whoever sends them says so.

        Raises:
            FetchError: they are too many for any file.
            NoRoomError: they are too many beside the files that are there now.
        """
        own = self.max_file_bytes is not None and self.max_file_bytes < self.cache_bytes
        flag, most = ("--max-file-size", self.max_file_bytes or 0) if own else ("--cache-size", self.cache_bytes)
        if max(size, announced or 0) > most:
            there = "" if announced is None or announced <= most else f": {announced} bytes are announced"
            raise FetchError("too_large", f"more than {flag} {most} bytes{there}")
        if self.meter is not None:
            self.meter(size, max(size, announced or 0))


class NoRoomError(Exception):
    """Other files leave no room for a file that would fit by itself; it can be written once they are gone."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size  # bytes that are needed


class Source(Protocol):
    """The place that the bytes of a medium come from, such as a URL or a cell of a table."""

    @property
    def name(self) -> str:
        """The name that no other source of a run has."""
        ...

    @property
    def suffix(self) -> str:
        """The suffix of a file's name, with its dot, or nothing."""
        ...

    def write_to(self, path: Path, options: FetchOptions, stopped: Event) -> None:
        """Writes the medium to a new file, whole, or gives up soon after `stopped` is set.

        Raises:
            FetchError: it cannot be had, or is larger than `options.check_size` allows.
            NoRoomError: there is no room for it now.
            OSError: the file cannot be written.
        """
        ...


@runtime_checkable
class Packed(Protocol):
    """A source that lies within an archive, which must be brought to this disk first."""

    @property
    def archive(self) -> Source:
        """The archive."""
        ...

    def unpack(self, archive: Path, path: Path, options: FetchOptions) -> None:
        """Writes the medium to a new file, from the archive's file. Raises as `Source.write_to` does."""
        ...


@runtime_checkable
class PartlyRead(Protocol):
    """A source that lies within a file on this disk, or in memory."""

    def read_at(self, size: int, offset: int) -> bytes:
        """At most so many bytes of the medium, from an offset. Raises `FetchError`."""
        ...
