"""A medium that is not a file on this disk, as something that can be written to one. Knows no protocol."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from threading import Event
from typing import Protocol, runtime_checkable

from llava_mini_cli.errors import UsageError

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

    def __post_init__(self) -> None:
        if not 0 < self.timeout < inf:
            raise UsageError(f"--fetch-timeout must be above 0 seconds and finite, not {self.timeout:g}")
        if self.cache_bytes < 1:
            raise UsageError("--cache-size must be above 0")


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
            FetchError: it cannot be had.
            OSError: the file cannot be written.
        """
        ...


@runtime_checkable
class PartlyRead(Protocol):
    """A source that lies within a file on this disk, or in memory."""

    def read_at(self, size: int, offset: int) -> bytes:
        """At most so many bytes of the medium, from an offset. Raises `FetchError`."""
        ...
