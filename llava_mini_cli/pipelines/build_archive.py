"""Jobs -> an archive: the loop of `index`.

    jobs -> what the archive does not hold -> run_jobs -> sink -> archive

Each medium is decoded and looked at once, for its vision tokens, CLIP embeddings, patch features and captions
together. A medium that fails becomes a row of the archive, as it does elsewhere. Prints nothing.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import cast, get_args

from llava_mini_cli import __version__
from llava_mini_cli.config import DTypeName, ModelOptions, Quantization
from llava_mini_cli.engine.request import WHOLE, Answer, Failure, Window
from llava_mini_cli.errors import PASSING_KINDS
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.archive.writer import ArchiveWriter, is_gone, open_for_writing
from llava_mini_cli.formats.content import content_of_job
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.row import one_line, printable
from llava_mini_cli.hub import model_digest
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.index_sink import ArchivedMedium, Indexed, MediumSink, identity, medium_row
from llava_mini_cli.pipelines.of_media import Came, Loaded, MediumLost, MediumOver, PartPrepared, WorkEvent
from llava_mini_cli.pipelines.run_jobs import Asked, MediumDone, ModelLoaded, NotOpened, OutcomeCame, run_jobs
from llava_mini_cli.pipelines.run_parts import AnswerEngine, CollectingEngine, RunParts, loaded
from llava_mini_cli.pipelines.tally import Tally


def index_jobs(
    jobs: Iterator[Job],
    folder: Path,
    load_engine: Callable[[ModelOptions], CollectingEngine],
    options: IndexOptions,
    parts: RunParts,
) -> None:
    """Brings an archive up to date with its media: adds what is new, replaces what changed.

    The model is loaded only when there is something to do. `parts.tally` counts while it goes on: `answered` are media
    that were indexed, `skipped` those that were there.

    Raises:
        UsageError: the archive was made with another model or other settings.
        OutputLocked, OutputError: the archive is being written to, or cannot be.
        Interrupted: a signal came; what was complete is in the archive.
    """
    digest = model_digest(options.model.model, options.model.revision)
    with open_for_writing(folder) as archive:
        parts.tally.damage, parts.tally.converted = archive.damage, archive.is_converted
        there = archive.header
        if there is not None:  # other settings are refused before the model is loaded
            options = replace(options, model=_as_before(options.model, there))
            dtype = str(there.settings.get("dtype"))
            archive.start(_header(options, digest, there.shapes, there.model_revision, dtype))

        wanted = _wanted(jobs, archive, parts.tally, retry_errors=options.retry_errors)
        media: dict[str, ArchivedMedium] = {}  # in flight, by what tells them apart

        def add_frames(job: Job, rows: object) -> None:
            assert isinstance(rows, FrameRows)
            if job.identity not in media:
                media[job.identity] = ArchivedMedium(archive)
            media[job.identity].add_frames(rows)

        parts = replace(parts, send=add_frames)
        with closing(parts.work(Indexing(options), wanted, load_engine, options)) as events:
            for event in events:
                match event:
                    case Loaded():
                        archive.start(_header_of(event, options, digest))
                    case Came(job, item, _):
                        if isinstance(item, FrameRows):  # from a worker; here they come at once
                            add_frames(job, item)
                        elif isinstance(item, Indexed):
                            _finish(job, item, media.pop(job.identity, None) or ArchivedMedium(archive), parts)
                        else:
                            _fail(job, item, parts.tally)
                            if archive.header is not None:  # without a medium to index there is no new archive
                                archive.finish(archive.begin(), medium_row(job, item))
                    case MediumLost(job):
                        if (medium := media.pop(job.identity, None)) is not None:
                            medium.forget()
                    case MediumOver(_, seconds):
                        parts.tally.video_s += seconds
                    case PartPrepared():
                        pass  # an archive has no place for them
        archive.record_moved()
        if options.prune and archive.header is not None:
            _prune(archive, parts.tally)
        parts.interrupts.check()


@dataclass(frozen=True)
class Indexing:
    """What `index` does with a medium, here or on a worker: frames go out as they come, then a row of the whole."""

    options: IndexOptions

    def run(
        self, jobs: Iterable[Job], load: Callable[[], AnswerEngine], parts: RunParts
    ) -> Generator[WorkEvent[Indexed | Fault | FrameRows]]:
        """What there is to say of each medium; its frames go to `parts.send`."""
        send = parts.send
        assert send is not None

        def ask(job: Job, clip: Clip) -> Asked[MediumSink]:
            windows = _windows(clip.info, self.options.caption_every)
            prompts = (self.options.caption_prompt,) if windows else ()
            return Asked(prompts, MediumSink(partial(send, job), job, clip, self.options), windows)

        with closing(run_jobs(jobs, load, ask, self.options, parts)) as events:
            for event in events:
                match event:
                    case ModelLoaded():
                        yield self.loaded(event.engine)
                    case NotOpened(job, fault):
                        yield from self.unanswered(job, fault, None)
                        yield MediumOver(job)
                    case OutcomeCame():
                        _take_caption(event.flight.sink, event.result)
                    case MediumDone(flight):
                        indexed = flight.sink.finish()
                        yield Came(flight.job, indexed, indexed.fault is not None)
                        yield MediumOver(flight.job, 0.0 if indexed.fault else flight.clip.info.duration_s or 0.0)

    def loaded(self, engine: AnswerEngine) -> Loaded:
        """What the archive records of a model."""
        seeing = cast(CollectingEngine, engine)
        return loaded(engine)._replace(dtype=seeing.dtype, shapes=seeing.frame_shapes)

    def unanswered(self, job: Job, fault: Fault, revision: str | None) -> Iterator[Came[Indexed | Fault | FrameRows]]:
        """Why there is nothing of a medium."""
        yield Came(job, fault, fails_medium=True)

    def portable(self, item: Indexed | Fault | FrameRows) -> Indexed | Fault | FrameRows:
        """The same, as it is sent."""
        return item


def _wanted(jobs: Iterator[Job], archive: ArchiveWriter, tally: Tally, *, retry_errors: bool) -> Iterator[Job]:
    """The jobs whose media the archive does not hold as they are now; each medium once."""
    seen: set[str] = set()
    for job in jobs:
        item = identity(job)
        if item[0] in seen:
            continue
        seen.add(item[0])
        path, content = item[0], None
        if not archive.holds(item, retry_errors=retry_errors):
            content = content_of_job(job, item)
            path = archive.recall(item, printable(job.file_name), content, retry_errors=retry_errors)
            tally.known_by_content += path is not None
        if path is None:
            yield job._replace(item=item, content=content)
        else:
            tally.skipped += 1
            tally.errors_skipped += archive.known[path].status == "error"


def _take_caption(sink: MediumSink, result: Answer | Failure) -> None:
    if isinstance(result, Answer):
        sink.caption(result)
    elif result.error_type in PASSING_KINDS:  # the medium is done again by the next run, its caption with it
        sink.fail(result.stage, result.error_type, result.message)
    elif result.error_type != "empty":  # a window that lies between two frames has no caption, which is no mistake
        sink.warn(f"no caption: {result.message}")


def _finish(job: Job, indexed: Indexed, medium: ArchivedMedium, parts: RunParts) -> None:
    """Writes the row of a medium of which everything is there."""
    medium.finish(indexed.row, indexed.captions)
    if indexed.fault is not None:
        _fail(job, indexed.fault, parts.tally)
        return
    parts.tally.answered += 1
    for warning in indexed.warnings:
        parts.progress.warned(job.path, warning)


def _fail(job: Job, fault: Fault, tally: Tally) -> None:
    tally.fail(job.path, fault.kind, one_line(fault.message))


def _prune(archive: ArchiveWriter, tally: Tally) -> None:
    """Drops local media that are not there any more."""
    gone = [path for path in archive.known if "://" not in path and is_gone(local_name(path))]
    archive.drop(gone)
    tally.dropped += len(gone)


def _as_before(model: ModelOptions, there: ArchiveHeader) -> ModelOptions:
    """The options, with the format of an archive in place of `auto`, which may choose another one each time."""
    dtype, kind = there.settings.get("dtype"), there.settings.get("quantize")
    if model.dtype != "auto" or dtype not in get_args(DTypeName) or kind not in (None, *get_args(Quantization)):
        return model
    return replace(model, dtype=cast(DTypeName, dtype), quantize=model.quantize or cast(Quantization | None, kind))


def _header_of(loaded: Loaded, options: IndexOptions, digest: str) -> ArchiveHeader:
    """The header of an archive that a loaded model fills."""
    if loaded.weight_format in get_args(Quantization):  # as `auto` found it
        options = replace(options, model=replace(options.model, quantize=cast(Quantization, loaded.weight_format)))
    assert loaded.shapes is not None
    assert loaded.dtype is not None
    shapes = Shapes(loaded.shapes.token, loaded.shapes.embedding, loaded.shapes.features)
    return _header(options, digest, shapes, loaded.revision, loaded.dtype)


def _header(options: IndexOptions, digest: str, shapes: Shapes, revision: str | None, dtype: str) -> ArchiveHeader:
    model = options.model.model
    name = os.path.abspath(model) if Path(model).is_dir() else model  # noqa: PTH100 - must not follow links
    return ArchiveHeader(name, revision, digest, shapes, options.features, options.settings(dtype), __version__)


def _windows(info: ClipInfo, every: float | None) -> tuple[Window, ...]:
    """The windows that are captioned: stretches of `every` seconds, or the whole where there is no length."""
    if every is None:
        return ()
    if info.duration_s is None or info.duration_s <= every:
        return (WHOLE,)
    count = ceil(info.duration_s / every)
    return tuple(Window(number * every, (number + 1) * every) for number in range(count))
