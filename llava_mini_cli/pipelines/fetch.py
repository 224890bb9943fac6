"""Jobs a little ahead of the run, in order: read by a thread of their own, remote media fetched by a few others.

So downloads overlap with computing, and what is here is not kept back by what is waited for, such as the next line of
a pipe. Knows nothing of protocols, nor of what is done with the media.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Event, Thread
from types import TracebackType
from typing import Self

from llava_mini_cli.errors import FetchError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job

MOST_AHEAD = 16  # media that are ready or on their way
FETCHING = 4  # downloads at once
JOIN_S = 5.0  # for which the end of a run waits for downloads that were told to give up


class FetchAhead:
    """An iterator of jobs whose files are on this disk, or that say why they are not.

    The file of a fetched job (`job.local`) is in use until the cache is told otherwise. What reading the jobs raises is
    raised by `next`. Leaving the `with` block stops everything.
    """

    def __init__(self, jobs: Iterable[Job], cache: FileCache, *, most_ahead: int = MOST_AHEAD) -> None:
        self._jobs = jobs
        self._cache = cache
        self._most_ahead = most_ahead
        self._changed = Condition()
        self._ahead: deque[Job | Future[Job]] = deque()
        self._fetching = 0
        self._ended = False
        self._error: BaseException | None = None
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(FETCHING, "fetch")
        self._reader = Thread(target=self._read, name="jobs", daemon=True)  # it may wait for a pipe for ever
        self._reader.start()

    def _is_ready(self) -> bool:
        if not self._ahead:
            return self._ended
        first = self._ahead[0]
        return isinstance(first, Job) or first.done()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Job:
        with self._changed:
            self._changed.wait_for(self._is_ready)
            if not self._ahead:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            first = self._ahead.popleft()
            self._changed.notify_all()
        return first if isinstance(first, Job) else first.result()

    def _read(self) -> None:
        """Reads the jobs until they end or the run does; each is put in line before it is fetched."""
        try:
            for job in self._jobs:
                is_here = job.source is None or job.fault is not None
                if not self._wait_for_turn(fetch=not is_here):
                    return
                with self._changed:
                    self._ahead.append(job if is_here else self._start(job))
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again where it can be dealt with
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_turn(self, *, fetch: bool) -> bool:
        """Waits until one more job may stand in line, and be fetched if it has to; False when the run has stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped.is_set()
                    or (len(self._ahead) < self._most_ahead and not (fetch and self._fetching >= FETCHING))
                )
            )
        if fetch:
            self._cache.wait_for_room(self._stopped)
        return not self._stopped.is_set()

    def _start(self, job: Job) -> Future[Job]:
        self._fetching += 1
        future = self._pool.submit(self._fetch, job)
        future.add_done_callback(self._fetched)
        return future

    def _fetch(self, job: Job) -> Job:
        try:
            return job if job.source is None else job._replace(local=str(self._cache.get(job.source)))
        except FetchError as error:
            return job._replace(fault=Fault(error.stage, error.kind, str(error)))

    def _fetched(self, future: Future[Job]) -> None:
        with self._changed:
            self._fetching -= 1
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._cache.stopped.set()
        self._cache.wake()
        with self._changed:
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._changed:  # a download that does not give up soon is left behind
            self._changed.wait_for(lambda: not self._fetching, JOIN_S)
        self._reader.join(timeout=1.0)
