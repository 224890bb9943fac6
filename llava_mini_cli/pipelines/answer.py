"""Jobs -> answers -> rows: the one loop of `ask` and `caption`.

    jobs -> resume -> limit -> fetch -> open_clip, ahead -> engine.add / step -> Row -> output

Failures are values that become rows; only an interrupt, a limit, a model that cannot be had or an output that cannot be
written ends the run early, and then every clip is closed. Prints nothing, and knows neither how media are decoded
nor how answers are made: both are handed in, as `Tools`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.open_output import Output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.ahead import Opened
from llava_mini_cli.pipelines.feed import (
    AnswerEngine,
    Counted,
    CountedFrames,
    OpenClip,
    fault_of,
    feed,
    limited,
    open_or_fault,
)
from llava_mini_cli.pipelines.fetch import FetchAhead
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.resume import Resume
from llava_mini_cli.pipelines.rows import RowBuilder
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

CHUNK_FRAMES = 32
HELD_BACK = 1000  # media that are not there, whose rows wait until the model is loaded
POLL_S = 0.005  # between looks at whether frames or the next medium are there


@dataclass(frozen=True)
class Tools:
    """The parts that a run is made with; tests hand in doubles."""

    load_engine: Callable[[ModelOptions], AnswerEngine]
    open_clip: OpenClip
    open_output: Callable[[], Output]
    progress: Progress
    interrupts: Interrupts
    cache: FileCache = field(default_factory=lambda: FileCache(FetchOptions()))  # of media from elsewhere
    find_fault: Callable[[Job], Fault | None] = fault_of  # told without a decoder


def answer_jobs(jobs: Iterator[Job], options: RunOptions, tools: Tools, tally: Tally) -> None:
    """Runs every job to its rows: exactly one row for each of its prompts, in the order they are finished.

    The output is opened first, since what it holds already is left out. The model is loaded when the first medium
    with something left to do turns up, so a run without one needs no model. `tally` counts while it goes on, so that
    a run which ends early is counted, too.

    Raises:
        ModelError, UsageError: the model cannot be loaded as asked, or the output is of other settings.
        OutputError: the output is locked, or a row cannot be written.
        Interrupted: a signal came; what was answered is in the output.
    """
    with tools.open_output() as output:
        try:
            with FetchAhead(left_to_do(jobs, options, output.done, tally), tools.cache) as fetched:
                _answer(fetched, options, tools, output, tally)
        finally:
            tally.skipped, tally.errors_skipped = output.done.rows_left, output.done.errors_left
    tools.interrupts.check()


def left_to_do(jobs: Iterator[Job], options: RunOptions, done: Done, tally: Tally) -> Iterator[Job]:
    """Without what is done already, and not more than the limit of media."""
    return limited(Resume(options.row_keys(), done, tally).remaining(jobs), options.limits.media, tally)


def _answer(jobs: Iterator[Job], options: RunOptions, tools: Tools, output: Output, tally: Tally) -> None:
    run = _Run(RowBuilder(options), output, tools, tally)
    lost: list[tuple[Job, Fault]] = []
    engine = None
    while (first := _next_readable(jobs, lost, options.limits.failures, tools)) is None and lost:
        run.fail_all(lost)
        if run.is_over():
            return
    if first is not None:
        with tools.interrupts.allowed():
            tools.progress.loading(options.model.model)
            engine = tools.load_engine(options.model)
        run.builder = replace(run.builder, model_revision=engine.model_revision)
    run.fail_all(lost)
    if first is not None and engine is not None and not run.is_over():
        run.loop(engine, chain([first], jobs))


def _next_readable(jobs: Iterator[Job], lost: list[tuple[Job, Fault]], most: int | None, tools: Tools) -> Job | None:
    """The next job whose medium is there; those before it go to `lost`. None after `most` or very many of those."""
    with tools.interrupts.allowed():
        for job in jobs:
            fault = tools.find_fault(job)
            if fault is None:
                return job
            lost.append((job, fault))
            if len(lost) == min(most or HELD_BACK, HELD_BACK):
                return None
    return None


@dataclass
class _InFlight:
    """One medium in the engine."""

    job: Job
    clip: Clip
    frames: CountedFrames
    waiting: set[int]  # prompts without a row yet
    has_failed: bool = False


class _Run(Counted):
    """The state of a run: clips in flight, rows written."""

    def __init__(self, builder: RowBuilder, output: Output, tools: Tools, tally: Tally) -> None:
        super().__init__(tools.progress, tools.cache, tally, builder.options.limits.failures)
        self.builder = builder
        self._output = output
        self._tools = tools
        self._keys = count()
        self._flights: dict[str, _InFlight] = {}

    def loop(self, engine: AnswerEngine, jobs: Iterator[Job]) -> None:
        """Answers all of the jobs."""
        sampling = self.builder.options.sampling

        def open_one(job: Job, opening: Opening) -> Clip | Fault:
            return self._tools.find_fault(job) or open_or_fault(
                self._tools.open_clip, job, sampling, engine.frame_size, opening
            )

        feed(engine, jobs, self, self._tools.interrupts, open_one, sampling.decode_timeout)

    def take(self, results: list[Answer | Failure]) -> None:
        """Writes the rows of what the engine said."""
        for result in results:
            self._settle(result)

    def close(self) -> None:
        """Closes what is in flight."""
        for flight in self._flights.values():
            flight.frames.close()

    def fail_all(self, lost: list[tuple[Job, Fault]]) -> None:
        """Rows for media that were not there, up to the limit; empties the list."""
        for job, fault in lost:
            if self.is_over():
                break
            self.fail(job, fault)
        lost.clear()

    def fail(self, job: Job, fault: Fault) -> None:
        """Rows for a medium that could not be opened."""
        for index in range(len(job.questions)):
            self._write(self.builder.failure(job, index, fault), fails_medium=index == 0)
        self.count_medium(job)

    def add(self, engine: AnswerEngine, opened: Opened, clip: Clip) -> None:
        """Asks everything about one medium."""
        key, job = str(next(self._keys)), opened.job
        self._tools.progress.opened(replace(clip.info, path=job.path))
        frames = CountedFrames(clip, self.count_frames, opened.release)
        self._flights[key] = _InFlight(job, clip, frames, set(range(len(job.questions))))
        prompts = tuple(question.prompt.text for question in job.questions)
        engine.add(Request(key, clip.info.kind, frames, prompts, self.builder.options.generation))

    def _settle(self, result: Answer | Failure) -> None:
        """The row of one result; the last one of a medium closes its clip."""
        flight = self._flights[result.key]
        if isinstance(result, Answer):
            row = self.builder.answer(flight.job, result, flight.clip.info, flight.clip.warnings)
        else:
            fault = Fault(result.stage, result.error_type, result.message)
            row = self.builder.failure(flight.job, result.prompt_index, fault, flight.clip.info)
        self._write(row, fails_medium=row.status == "error" and not flight.has_failed)
        flight.has_failed |= row.status == "error"
        flight.waiting.remove(result.prompt_index)
        if not flight.waiting:
            flight.frames.close()
            del self._flights[result.key]
            self._tally.video_s += flight.clip.info.duration_s or 0.0
            self.count_medium(flight.job)

    def _write(self, row: Row, *, fails_medium: bool) -> None:
        self._output.write(row)
        self._tally.row(row, fails_medium=fails_medium)
        self._tools.progress.row(row)
