"""Jobs -> an archive: the loop of `index`.

    jobs -> what the archive does not hold -> run_jobs -> sink -> archive

Each medium is decoded and looked at once, for its vision tokens, CLIP embeddings, patch features and captions
together. A medium that fails becomes a row of the archive, as it does elsewhere. Prints nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import cast, get_args

from llava_mini_cli import __version__
from llava_mini_cli.config import DTypeName, ModelOptions, Quantization
from llava_mini_cli.engine.request import WHOLE, Answer, Failure, Window
from llava_mini_cli.errors import PASSING_KINDS
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.reader import local_name
from llava_mini_cli.formats.archive.writer import ArchiveWriter, is_gone, open_for_writing
from llava_mini_cli.formats.content import content_of_job
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.row import one_line, printable
from llava_mini_cli.hub import model_digest
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.index_sink import MediumSink, identity, medium_row
from llava_mini_cli.pipelines.run_jobs import Asked, InFlight, MediumDone, ModelLoaded, NotOpened, OutcomeCame, run_jobs
from llava_mini_cli.pipelines.run_parts import CollectingEngine, RunParts
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
        parts.tally.damage = archive.damage
        there = archive.header
        if there is not None:  # other settings are refused before the model is loaded
            options = replace(options, model=_as_before(options.model, there))
            dtype = str(there.settings.get("dtype"))
            archive.start(_header(options, digest, there.shapes, there.model_revision, dtype))

        def ask(job: Job, clip: Clip) -> Asked[MediumSink]:
            windows = _windows(clip.info, options.caption_every)
            prompts = (options.caption_prompt,) if windows else ()
            return Asked(prompts, MediumSink(archive, job, clip, options), windows)

        wanted = _wanted(jobs, archive, parts.tally, retry_errors=options.retry_errors)
        with closing(run_jobs(wanted, lambda: parts.load(load_engine, options.model), ask, options, parts)) as events:
            for event in events:
                match event:
                    case ModelLoaded():
                        engine = event.engine
                        if engine.weight_format in get_args(Quantization):  # as `auto` found it
                            model = replace(options.model, quantize=cast(Quantization, engine.weight_format))
                            options = replace(options, model=model)
                        frame = engine.frame_shapes
                        shapes = Shapes(frame.token, frame.embedding, frame.features)
                        archive.start(_header(options, digest, shapes, engine.model_revision, engine.dtype))
                    case NotOpened(job, fault):
                        _fail(job, fault, parts.tally)
                        if archive.header is not None:  # without a medium to index there is no new archive
                            archive.finish(archive.begin(), medium_row(job, fault))
                    case OutcomeCame():
                        _take_caption(event.flight.sink, event.result)
                    case MediumDone():
                        _finish(event.flight, parts)
        archive.record_moved()
        if options.prune and archive.header is not None:
            _prune(archive, parts.tally)
        parts.interrupts.check()


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


def _finish(flight: InFlight[MediumSink], parts: RunParts) -> None:
    """Writes the row of a medium of which everything is there."""
    sink = flight.sink
    sink.finish()
    if sink.fault is not None:
        _fail(flight.job, sink.fault, parts.tally)
        return
    parts.tally.answered += 1
    parts.tally.video_s += flight.clip.info.duration_s or 0.0
    for warning in sink.warnings:
        parts.progress.warned(flight.job.path, warning)


def _fail(job: Job, fault: Fault, tally: Tally) -> None:
    tally.fail(job.path, fault.kind, one_line(fault.message))


def _prune(archive: ArchiveWriter, tally: Tally) -> None:
    """Drops local media that are not there any more."""
    for path in list(archive.known):
        if "://" not in path and is_gone(local_name(path)):
            archive.drop(path)
            tally.dropped += 1


def _as_before(model: ModelOptions, there: ArchiveHeader) -> ModelOptions:
    """The options, with the format of an archive in place of `auto`, which may choose another one each time."""
    dtype, kind = there.settings.get("dtype"), there.settings.get("quantize")
    if model.dtype != "auto" or dtype not in get_args(DTypeName) or kind not in (None, *get_args(Quantization)):
        return model
    return replace(model, dtype=cast(DTypeName, dtype), quantize=model.quantize or cast(Quantization | None, kind))


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
