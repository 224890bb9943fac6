"""Jobs -> an archive: the loop of `index`.

    jobs -> what the archive does not hold -> limit -> fetch -> open_clip, ahead -> engine.add / step -> sink -> archive

Each medium is decoded and looked at once, for its vision tokens, CLIP embeddings, patch features and captions
together. A medium that fails becomes a row of the archive, as it does elsewhere. Prints nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Protocol

from llava_mini_cli import __version__
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.request import WHOLE, Answer, Failure, FrameShapes, Request, Window
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.reader import Damage, local_name
from llava_mini_cli.formats.archive.writer import ArchiveWriter, open_for_writing
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, ItemIdentity, Job
from llava_mini_cli.formats.outputs.row_keys import file_identity
from llava_mini_cli.formats.row import one_line, printable
from llava_mini_cli.hub import model_digest
from llava_mini_cli.media.clip import Clip, ClipInfo
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
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.index_sink import MediumSink
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.tally import LISTED, FailedMedium, Tally

HELD_BACK = 10_000  # failed media that a new archive remembers, of those before the first one that can be read


class IndexEngine(AnswerEngine, Protocol):
    """What this loop asks of an engine beyond what `ask` does."""

    @property
    def dtype(self) -> str: ...
    @property
    def frame_shapes(self) -> FrameShapes: ...


class IndexProgress(Protocol):
    """What a run tells about itself while it goes on."""

    def loading(self, model: str) -> None: ...
    def opened(self, info: ClipInfo) -> None: ...
    def frames(self, count: int) -> None: ...
    def item_done(self) -> None: ...
    def warned(self, path: str, message: str) -> None: ...


@dataclass(frozen=True)
class IndexTools:
    """The parts that a run is made with; tests hand in doubles."""

    load_engine: Callable[[ModelOptions], IndexEngine]
    open_clip: OpenClip
    progress: IndexProgress
    interrupts: Interrupts
    cache: FileCache


@dataclass
class IndexTally(Tally):
    """Counts of one run; `answered` are media that were indexed, `skipped` those that were there."""

    dropped: int = 0
    damage: list[Damage] = field(default_factory=list[Damage])  # parts that could not be read

    def fail(self, path: str, fault: Fault) -> None:
        """Counts a medium that failed."""
        self.failed += 1
        self.media_failed += 1
        self.failures[fault.kind] += 1
        if len(self.listed) < LISTED:
            self.listed.append(FailedMedium(path, fault.kind, one_line(fault.message)))


def index_jobs(jobs: Iterator[Job], folder: Path, options: IndexOptions, tools: IndexTools, tally: IndexTally) -> None:
    """Brings an archive up to date with its media: adds what is new, replaces what changed.

    The model is loaded only when there is something to do. `tally` counts while it goes on.

    Raises:
        UsageError: the archive was made with another model or other settings.
        OutputLocked, OutputError: the archive is being written to, or cannot be.
        Interrupted: a signal came; what was complete is in the archive.
    """
    digest = model_digest(options.model.model, options.model.revision)
    with open_for_writing(folder) as archive:
        tally.damage = archive.damage
        if archive.header is not None:
            archive.start(_like(archive.header, options, digest))
        run = _Run(archive, options, tools, tally)
        with FetchAhead(limited(run.wanted(jobs), options.limits.media, tally), tools.cache) as wanted:
            _index(wanted, options, tools, run, digest)
        if options.prune and archive.header is not None:
            run.prune()
        tools.interrupts.check()


def _index(jobs: Iterator[Job], options: IndexOptions, tools: IndexTools, run: "_Run", digest: str) -> None:
    with tools.interrupts.allowed():
        first = run.first_readable(jobs)
        if first is None:
            return
        tools.progress.loading(options.model.model)
        engine = tools.load_engine(options.model)
    run.archive.start(_header(options, digest, engine))
    run.record_lost()
    run.loop(engine, chain([first], jobs))


def _like(header: ArchiveHeader, options: IndexOptions, digest: str) -> ArchiveHeader:
    """The header that this run would write, as far as it is known before the model is loaded."""
    settings = options.settings(str(header.settings.get("dtype")))
    wanted = _header_of(options, digest, header.shapes, header.model_revision)
    return replace(wanted, settings=settings)


def _header(options: IndexOptions, digest: str, engine: IndexEngine) -> ArchiveHeader:
    shapes = engine.frame_shapes
    if options.dedupe is not None and shapes.embedding is None:
        raise UsageError("--dedupe compares CLIP embeddings, and this model's CLIP has no image projection")
    known = Shapes(shapes.token, shapes.embedding, shapes.features)
    header = _header_of(options, digest, known, engine.model_revision)
    return replace(header, settings=options.settings(engine.dtype))


def _header_of(options: IndexOptions, digest: str, shapes: Shapes, revision: str | None) -> ArchiveHeader:
    model = options.model.model
    name = os.path.abspath(model) if Path(model).is_dir() else model  # noqa: PTH100 - must not follow links
    return ArchiveHeader(name, revision, digest, shapes, options.features, version=__version__)


@dataclass(eq=False)
class _InFlight:
    """One medium in the engine."""

    job: Job
    clip: Clip
    frames: CountedFrames
    sink: MediumSink
    waiting: int  # captions that are still to come


class _Run(Counted):
    """The state of a run: media in flight, and the archive."""

    def __init__(self, archive: ArchiveWriter, options: IndexOptions, tools: IndexTools, tally: IndexTally) -> None:
        super().__init__(tools.progress, tools.cache, tally, options.limits.failures)
        self.archive = archive
        self._options = options
        self._tools = tools
        self._tally = tally
        self._flights: dict[str, _InFlight] = {}
        self._lost: list[tuple[Job, Fault]] = []  # failed before there was an archive to remember it

    def wanted(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs whose media the archive does not hold as they are now; each medium once."""
        seen: set[str] = set()
        for job in jobs:
            item = _identity(job)
            if item[0] in seen:
                continue
            seen.add(item[0])
            if self.archive.holds(item, retry_errors=self._options.retry_errors):
                self._tally.skipped += 1
                self._tally.errors_skipped += self.archive.known[item[0]].status == "error"
            else:
                yield job._replace(item=item)

    def first_readable(self, jobs: Iterator[Job]) -> Job | None:
        """The first medium that looks as if it could be opened; those before it have failed, and need no model."""
        while not self.is_over():
            job = next(jobs, None)
            fault = None if job is None else fault_of(job)
            if job is None or fault is None:
                return job
            self.fail(job, fault)
        return None

    def record_lost(self) -> None:
        """Has a new archive remember what failed before there was one."""
        for job, fault in self._lost:
            self._record(job, fault)
        self._lost.clear()

    def loop(self, engine: IndexEngine, jobs: Iterator[Job]) -> None:
        """Indexes all of the jobs."""
        sampling = self._options.sampling

        def open_one(job: Job, opening: Opening) -> Clip | Fault:
            return fault_of(job) or open_or_fault(self._tools.open_clip, job, sampling, engine.frame_size, opening)

        feed(engine, jobs, self, self._tools.interrupts, open_one, sampling.decode_timeout)

    def close(self) -> None:
        """Closes what is in flight."""
        for flight in self._flights.values():
            flight.frames.close()

    def prune(self) -> None:
        """Drops local media that are not there any more."""
        for path in list(self.archive.known):
            if "://" not in path and _is_gone(local_name(path)):
                self.archive.drop(path)
                self._tally.dropped += 1

    def take(self, results: list[Answer | Failure]) -> None:
        """Keeps captions, and finishes the media of which everything is there."""
        for result in results:
            flight = self._flights[result.key]
            flight.waiting -= 1
            if isinstance(result, Answer):
                flight.sink.caption(result)
            elif _is_worth_a_word(result):
                flight.sink.warn(f"no caption: {result.message}")
        self._settle()

    def add(self, engine: AnswerEngine, opened: Opened, clip: Clip) -> None:
        """Has the engine look at one medium, and caption it where that is wanted."""
        job, options = opened.job, self._options
        self._tools.progress.opened(replace(clip.info, path=job.path))
        sink = MediumSink(self.archive, job, clip, options)
        windows = _windows(clip.info, options.caption_every)
        prompts = (options.caption_prompt,) if windows else ()
        frames, key = CountedFrames(clip, self.count_frames, opened.release), str(sink.number)
        self._flights[key] = _InFlight(job, clip, frames, sink, len(windows))
        engine.add(Request(key, clip.info.kind, frames, prompts, options.generation, windows, sink))

    def _settle(self) -> None:
        """Finishes the media of which everything is there."""
        for key, flight in list(self._flights.items()):
            if flight.waiting or (flight.sink.fault is None and not flight.sink.ended):
                continue
            flight.frames.close()
            del self._flights[key]
            self._finish(flight)

    def _finish(self, flight: _InFlight) -> None:
        fault = flight.sink.fault
        flight.sink.finish()
        if fault is not None:
            self._tally.fail(flight.job.path, fault)
        else:
            self._tally.answered += 1
            self._tally.video_s += flight.clip.info.duration_s or 0.0
            for warning in flight.sink.warnings:
                self._tools.progress.warned(flight.job.path, warning)
        self.count_medium(flight.job)

    def fail(self, job: Job, fault: Fault) -> None:
        """A medium that could not be opened; the archive remembers it, a new one as soon as its model is known."""
        self._tally.fail(job.path, fault)
        if self.archive.header is not None:
            self._record(job, fault)
        elif len(self._lost) < HELD_BACK:
            self._lost.append((job, fault))
        self.count_medium(job)

    def _record(self, job: Job, fault: Fault) -> None:
        path, size, mtime = _identity(job)
        row = {
            "path": path,
            "file_name": printable(job.file_name),
            "size": size,
            "mtime": mtime,
            "status": "error",
            "error": one_line(fault.message),
            "error_type": fault.kind,
            "error_stage": fault.stage,
        }
        self.archive.finish(self.archive.begin(), row)


def _is_gone(path: str) -> bool:
    """Whether nothing has this name for certain: a disk that does not answer may have it, and a shard its member."""
    try:
        os.lstat(path)
    except (FileNotFoundError, ValueError):  # ValueError: no file can have such a name
        return True
    except OSError:  # such as NotADirectoryError: it lies inside a shard or a table, and that is there
        return False
    return False


def _identity(job: Job) -> ItemIdentity:
    path, size, mtime = job.item or file_identity(job.path)
    return printable(path), size, mtime


def _is_worth_a_word(failure: Failure) -> bool:
    """A window that lies between two frames has no caption, and nobody misses it."""
    return failure.error_type != "empty"


def _windows(info: ClipInfo, every: float | None) -> tuple[Window, ...]:
    """The windows that are captioned: stretches of `every` seconds, or the whole where there is no length."""
    if every is None:
        return ()
    if info.duration_s is None or info.duration_s <= every:
        return (WHOLE,)
    count = ceil(info.duration_s / every)
    return tuple(Window(number * every, (number + 1) * every) for number in range(count))
