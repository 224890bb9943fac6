"""What a crew asks of whoever starts workers and carries what is said: Ray, or a double in tests."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llava_mini_cli.formats.job import Job
from llava_mini_cli.workers.messages import Batch, Work


class Gone(NamedTuple):
    """A worker is there no more."""

    why: str  # one line
    blamed: bool = True  # it may have been for what it held; not where its machine went down
    hopeless: bool = False  # another one in its place would fare no better


class Hands(Protocol):
    """Workers by number."""

    def is_open(self) -> bool:
        """True once workers can be hired; waits a moment otherwise. Raises `WorkersError` or `UsageError`."""
        ...

    @property
    def count(self) -> int:
        """The number of workers that are wanted."""
        ...

    @property
    def beside(self) -> int:
        """The number of workers that share a machine's memory."""
        ...

    def name(self, worker: int) -> str:
        """What a user may know a worker by."""
        ...

    def places(self) -> int:
        """The number of workers that there is room for, those that are there among them."""
        ...

    def hire(self, work: Work) -> int:
        """Begins to start a worker."""
        ...

    def has_started(self, worker: int) -> bool:
        """True once a worker's process has said that it is there; until then it may be waiting for room."""
        ...

    def give(self, worker: int, jobs: Sequence[Job]) -> None:
        """Sends media to a worker that has said that it is ready."""
        ...

    def let_go(self, job: Job) -> None:
        """A medium is done, and what was kept for it may go."""
        ...

    def heard(self, seconds: float) -> list[tuple[int, Batch | Gone]]:
        """What workers have said by now; waits for so long where there is nothing."""
        ...

    def dismiss(self, worker: int) -> None:
        """Kills a worker, which is not heard of any more."""
        ...

    def close(self) -> None:
        """Ends all workers, and whatever was started for them."""
        ...
