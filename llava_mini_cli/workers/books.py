"""The books of leases: which media are in whose hands, and what becomes of those whose worker died.

A worker holds up to 64 media, chosen so that all workers have about as much to do: a lease is half of a worker's share
of the work that is known, so leases grow smaller towards the end. Media of a worker that died go back as one lease,
which one worker takes with nothing beside it. A lease that kills its worker twice is taken apart, and a medium that
kills one more by itself is given up. Pure arithmetic: knows neither processes nor clocks.
"""

from collections import deque
from dataclasses import dataclass

from llava_mini_cli.formats.job import Job

MOST_HELD = 64  # media in the hands of a worker
REFILL = 32  # media that it still has when it gets more
MOST_BYTES = 256 << 20  # that are sent with what a worker holds, unless one medium alone has more
SHARE = 2  # leases that a worker's share of what is known makes
TAKEN_APART = 2  # deaths after which the media of a lease are tried one by one
GIVEN_UP = 3  # deaths, the last one with nothing beside it, after which a medium is given up


@dataclass(eq=False)
class Medium:
    """A job on its way to a worker, or in the hands of one."""

    job: Job
    cost: float  # of its work, in any unit
    size: int = 0  # bytes that are sent with it
    deaths: int = 0  # of workers that held it

    @property
    def number(self) -> int:
        """Its place in the run."""
        assert self.job.number is not None
        return self.job.number


class Books:
    """What is to be done, who holds what, and what came back."""

    def __init__(self, workers: int) -> None:
        """`workers`: among how many what is known is shared."""
        self._workers = workers
        self._fresh: deque[Medium] = deque()
        self._cost = 0.0  # of those
        self._back: deque[list[Medium]] = deque()  # leases of workers that died
        self._held: dict[int, dict[int, Medium]] = {}  # by worker and number

    @property
    def fresh(self) -> int:
        """The number of media that nobody has held yet."""
        return len(self._fresh)

    @property
    def is_empty(self) -> bool:
        """True where nothing is left to do, and nobody holds anything."""
        return not (self._fresh or self._back or any(self._held.values()))

    @property
    def workers(self) -> frozenset[int]:
        """Those who may hold media."""
        return frozenset(self._held)

    def add(self, job: Job, cost: float, size: int = 0) -> None:
        """One more medium to be done; `size`: bytes that are sent with it."""
        self._fresh.append(Medium(job, cost, size))
        self._cost += cost

    def enter(self, worker: int) -> None:
        """A worker is ready to take media."""
        self._held[worker] = {}

    def holds(self, worker: int) -> bool:
        """True if a worker has something to do."""
        return bool(self._held.get(worker))

    def grant(self, worker: int) -> list[Medium]:
        """The media that a worker gets now; none where it has enough, or has to end what it has first."""
        held = self._held[worker]
        if self._back:  # they are tried alone, so whoever has nothing else takes them
            lease = [] if held else self._back.popleft()
        elif any(medium.deaths for medium in held.values()):
            lease = []
        else:
            lease = self._next(held)
        held.update((medium.number, medium) for medium in lease)
        return lease

    def _next(self, held: dict[int, Medium]) -> list[Medium]:
        """As much of what is fresh as makes a lease."""
        share = self._cost / (SHARE * self._workers)
        has = sum(medium.cost for medium in held.values())
        if held and (len(held) > REFILL or has > share / 2):
            return []
        size = sum(medium.size for medium in held.values())
        lease: list[Medium] = []
        while self._fresh and len(held) + len(lease) < MOST_HELD:
            medium = self._fresh[0]
            if (lease and has + medium.cost > share) or ((lease or held) and size + medium.size > MOST_BYTES):
                break
            self._fresh.popleft()
            has, size = has + medium.cost, size + medium.size
            lease.append(medium)
        self._cost = self._cost - sum(medium.cost for medium in lease) if self._fresh else 0.0
        return lease

    def over(self, worker: int, number: int) -> Medium | None:
        """A medium is done; None where the worker does not hold it, so that nothing is counted twice."""
        return self._held.get(worker, {}).pop(number, None)

    def held(self, worker: int, number: int) -> Medium | None:
        """A medium in the hands of a worker; None where it is not."""
        return self._held.get(worker, {}).get(number)

    def lost(self, worker: int, *, blamed: bool) -> tuple[list[Medium], list[Medium]]:
        """A worker is gone, and what it held goes back.

        Args:
            blamed: it may have been for what it held; not where its machine went down.

        Returns:
            All media that it held, and those among them that are given up.
        """
        held = list(self._held.pop(worker, {}).values())
        for medium in held:
            medium.deaths += blamed
        given_up = [medium for medium in held if medium.deaths >= GIVEN_UP and len(held) == 1 and blamed]
        left = [medium for medium in held if medium not in given_up]
        together = [medium for medium in left if medium.deaths < TAKEN_APART]
        if together:
            self._back.append(together)
        self._back.extend([medium] for medium in left if medium.deaths >= TAKEN_APART)
        return held, given_up
