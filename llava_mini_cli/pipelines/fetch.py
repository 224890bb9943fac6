"""Jobs a little ahead of the run, in order: read by a thread of their own, remote media fetched by a few others.

One whose download waits for room in the cache is overtaken by those behind it, whose files take that room.

So downloads overlap with computing, and what is here is not kept back by what is waited for, such as the next line of
a pipe. Knows nothing of protocols, nor of what is done with the media.
"""

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event, Semaphore
from types import TracebackType
from typing import Self

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.handover import HandOver, StoppedError

MOST_AHEAD = 16  # media that are ready or on their way
FETCHING = 4  # downloads at once
POLL_S = 0.1  # seconds between looks at whether a download waits for room
JOIN_S = 5.0  # seconds that the end of a run waits for downloads that were told to give up


class FetchAhead:
    """An iterator of jobs whose files are on this disk, or that say why they are not.

    The file of a fetched job (`job.local`) is in use until the cache is told otherwise. What reading the jobs raises is
    raised by `next`. Leaving the `with` block stops everything.
    """

    def __init__(self, jobs: Iterable[Job], cache: FileCache, *, most_ahead: int = MOST_AHEAD) -> None:
        self._jobs = jobs
        self._cache = cache
        self._cache.stopped.clear()  # by the run before, where several share a cache
        self._stopped = Event()
        self._free = Semaphore(FETCHING)
        self._fetching: set[Future[Job]] = set()
        self._awaited: list[Future[Job]] = []  # by whoever takes the jobs; all but the last are overtaken
        self._pool = ThreadPoolExecutor(FETCHING, "fetch")
        self._ahead = HandOver(self._read, most_ahead, "jobs")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Job:
        while True:
            done = next((future for future in self._awaited if future.done()), None)
            if done is not None:
                self._awaited.remove(done)
                return done.result()
            if not self._awaited or (self._cache.lacks_room and self._ahead.has_items()):
                first = next(self._ahead)
                if isinstance(first, Job):
                    return first
                self._awaited.append(first)
            else:
                wait(self._awaited, POLL_S, FIRST_COMPLETED)

    def _read(self, ahead: HandOver[Job | Future[Job]]) -> None:
        """Reads the jobs until they end or the run does."""
        ahead.put_all(job if job.source is None or job.fault is not None else self._start(job) for job in self._jobs)

    def _start(self, job: Job) -> Future[Job]:
        """Begins a download, once one more may run and the cache has room for its file."""
        self._free.acquire()
        self._cache.wait_for_room(self._stopped)
        if self._stopped.is_set():
            raise StoppedError
        future = self._pool.submit(self._fetch, job)
        self._fetching.add(future)
        future.add_done_callback(self._fetched)
        return future

    def _fetch(self, job: Job) -> Job:
        try:
            return job if job.source is None else job._replace(local=str(self._cache.get(job.source)))
        except FetchError as error:
            return job._replace(fault=Fault(error.stage, error.kind, str(error)))

    def _fetched(self, future: Future[Job]) -> None:
        self._fetching.discard(future)
        self._free.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._cache.stopped.set()
        self._cache.wake()
        self._ahead.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(list(self._fetching), JOIN_S)  # a download that does not give up soon is left behind
        self._ahead.join(1.0)
