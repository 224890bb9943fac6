"""The command's side of its workers: gives them media, takes what comes of them, and goes on when some die.

    jobs -> books -> leases -> workers -> what came of each medium

A medium's rows are taken together when it is over, so one that was in the hands of a worker that died is done again as
a whole. Knows neither Ray nor outputs; prints nothing.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.errors import WorkersError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.handover import HandOver
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.of_media import Came, Item, Loaded, MediumLost, MediumOver, PartPrepared, Task, WorkEvent
from llava_mini_cli.pipelines.run_jobs import limited
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.workers.books import Books, Medium
from llava_mini_cli.workers.cost import cost_of, size_of
from llava_mini_cli.workers.hands import Gone, Hands
from llava_mini_cli.workers.messages import Batch, Ended, Made, NoDisk, Piece, Prepared, Work
from llava_mini_cli.workers.portable import portable

JOBS_AHEAD = 2048  # that were read and wait to be given away
DEATHS_A_WORKER = 3  # in a row, without a medium done, after which the run is given up
POLL_S = 0.2  # seconds between looks at whether a signal came
ALONE_S = 10.0  # seconds without any worker after which it is asked whether there can be one
ROOM_S = 20.0  # seconds after which it is said that workers have not started
GOES_ON = "what was answered is written, and the same command goes on"


class _Priced(NamedTuple):
    job: Job
    cost: float
    size: int  # bytes that are sent with it


@dataclass
class Crew:
    """The workers of one run."""

    hands: Hands
    timeout: float  # seconds without a sign after which a worker is killed
    ships: bool = False  # local files are sent to workers

    def work(
        self,
        task: Task[Item],
        jobs: Iterable[Job],
        load_engine: Callable[[ModelOptions], AnswerEngine],
        options: RunOptions | IndexOptions,
        parts: RunParts,
    ) -> Generator[WorkEvent[Item]]:
        """What comes of each job. Workers are started when there is a job, and ended when the generator is.

        Raises:
            WorkersError: there is no worker, or none is left.
            Interrupted: a signal came.
        """
        numbers = count()

        def priced() -> Iterator[_Priced]:
            for job in limited(jobs, options.limits.media, parts.tally):
                size = (size_of(job) or 0) if self.ships else 0
                yield _Priced(job._replace(number=next(numbers)), cost_of(job, options.sampling), size)

        ahead = HandOver[_Priced](lambda handed: handed.put_all(priced()), JOBS_AHEAD, "jobs")
        cache = parts.cache or FileCache(FetchOptions())
        try:
            while not ahead.ready():
                parts.interrupts.check()
                ahead.wait(POLL_S)
            first = next(ahead, None)
            if first is None:
                return
            parts.progress.loading(options.model.model)
            with closing(self.hands):
                while not self.hands.is_open():
                    parts.interrupts.check()
                beside = self.hands.beside
                told = task, load_engine, options.model, parts.open_clip, cache.options, str(Path.cwd()), beside
                work = Work(*told, parts.place)
                run = _Run(self, work, options.limits.failures, parts, cache, Books(self.hands.count))
                run.books.add(*first)
                yield from run.each(ahead)
        finally:
            ahead.stop()


@dataclass
class _Run:
    """One run with its books."""

    crew: Crew
    work: Work
    most_failures: int | None
    parts: RunParts
    cache: FileCache
    books: Books
    ready: dict[int, Loaded] = field(default_factory=dict[int, Loaded])
    begun: set[int] = field(default_factory=set[int])  # media of which pieces came
    hired: set[int] = field(default_factory=set[int])  # whether they are ready or not
    hopeless: int = 0  # workers that are not replaced
    deaths: int = 0  # since a medium was done
    last_words: str = "no worker could be started"
    revision: str | None = None  # the model's
    sends_rows: bool = False  # some worker cannot write rows itself
    told_of_room: bool = False
    short_since: float | None = None  # when some of the workers that are wanted had not started first
    alone_since: float = field(default_factory=monotonic)  # when there was a worker last

    def each(self, ahead: HandOver[_Priced]) -> Iterator[WorkEvent[Any]]:
        """Has every job worked on."""
        hands, parts = self.crew.hands, self.parts
        self._hire()
        while not self._is_over():
            parts.interrupts.check()
            is_exhausted = self._read(ahead)
            if is_exhausted and self.books.is_empty:
                return
            self._give()
            for worker, said in hands.heard(POLL_S):
                if worker not in self.hired:
                    continue
                if isinstance(said, Gone):
                    yield from self._gone(worker, said)
                else:
                    yield from self._take(worker, said)
                if self._is_over():
                    return
            self._look_for_places()

    def _read(self, ahead: HandOver[_Priced]) -> bool:
        """Takes the jobs that are there into the books. True when there are no more; raises what reading them did."""
        while self.books.fresh < JOBS_AHEAD and ahead.ready():
            priced = next(ahead, None)
            if priced is None:
                return True
            self.books.add(*priced)
        return False

    def _is_over(self) -> bool:
        """True once as many media have failed as are allowed to; says so in the tally."""
        tally, most = self.parts.tally, self.most_failures
        if most is None or tally.media_failed < most:
            return False
        tally.stopped_by = "max_failures"
        return True

    def _hire(self) -> None:
        """Starts the workers that are missing and have a place."""
        hands = self.crew.hands
        wanted = min(hands.count - self.hopeless, hands.places())
        while len(self.hired) < wanted:
            self.hired.add(hands.hire(self.work))

    def _give(self) -> None:
        for worker in self.ready:
            lease = self.books.grant(worker)
            if lease:
                jobs = [portable(medium.job, self.cache, ships=self.crew.ships) for medium in lease]
                self.crew.hands.give(worker, jobs)

    def _take(self, worker: int, batch: Batch) -> Iterator[WorkEvent[Any]]:
        parts = self.parts
        for info in batch.opened:
            parts.progress.opened(info)
        if batch.frames:
            parts.tally.frames += batch.frames
            parts.progress.frames(batch.frames)
        for message in batch.messages:
            match message:
                case Loaded():
                    yield from self._loaded(worker, message)
                case Piece(number, item):
                    medium = self.books.held(worker, number)
                    if medium is not None:
                        self.begun.add(number)
                        yield Came(medium.job, item, fails_medium=False)
                case Made(number, items, seconds):
                    medium = self.books.over(worker, number)
                    if medium is not None:
                        self.deaths = 0
                        yield from self._over(medium, [Came(medium.job, *item) for item in items], seconds)
                case Prepared(name, media, rows):
                    over = [(self.books.over(worker, number), seconds) for number, seconds in media]
                    self.deaths = 0
                    yield PartPrepared(name, rows)
                    for medium, seconds in over:
                        assert medium is not None  # what it holds is over once
                        yield from self._over(medium, [], seconds)
                case NoDisk():
                    self._tell_of_rows(worker)
                case Ended(why, could_begin):
                    yield from self._gone(worker, Gone(why, hopeless=not could_begin))
                    return
            if self._is_over():
                return
        if batch.silent_s > self.crew.timeout:
            yield from self._gone(worker, Gone(f"gave no sign for {self.crew.timeout:g} s, --worker-timeout"))

    def _loaded(self, worker: int, loaded: Loaded) -> Iterator[WorkEvent[Any]]:
        """A worker is ready; not one whose answers would differ from those of the others."""
        tally, parts = self.parts.tally, self.parts
        if tally.weight_format is None:
            tally.weight_format = loaded.weight_format
            parts.progress.loaded(loaded.weight_format, loaded.note)
        elif loaded.weight_format != tally.weight_format:
            words = f"holds the weights in {loaded.weight_format}, others in {tally.weight_format}; --dtype settles it"
            yield from self._gone(worker, Gone(words, hopeless=True))
            return
        self.revision = loaded.revision
        self.ready[worker] = loaded
        self.books.enter(worker)
        yield loaded

    def _tell_of_rows(self, worker: int) -> None:
        """Says, once, that rows come through this process."""
        assert self.work.place is not None
        if not self.sends_rows:
            self.sends_rows = True
            words = f"{self.crew.hands.name(worker)} has no '{self.work.place.folder}' that it may write to"
            self.parts.progress.detailed(f"{words}: it sends its rows, and they are written here")

    def _over(self, medium: Medium, came: Iterable[Came[Any]], seconds: float) -> Iterator[WorkEvent[Any]]:
        """A medium is done: what came of it, and then it counts."""
        yield from came
        yield MediumOver(medium.job, seconds)
        self.crew.hands.let_go(medium.job)
        self.begun.discard(medium.number)
        self.parts.tally.media += 1
        self.parts.progress.item_done()

    def _gone(self, worker: int, gone: Gone) -> Iterator[WorkEvent[Any]]:
        """A worker is there no more: what it held goes back, and another one takes its place."""
        hands = self.crew.hands
        name = hands.name(worker)
        hands.dismiss(worker)
        self.hired.discard(worker)
        self.ready.pop(worker, None)
        could_begin = self.parts.tally.weight_format is not None
        self.last_words = f"{name}: {gone.why}"
        lost, given_up = self.books.lost(worker, blamed=gone.blamed)
        for medium in lost:
            if medium.number in self.begun:
                self.begun.remove(medium.number)
                yield MediumLost(medium.job)
        for medium in given_up:
            words = f"a worker died {medium.deaths} times over it, the last time with nothing else in hand: {gone.why}"
            fault = Fault("worker", "worker_died", words)
            yield from self._over(medium, self.work.task.unanswered(medium.job, fault, self.revision), 0.0)
        self.hopeless += gone.hopeless
        self.deaths += not gone.hopeless and gone.blamed
        if self.deaths > DEATHS_A_WORKER * hands.count:
            raise WorkersError(f"{self.deaths} workers died in a row, the last one {self.last_words}; {GOES_ON}")
        if not (self.hired or hands.count > self.hopeless):
            raise WorkersError(f"no worker is left: {self.last_words}" + (f"; {GOES_ON}" if could_begin else ""))
        self.parts.progress.noted(f"lost: {self.last_words}")
        self._hire()

    def _look_for_places(self) -> None:
        """Raises `WorkersError` where no worker is there and none can come; hires where there is room again."""
        now = monotonic()
        if self.ready:
            self.alone_since = now
        elif now - self.alone_since > ALONE_S and not self.crew.hands.places():
            raise WorkersError(f"no worker is left, and no machine has room for one: {self.last_words}; {GOES_ON}")
        wanted = self.crew.hands.count - self.hopeless
        if len(self.hired) < wanted:
            self._hire()
        self._tell_of_room(wanted, now)

    def _tell_of_room(self, wanted: int, now: float) -> None:
        """Says, once, that workers wait for room: others may be using the machines."""
        there = sum(self.crew.hands.has_started(worker) for worker in self.hired)
        if there >= wanted:
            self.short_since = None
            return
        self.short_since = self.short_since or now
        if now - self.short_since > ROOM_S and not self.told_of_room:
            self.told_of_room = True
            goes_on = f"the run goes on with {there}" if there else "the run waits for one"
            words = f"{wanted - there} of {wanted} workers have not started within {ROOM_S:g} s"
            self.parts.progress.noted(f"{words}: the machines may have no room for them now; {goes_on}")
