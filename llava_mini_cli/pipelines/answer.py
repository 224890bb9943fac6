"""Jobs -> answers -> rows: the one loop of `ask` and `caption`.

    jobs -> open_clip -> engine.add / step -> Row -> output

Failures are values that become rows; only an interrupt, a model that cannot be had or an output that cannot be
written ends the run early, and then every clip is closed. Prints nothing, and knows neither how media are decoded
nor how answers are made: both are handed in, as `Tools`.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Protocol

from llava_mini_cli.config import ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.outputs import Output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import Clip, FrameChunk
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.progress import FrameCount, Progress
from llava_mini_cli.pipelines.rows import RowBuilder
from llava_mini_cli.pipelines.settings import RunOptions

CHUNK_FRAMES = 32
MAX_OPEN_VIDEOS = 2  # each holds a decoder's process and a chunk or two of frames
MAX_OPEN_MEDIA = 16  # pictures are cheap, and the engine encodes several at once


class AnswerEngine(Protocol):
    """What this loop asks of an engine."""

    @property
    def frame_size(self) -> int: ...
    @property
    def model_revision(self) -> str | None: ...
    @property
    def is_idle(self) -> bool: ...
    def has_room(self) -> bool: ...
    def add(self, request: Request) -> None: ...
    def step(self) -> list[Answer | Failure]: ...


class OpenClip(Protocol):
    """`media.open.open_clip`."""

    def __call__(self, path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int) -> Clip: ...


@dataclass(frozen=True)
class Tools:
    """The parts that a run is made with; tests hand in doubles."""

    load_engine: Callable[[ModelOptions], AnswerEngine]
    open_clip: OpenClip
    open_output: Callable[[], Output]
    progress: Progress
    interrupts: Interrupts


@dataclass
class Tally:
    """How many rows a run wrote."""

    answered: int = 0
    failed: int = 0


def answer_jobs(jobs: Iterator[Job], options: RunOptions, tools: Tools) -> Tally:
    """Runs every job to its rows: exactly one row for each of its prompts, in the order they are finished.

    The model is loaded when the first medium that is there turns up, so a run without one fails at once; the output
    is opened after that, so a model that cannot be had does not cost a file that was to be replaced.

    Raises:
        ModelError, UsageError: the model cannot be loaded as asked.
        OutputError: a row cannot be written.
        Interrupted: a signal came; what was answered is in the output.
    """
    lost: list[tuple[Job, Fault]] = []
    first = _first_readable(jobs, lost)
    engine = None
    if first is not None:
        tools.progress.loading(options.model.model)
        engine = tools.load_engine(options.model)
    builder = RowBuilder(options, engine.model_revision if engine else None)
    with tools.open_output() as output:
        run = _Run(builder, output, tools)
        for job, fault in lost:
            run.fail(job, fault)
        if first is not None and engine is not None:
            run.loop(engine, chain([first], jobs))
    return run.tally


def _first_readable(jobs: Iterator[Job], lost: list[tuple[Job, Fault]]) -> Job | None:
    """The first job whose medium is there; those before it go to `lost`."""
    for job in jobs:
        fault = fault_of(job)
        if fault is None:
            return job
        lost.append((job, fault))
    return None


def fault_of(job: Job) -> Fault | None:
    """Why a medium cannot even be opened, told without a decoder; None when it looks as if it could."""
    if job.fault is not None:
        return job.fault
    try:
        status = Path(job.file).stat()
    except FileNotFoundError:
        return Fault("decode", "not_found", "no such file")
    except OSError as error:
        return Fault("decode", "unreadable", (error.strerror or str(error)).lower())
    if not os.access(job.file, os.R_OK):
        return Fault("decode", "unreadable", "permission denied")
    if stat.S_ISDIR(status.st_mode):
        return Fault("decode", "unreadable", "a folder, not a file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return Fault("decode", "empty", "the file is empty")
    return None


@dataclass
class _InFlight:
    """One medium in the engine."""

    job: Job
    clip: Clip
    frames: "CountedFrames"
    waiting: set[int]  # prompts without a row yet


class _Run:
    """The state of a run: clips in flight, rows written."""

    def __init__(self, builder: RowBuilder, output: Output, tools: Tools) -> None:
        self.tally = Tally()
        self._builder = builder
        self._output = output
        self._tools = tools
        self._keys = count()
        self._flights: dict[str, _InFlight] = {}

    def loop(self, engine: AnswerEngine, jobs: Iterator[Job]) -> None:
        """Keeps the engine fed until there are no more jobs and it has nothing left to do."""
        try:
            while True:
                self._admit(engine, jobs)
                if engine.is_idle:
                    return
                for result in engine.step():
                    self._settle(result)
                self._tools.interrupts.check()
        finally:
            for flight in self._flights.values():
                flight.clip.close()

    def fail(self, job: Job, fault: Fault) -> None:
        """Rows for a medium that could not be opened."""
        for index in range(len(job.questions)):
            self._write(self._builder.failure(job, index, fault))
        self._tools.progress.item_done()

    def _admit(self, engine: AnswerEngine, jobs: Iterator[Job]) -> None:
        """Opens media while the engine has room and few enough are open."""
        while self._may_open() and engine.has_room():
            job = next(jobs, None)
            if job is None:
                return
            clip = self._open(job, engine.frame_size)
            if isinstance(clip, Fault):
                self.fail(job, clip)
                continue
            self._tools.progress.opened(clip.info)
            key, frames = str(next(self._keys)), CountedFrames(clip, self._tools.progress)
            self._flights[key] = _InFlight(job, clip, frames, set(range(len(job.questions))))
            prompts = tuple(question.prompt.text for question in job.questions)
            engine.add(Request(key, clip.info.kind, frames, prompts, self._builder.options.generation))

    def _may_open(self) -> bool:
        open_kinds = [flight.clip.info.kind for flight in self._flights.values() if not flight.frames.closed]
        return len(open_kinds) < MAX_OPEN_MEDIA and open_kinds.count("video") < MAX_OPEN_VIDEOS

    def _open(self, job: Job, frame_size: int) -> Clip | Fault:
        fault = fault_of(job)
        if fault is not None:
            return fault
        sampling = self._builder.options.sampling
        try:
            return self._tools.open_clip(job.file, sampling, frame_size=frame_size, chunk_frames=CHUNK_FRAMES)
        except MediaError as error:
            return Fault(error.stage, error.kind, str(error))

    def _settle(self, result: Answer | Failure) -> None:
        """The row of one result; the last one of a medium closes its clip."""
        flight = self._flights[result.key]
        if isinstance(result, Answer):
            row = self._builder.answer(flight.job, result, flight.clip.info, flight.clip.warnings)
        else:
            fault = Fault(result.stage, result.error_type, result.message)
            row = self._builder.failure(flight.job, result.prompt_index, fault, flight.clip.info)
        self._write(row)
        flight.waiting.remove(result.prompt_index)
        if not flight.waiting:
            flight.frames.close()
            del self._flights[result.key]
            self._tools.progress.item_done()

    def _write(self, row: Row) -> None:
        with self._tools.interrupts.held():
            self._output.write(row)
        if row.status == "ok":
            self.tally.answered += 1
        else:
            self.tally.failed += 1
        self._tools.progress.row(row)


class CountedFrames:
    """The frames of a clip, reported to the run's progress as they are read."""

    def __init__(self, clip: Clip, progress: FrameCount) -> None:
        self.closed = False
        self._clip = clip
        self._progress = progress

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            yield chunk
            self._progress.frames(len(chunk.times))

    def ready(self) -> bool:
        """Whether the next chunk can be had without waiting."""
        return self._clip.ready()

    def close(self) -> None:
        """Closes the clip."""
        self.closed = True
        self._clip.close()
