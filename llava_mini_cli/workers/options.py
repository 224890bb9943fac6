"""The options of a run's workers as one value."""

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal, Self

from llava_mini_cli.errors import UsageError

MOST_WORKERS = 10_000


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers there are, where, and what each of them takes."""

    count: int | Literal["auto"]  # auto: as many as the cluster has places for
    address: str | None = None  # HOST:PORT of a Ray cluster, or auto; None: a Ray of the run's own on this machine
    gpus: float | None = None  # of each worker; None: 1, on a machine without any 0
    cpus: int | None = None  # of each; None: its share of its machine's
    timeout: float = 600.0  # seconds without a sign after which a worker is killed
    ship_media: bool = False  # files of this machine are sent to workers

    def __post_init__(self) -> None:
        if self.count != "auto" and not 1 <= self.count <= MOST_WORKERS:
            raise UsageError(f"--workers must be 1 to {MOST_WORKERS}, or auto, not {self.count}")
        if self.gpus is not None and not (self.gpus in (0, 0.5, 0.25) or (isfinite(self.gpus) and self._is_whole)):
            raise UsageError(f"--worker-gpus must be a whole number, 0.5 or 0.25, not {self.gpus:g}")
        if self.cpus is not None and self.cpus < 1:
            raise UsageError(f"--worker-cpus must be at least 1, not {self.cpus}")
        if not 1 <= self.timeout < inf:
            raise UsageError(f"--worker-timeout must be at least 1 second and finite, not {self.timeout:g}")
        if self.address is not None and "://" in self.address:
            raise UsageError(f"--ray '{self.address}': give HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
        if self.address is not None and self.address != "auto" and not self._is_place:
            raise UsageError(f"--ray '{self.address}' is no address: HOST:PORT, or auto")

    def spread(self, cards: int, device: str) -> Self:
        """The same for workers whose model is on some cards each. Raises `UsageError` where they have fewer."""
        if cards == 1 or device == "cpu" or self.gpus == 0:
            return self
        if self.gpus is not None and self.gpus < cards:
            raise UsageError(f"--tensor-parallel {cards} takes {cards} cards of each worker: --worker-gpus {cards}")
        return replace(self, gpus=self.gpus or cards)

    @property
    def _is_whole(self) -> bool:
        return self.gpus is not None and self.gpus >= 0 and self.gpus == int(self.gpus)

    @property
    def _is_place(self) -> bool:
        host, _, port = (self.address or "").rpartition(":")
        return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16

    @property
    def place(self) -> str:
        """The cluster, in words."""
        return "this machine" if self.address is None else f"the Ray cluster at {self.address}"
