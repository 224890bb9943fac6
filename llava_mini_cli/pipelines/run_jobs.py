"""Jobs and an engine in, what becomes of each medium out: the one loop of `ask`, `caption` and `index`.

    jobs -> limit -> fetch -> open ahead -> engine.add / step -> NotOpened, OutcomeCame, MediumDone

What is asked about a medium, and what is made of the answers, is up to whoever takes the events. Failures are events,
too; only an interrupt, a limit or a model that cannot be had ends the loop early, and then every clip is closed.
Prints nothing, and knows neither how media are decoded nor of rows, outputs and archives.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from llava_mini_cli.config import Choices, Grammar
from llava_mini_cli.engine.request import (
    WHOLE,
    Answer,
    Cut,
    Failure,
    FrameSink,
    FrameWatcher,
    GrowingWindows,
    Request,
    Window,
)
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.open import Opening, is_picture_path
from llava_mini_cli.media.picture_pool import POOL
from llava_mini_cli.pipelines.ahead import OpenAhead, Opened
from llava_mini_cli.pipelines.fetch import FetchAhead
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.open_job import CountedFrames, open_or_fault
from llava_mini_cli.pipelines.question_parts import Assembly, QuestionParts
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts, SomeEngine
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

HELD_BACK = 10_000  # media that are not there and wait until the model is loaded
POLL_S = 0.005  # seconds between looks at whether frames or the next medium are there

_keys = count()  # never given twice: an engine that is used again may still hold media of a run that ended early


class WatchedSink(FrameSink, Protocol):
    """A sink that can tell whether it was given everything."""

    @property
    def is_over(self) -> bool:
        """True once the last frame was encoded, or the medium failed."""
        ...


SomeSink = TypeVar("SomeSink", bound=WatchedSink | None)


@dataclass(frozen=True)
class Asked(Generic[SomeSink]):
    """The questions about one medium, and who takes what the model makes of its frames."""

    prompts: tuple[str, ...]
    sink: SomeSink
    windows: Sequence[Window] = (WHOLE,)
    choices: tuple[Choices | None, ...] = ()  # of each prompt, as a request has them
    grammars: tuple[Grammar | None, ...] = ()  # the same
    assembly: Assembly | None = None  # of rows from answers, where it takes several to make one
    watcher: FrameWatcher | None = None  # is shown the medium's frames
    cut: Cut | None = None  # of windows into pieces that are left out for evidence
    size: tuple[int, int] | None = None  # of a picture whose blocks are left out for evidence

    def outcomes(self) -> int:
        """The number of answers and failures that will come."""
        return sum(len(self.prompts) - len(window.without) for window in self.windows)


@dataclass(eq=False)
class InFlight(Generic[SomeSink]):
    """One medium in the engine."""

    job: Job
    clip: Clip
    frames: CountedFrames
    asked: Asked[SomeSink]
    expected: int | None  # answers and failures in all; None: windows that grow say how many
    came: int = 0  # of them
    has_failed: bool = False  # whether one of its questions has

    @property
    def sink(self) -> SomeSink:
        """Who takes what the model makes of its frames."""
        return self.asked.sink

    @property
    def is_over(self) -> bool:
        """True once everything about the medium is there."""
        windows, expected = self.asked.windows, self.expected
        if isinstance(windows, GrowingWindows):
            expected = None if windows.is_growing else windows.outcomes
        return self.came == expected and (self.sink is None or self.sink.is_over)


@dataclass(frozen=True)
class ModelLoaded(Generic[SomeEngine]):
    """The model was loaded, since there is something to do. Comes once, before the first `OutcomeCame`."""

    engine: SomeEngine


class NotOpened(NamedTuple):
    """A medium that could not be opened."""

    job: Job
    fault: Fault


@dataclass(frozen=True)
class OutcomeCame(Generic[SomeSink]):
    """An answer about a medium, or why there is none."""

    flight: InFlight[SomeSink]
    result: Answer | Failure


@dataclass(frozen=True)
class MediumDone(Generic[SomeSink]):
    """A medium of which everything is there; its clip is closed."""

    flight: InFlight[SomeSink]


Event = ModelLoaded[AnswerEngine] | NotOpened | OutcomeCame[SomeSink] | MediumDone[SomeSink]


def run_jobs(
    jobs: Iterable[Job],
    load: Callable[[], SomeEngine],
    ask: Callable[[Job, Clip], Asked[SomeSink] | Fault],
    options: RunOptions | IndexOptions,
    parts: RunParts,
) -> Generator[ModelLoaded[SomeEngine] | NotOpened | OutcomeCame[SomeSink] | MediumDone[SomeSink]]:
    """Works until there are no more jobs and the engine has nothing left to do, or the run is over.

    A run without a medium that can be read needs no model. Media that are not there before the first one that is
    wait for the model, unless they are very many. An event counts as dealt with when the next one is asked for.

    Args:
        load: called at most once.
        ask: what the engine is asked about a medium that was opened, or why nothing can be.

    Raises:
        Interrupted: a signal came. Also what `load` and the iterator of jobs raise.
    """
    with ExitStack() as stack:
        cache = parts.cache or stack.enter_context(FileCache(FetchOptions()))
        wanted = limited(jobs, options.limits.media, parts.tally)
        fetched = stack.enter_context(FetchAhead(wanted, cache))
        run = _Run(ask, options, parts, cache)
        stack.enter_context(POOL.lease())
        if parts.has_model:
            engine = load()
            yield ModelLoaded(engine)
            yield from run.each_medium(engine, fetched)
            return
        while True:
            with parts.interrupts.allowed():
                lost, first = run.first_readable(fetched)
                if first is not None and is_picture_path(first.file):
                    POOL.expect()  # its process starts while the model is loaded
                engine = None if first is None else load()
            if first is not None and engine is not None:
                yield ModelLoaded(engine)
                found = chain((job._replace(fault=fault) for job, fault in lost), [first], fetched)
                yield from run.each_medium(engine, found)
                return
            for job, fault in lost:
                yield from run.not_opened(job, fault)
                if run.is_over():
                    return
            if not lost:
                return


def limited(jobs: Iterable[Job], most: int | None, tally: Tally) -> Iterator[Job]:
    """The first `most` jobs; says so in the tally if there are more."""
    for number, job in enumerate(jobs):
        if number == most:
            tally.stopped_by = "limit"
            return
        yield job


@dataclass
class _Run(Generic[SomeSink]):
    """The media in flight, and how many were dealt with."""

    ask: Callable[[Job, Clip], Asked[SomeSink] | Fault]
    options: RunOptions | IndexOptions
    parts: RunParts
    cache: FileCache
    in_flight: dict[str, InFlight[SomeSink]] = field(default_factory=dict[str, InFlight[SomeSink]])

    def is_over(self) -> bool:
        """True once as many media have failed as are allowed to; says so in the tally."""
        tally, most = self.parts.tally, self.options.limits.failures
        if most is None or tally.media_failed < most:
            return False
        tally.stopped_by = "max_failures"
        return True

    def first_readable(self, jobs: Iterator[Job]) -> tuple[list[tuple[Job, Fault]], Job | None]:
        """Media that are not there, and the first one that is; None after very many, or as many as may fail."""
        lost: list[tuple[Job, Fault]] = []
        for job in jobs:
            fault = self.parts.find_fault(job)
            if fault is None:
                return lost, job
            lost.append((job, fault))
            if len(lost) == min(self.options.limits.failures or HELD_BACK, HELD_BACK):
                break
        return lost, None

    def not_opened(self, job: Job, fault: Fault) -> Iterator[NotOpened]:
        """A medium that cannot be had is dealt with."""
        yield NotOpened(job, fault)
        self._count(job)

    def each_medium(
        self, engine: AnswerEngine, jobs: Iterator[Job]
    ) -> Iterator[NotOpened | OutcomeCame[SomeSink] | MediumDone[SomeSink]]:
        """Has the engine look at every medium."""
        parts, sampling = self.parts, self.options.sampling

        def open_one(job: Job, opening: Opening) -> Clip | Fault:
            most = None
            if sampling.fit:
                schema = self.options.schema if isinstance(self.options, RunOptions) else None
                asked = QuestionParts.of([question.prompt for question in job.questions], schema)
                most = engine.most_frames(asked.texts, self.options.generation, asked.choices)
            fault = parts.find_fault(job)
            return fault or open_or_fault(parts.open_clip, job, sampling, engine.frame_size, opening, most)

        ahead = OpenAhead(jobs, open_one, engine.still, engine.media_bytes, timeout=sampling.decode_timeout)
        try:
            while not self.is_over():
                parts.interrupts.check()
                yield from self._admit(engine, ahead)
                if engine.is_idle and ahead.is_exhausted:
                    return
                if engine.is_idle:
                    ahead.wait()
                elif engine.is_waiting and not ahead.is_exhausted:
                    ahead.wait(POLL_S)
                else:
                    with parts.interrupts.allowed():
                        results = engine.step()
                    yield from self._outcomes(results)
                    yield from self._done()
        finally:
            for flight in self.in_flight.values():
                flight.frames.close()
            POOL.give_up()  # whoever waits for a picture there need not wait any more
            ahead.close()

    def _admit(self, engine: AnswerEngine, ahead: OpenAhead) -> Iterator[NotOpened]:
        """Gives the engine media that are open, while it has room."""
        while engine.has_room() and not self.is_over():
            opened = ahead.take()
            if opened is None:
                return
            if isinstance(opened.clip, Fault):
                yield from self.not_opened(opened.job, opened.clip)
                continue
            asked = self.ask(opened.job, opened.clip)
            if isinstance(asked, Fault):
                CountedFrames(opened.clip, self._count_frames, opened.release).close()
                yield from self.not_opened(opened.job, asked)
            else:
                self._add(engine, opened, opened.clip, asked)

    def _add(self, engine: AnswerEngine, opened: Opened, clip: Clip, asked: Asked[SomeSink]) -> None:
        key, job = str(next(_keys)), opened.job
        growing = asked.windows if isinstance(asked.windows, GrowingWindows) else None
        frames = CountedFrames(clip, self._count_frames, opened.release, growing)
        self.parts.progress.opened(replace(clip.info, path=job.path))
        self.in_flight[key] = InFlight(job, clip, frames, asked, None if growing is not None else asked.outcomes())
        generation, count = self.options.generation, clip.info.frame_count
        request = Request(key, clip.info.kind, frames, asked.prompts, generation, asked.windows, asked.sink, count)
        request = replace(request, choices=asked.choices, grammars=asked.grammars, watcher=asked.watcher)
        engine.add(replace(request, cut=asked.cut, size=asked.size))

    def _outcomes(self, results: list[Answer | Failure]) -> Iterator[OutcomeCame[SomeSink]]:
        for result in results:
            flight = self.in_flight.get(result.key)
            if flight is not None:
                flight.came += 1
                yield OutcomeCame(flight, result)

    def _done(self) -> Iterator[MediumDone[SomeSink]]:
        """Ends the media of which everything is there."""
        for key, flight in list(self.in_flight.items()):
            if flight.is_over:
                flight.frames.close()
                del self.in_flight[key]
                yield MediumDone(flight)
                self._count(flight.job)

    def _count_frames(self, frames: int) -> None:
        self.parts.tally.frames += frames
        self.parts.progress.frames(frames)

    def _count(self, job: Job) -> None:
        """One more medium is done, and a fetched copy of it may go."""
        if job.local is not None:
            self.cache.release(Path(job.local))
        self.parts.tally.media += 1
        self.parts.progress.item_done()
