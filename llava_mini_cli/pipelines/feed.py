"""Keeps an engine fed: jobs -> media that are opened ahead -> the engine, and what it says of them.

The loop that `ask`, `caption` and `index` share; what becomes of a medium and of its results is the handler's. Prints
nothing, and knows neither how media are decoded nor what is asked of them.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.errors import MediaError, UsageError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.media.clip import Clip, FrameChunk
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.ahead import OpenAhead, Opened
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.tally import Tally

CHUNK_FRAMES = 32
POLL_S = 0.005  # between looks at whether frames or the next medium are there


class AnswerEngine(Protocol):
    """What this loop asks of an engine."""

    @property
    def frame_size(self) -> int: ...
    @property
    def model_revision(self) -> str | None: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def is_waiting(self) -> bool: ...
    def has_room(self) -> bool: ...
    def add(self, request: Request) -> None: ...
    def step(self) -> list[Answer | Failure]: ...


class OpenClip(Protocol):
    """`media.open.open_clip`."""

    def __call__(
        self, path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> Clip: ...


class Handler(Protocol):
    """What a run does with its media."""

    def is_over(self) -> bool:
        """Whether the run is to stop with work left."""
        ...

    def add(self, engine: AnswerEngine, opened: Opened, clip: Clip) -> None:
        """Asks the engine about a medium that is open."""
        ...

    def fail(self, job: Job, fault: Fault) -> None:
        """A medium that could not be opened."""
        ...

    def take(self, results: list[Answer | Failure]) -> None:
        """What one step of the engine gave."""
        ...

    def close(self) -> None:
        """Closes every medium in flight."""
        ...


def feed(
    engine: AnswerEngine,
    jobs: Iterator[Job],
    handler: Handler,
    interrupts: Interrupts,
    open_one: Callable[[Job, Opening], Clip | Fault],
    timeout: float,
) -> None:
    """Works until there are no more jobs and the engine has nothing left to do, or the run is over.

    Args:
        open_one: opens a medium, in another thread.
        timeout: seconds without a sign of life after which an opening is given up.

    Raises:
        Interrupted: a signal came.
    """
    ahead = OpenAhead(jobs, open_one, timeout)
    try:
        while not handler.is_over():
            interrupts.check()
            _admit(engine, ahead, handler)
            if engine.is_idle and ahead.is_exhausted:
                return
            if engine.is_idle:
                ahead.wait()
            elif engine.is_waiting and not ahead.is_exhausted:
                ahead.wait(POLL_S)
            else:
                with interrupts.allowed():
                    results = engine.step()
                handler.take(results)
    finally:
        handler.close()
        ahead.close()


def _admit(engine: AnswerEngine, ahead: OpenAhead, handler: Handler) -> None:
    """Gives the engine media that are open, while it has room."""
    while engine.has_room() and not handler.is_over():
        opened = ahead.take()
        if opened is None:
            return
        if isinstance(opened.clip, Fault):
            handler.fail(opened.job, opened.clip)
        else:
            handler.add(engine, opened, opened.clip)


def limited(jobs: Iterator[Job], most: int | None, tally: Tally) -> Iterator[Job]:
    """The first `most` jobs; says so in the tally if there are more."""
    for number, job in enumerate(jobs):
        if number == most:
            tally.stopped_by = "limit"
            return
        yield job


class MediaProgress(Protocol):
    """Who is told how many frames and media are done."""

    def frames(self, count: int) -> None: ...
    def item_done(self) -> None: ...


class Counted:
    """What every handler counts alike."""

    def __init__(self, progress: MediaProgress, cache: FileCache, tally: Tally, most_failures: int | None) -> None:
        self._progress = progress
        self._cache = cache
        self._tally = tally
        self._most_failures = most_failures

    def is_over(self) -> bool:
        """Whether as many media have failed as are allowed to; says so in the tally."""
        if self._most_failures is None or self._tally.media_failed < self._most_failures:
            return False
        self._tally.stopped_by = "max_failures"
        return True

    def count_frames(self, count: int) -> None:
        """So many more frames were read."""
        self._tally.frames += count
        self._progress.frames(count)

    def count_medium(self, job: Job) -> None:
        """One more medium is done, and a fetched copy of it may go."""
        if job.local is not None:
            self._cache.release(Path(job.local))
        self._tally.media += 1
        self._progress.item_done()


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
    except ValueError:  # such as one with a NUL byte
        return Fault("decode", "not_found", "no file can have this name")
    if not os.access(job.file, os.R_OK):
        return Fault("decode", "unreadable", "permission denied")
    if stat.S_ISDIR(status.st_mode):
        return Fault("decode", "unreadable", "a folder, not a file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return Fault("decode", "empty", "the file is empty")
    return None


def open_or_fault(
    open_clip: OpenClip, job: Job, sampling: SamplingOptions, frame_size: int, opening: Opening
) -> Clip | Fault:
    """A medium's clip, or why there is none."""
    try:
        if job.span is not None:
            sampling = replace(sampling, start=job.span.start, end=job.span.end)
        return open_clip(job.file, sampling, frame_size=frame_size, chunk_frames=CHUNK_FRAMES, opening=opening)
    except MediaError as error:
        return Fault(error.stage, error.kind, str(error))
    except UsageError as error:  # a span without a length
        return Fault("decode", "empty", str(error))


class CountedFrames:
    """The frames of a clip, counted as they are read; closing it gives their room back."""

    def __init__(self, clip: Clip, count: Callable[[int], None], release: Callable[[], None]) -> None:
        self._clip = clip
        self._count = count
        self._release = release

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            yield chunk
            self._count(len(chunk.times))

    def ready(self) -> bool:
        """Whether the next chunk can be had without waiting."""
        return self._clip.ready()

    def close(self) -> None:
        """Closes the clip. Safe to call twice."""
        self._clip.close()
        self._release()
