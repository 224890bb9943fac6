"""Jobs -> an archive: the loop of `index`.

    jobs -> what the archive does not hold -> open_clip -> engine.add / step -> sink -> archive

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
from llava_mini_cli.engine.request import WHOLE, Answer, FrameShapes, Request, Window
from llava_mini_cli.errors import MediaError, UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.reader import Damage
from llava_mini_cli.formats.archive.writer import ArchiveWriter, open_for_writing
from llava_mini_cli.formats.fingerprint import item_identity
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.row import printable
from llava_mini_cli.hub import model_digest
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.pipelines.answer import (
    CHUNK_FRAMES,
    MAX_OPEN_MEDIA,
    MAX_OPEN_VIDEOS,
    AnswerEngine,
    CountedFrames,
    OpenClip,
    fault_of,
)
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.index_sink import MediumSink
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.rows import one_line


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
    def medium_failed(self, path: str, message: str) -> None: ...
    def medium_warned(self, path: str, message: str) -> None: ...


@dataclass(frozen=True)
class IndexTools:
    """The parts that a run is made with; tests hand in doubles."""

    load_engine: Callable[[ModelOptions], IndexEngine]
    open_clip: OpenClip
    progress: IndexProgress
    interrupts: Interrupts


@dataclass
class IndexTally:
    """What became of the media of a run."""

    indexed: int = 0
    failed: int = 0
    held: int = 0  # there already
    dropped: int = 0
    damage: list[Damage] = field(default_factory=list[Damage])  # parts that could not be read


def index_jobs(jobs: Iterator[Job], folder: Path, options: IndexOptions, tools: IndexTools) -> IndexTally:
    """Brings an archive up to date with its media: adds what is new, replaces what changed.

    The model is loaded only when there is something to do.

    Raises:
        UsageError: the archive was made with another model or other settings.
        OutputLocked, OutputError: the archive is being written to, or cannot be.
        Interrupted: a signal came; what was complete is in the archive.
    """
    digest = model_digest(options.model.model, options.model.revision)
    with open_for_writing(folder) as archive:
        if archive.header is not None:
            archive.start(_like(archive.header, options, digest))
        run = _Run(archive, options, tools)
        run.tally.damage = archive.damage
        wanted = run.wanted(jobs)
        first = next((job for job in wanted if not run.cannot_open(job)), None)
        if first is not None:
            tools.progress.loading(options.model.model)
            engine = tools.load_engine(options.model)
            archive.start(_header(options, digest, engine))
            run.fail_lost()
            run.loop(engine, chain([first], wanted))
        elif archive.header is not None:
            run.fail_lost()
        if options.prune and archive.header is not None:
            run.prune()
        return run.tally


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


class _Run:
    """The state of a run: media in flight, and the archive."""

    def __init__(self, archive: ArchiveWriter, options: IndexOptions, tools: IndexTools) -> None:
        self.tally = IndexTally()
        self._archive = archive
        self._options = options
        self._tools = tools
        self._flights: dict[str, _InFlight] = {}
        self._lost: list[tuple[Job, Fault]] = []  # before the archive could be written to

    def wanted(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs whose media the archive does not hold as they are now; each medium once."""
        seen: set[str] = set()
        for job in jobs:
            path, size, mtime = job.item or item_identity(job.path)
            item = printable(path), size, mtime
            if item[0] in seen:
                continue
            seen.add(item[0])
            if self._archive.holds(item, retry_errors=self._options.retry_errors):
                self.tally.held += 1
                self._tools.progress.item_done()
            else:
                yield job._replace(item=item)

    def cannot_open(self, job: Job) -> bool:
        """Whether a medium can be told to fail without a decoder; it is noted until the archive is open."""
        fault = fault_of(job)
        if fault is not None:
            self._lost.append((job, fault))
            self.tally.failed += 1
            self._tools.progress.medium_failed(job.path, fault.message)
            self._tools.progress.item_done()
        return fault is not None

    def fail_lost(self) -> None:
        """Rows for the media that were lost before the archive was open."""
        for job, fault in self._lost:
            self._write_failure(job, fault)
        self._lost.clear()

    def loop(self, engine: IndexEngine, jobs: Iterator[Job]) -> None:
        """Keeps the engine fed until there are no more jobs and it has nothing left to do."""
        try:
            while True:
                self._admit(engine, jobs)
                if engine.is_idle and not self._flights:
                    return
                for result in engine.step():
                    flight = self._flights[result.key]
                    flight.waiting -= 1
                    if isinstance(result, Answer):
                        flight.sink.caption(result)
                    elif result.error_type != "empty":  # a window between two frames has no caption
                        flight.sink.warn(f"no caption: {result.message}")
                self._settle()
                self._tools.interrupts.check()
        finally:
            for flight in self._flights.values():
                flight.clip.close()

    def prune(self) -> None:
        """Drops local files that are not there any more; an archive on another machine's disk looks so, too."""
        for path in list(self._archive.known):
            if "://" not in path and not os.path.lexists(path):
                with self._tools.interrupts.held():
                    self._archive.drop(path)
                self.tally.dropped += 1

    def _admit(self, engine: IndexEngine, jobs: Iterator[Job]) -> None:
        while self._may_open() and engine.has_room():
            job = next(jobs, None)
            if job is None:
                return
            clip = fault_of(job) or self._open(job, engine.frame_size)
            if isinstance(clip, Fault):
                self.tally.failed += 1
                self._tools.progress.medium_failed(job.path, clip.message)
                self._write_failure(job, clip)
                self._tools.progress.item_done()
                continue
            self._tools.progress.opened(clip.info)
            self._start(engine, job, clip)

    def _start(self, engine: IndexEngine, job: Job, clip: Clip) -> None:
        sink = MediumSink(self._archive, job, clip, self._options, self._tools.interrupts.held)
        windows = _windows(clip.info, self._options.caption_every)
        prompts = (self._options.caption_prompt,) if windows else ()
        frames, key = CountedFrames(clip, self._tools.progress), str(sink.number)
        self._flights[key] = _InFlight(job, clip, frames, sink, len(windows))
        kind = clip.info.kind
        engine.add(Request(key, kind, frames, prompts, self._options.generation, windows, sink))

    def _may_open(self) -> bool:
        kinds = [flight.clip.info.kind for flight in self._flights.values() if not flight.frames.closed]
        return len(self._flights) < MAX_OPEN_MEDIA and kinds.count("video") < MAX_OPEN_VIDEOS

    def _open(self, job: Job, frame_size: int) -> Clip | Fault:
        sampling = self._options.sampling
        try:
            return self._tools.open_clip(job.file, sampling, frame_size=frame_size, chunk_frames=CHUNK_FRAMES)
        except MediaError as error:
            return Fault(error.stage, error.kind, str(error))

    def _settle(self) -> None:
        """Finishes the media of which everything is there."""
        for key, flight in list(self._flights.items()):
            if flight.sink.fault is None and (not flight.sink.ended or flight.waiting):
                continue
            flight.frames.close()
            del self._flights[key]
            self._finish(flight)
            self._tools.progress.item_done()

    def _finish(self, flight: _InFlight) -> None:
        fault = flight.sink.fault
        with self._tools.interrupts.held():
            flight.sink.finish()
        if fault is not None:
            self.tally.failed += 1
            self._tools.progress.medium_failed(flight.job.path, fault.message)
            return
        self.tally.indexed += 1
        for warning in flight.sink.warnings:
            self._tools.progress.medium_warned(flight.job.path, warning)

    def _write_failure(self, job: Job, fault: Fault) -> None:
        path, size, mtime = job.item or item_identity(job.path)
        row = {
            "path": printable(path),
            "file_name": printable(job.file_name),
            "size": size,
            "mtime": mtime,
            "status": "error",
            "error": one_line(fault.message),
            "error_type": fault.kind,
            "error_stage": fault.stage,
        }
        with self._tools.interrupts.held():
            self._archive.finish(self._archive.begin(), row)


def _windows(info: ClipInfo, every: float | None) -> tuple[Window, ...]:
    """The windows that are captioned: stretches of `every` seconds, or the whole where there is no length."""
    if every is None:
        return ()
    if info.duration_s is None or info.duration_s <= every:
        return (WHOLE,)
    count = ceil(info.duration_s / every)
    return tuple(Window(number * every, (number + 1) * every) for number in range(count))
