"""From a job to its clip, or to why there is none. Knows nothing of engines, nor of what is asked."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Protocol

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.engine.request import GrowingWindows
from llava_mini_cli.errors import MediaError, UsageError, kind_of
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.media_root import file_of
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.open import Opening

CHUNK_FRAMES = 32  # frames of a video that are decoded together


class OpenClip(Protocol):
    """A function that opens a medium, such as `media.open.open_clip`."""

    def __call__(
        self, path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> Clip: ...


def fault_of(job: Job) -> Fault | None:
    """Why a medium cannot even be opened, told without a decoder; None when it looks as if it could."""
    if job.fault is not None:
        return job.fault
    file = file_of(job)
    if isinstance(file, Fault):
        return file
    try:
        status = Path(file).stat()
    except FileNotFoundError:
        return Fault("decode", "not_found", "no such file")
    except OSError as error:
        return Fault("decode", kind_of(error), (error.strerror or str(error)).lower())
    except ValueError:  # such as one with a NUL byte
        return Fault("decode", "not_found", "no file can have this name")
    if not os.access(file, os.R_OK):
        return Fault("decode", "unreadable", "permission denied")
    if stat.S_ISDIR(status.st_mode):
        return Fault("decode", "unreadable", "a folder, not a file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return Fault("decode", "empty", "the file is empty")
    return None


def open_or_fault(
    open_clip: OpenClip,
    job: Job,
    sampling: SamplingOptions,
    frame_size: int,
    opening: Opening,
    most: int | None = None,
) -> Clip | Fault:
    """A medium's clip, or why there is none.

    Args:
        most: frames that fit the model; a video with more is thinned out, and its warnings say so. None: no bound.
    """
    file = file_of(job)  # looked at once more, since links may have been changed
    if isinstance(file, Fault):
        return file
    try:
        if job.span is not None:
            sampling = replace(sampling, start=job.span.start, end=job.span.end)
        if (needed := _needed(job)) is not None:
            sampling = replace(sampling, needed=needed)
        bounded = sampling
        if most is not None:
            bounded = replace(sampling, max_frames=min(most, sampling.max_frames or most))
        clip = open_clip(file, bounded, frame_size=frame_size, chunk_frames=CHUNK_FRAMES, opening=opening)
        if most is not None and (thinned := _thinned(clip.info, most, sampling.fps)):
            clip.warnings.append(thinned)
        return clip
    except MediaError as error:
        return Fault(error.stage, error.kind, str(error))
    except MemoryError:
        return Fault("decode", "out_of_memory", "there was no memory to open it")
    except OSError as error:
        return Fault("decode", kind_of(error), (error.strerror or str(error)).lower())
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        return Fault("decode", "no_resources", "the system gave no more threads")
    except UsageError as error:  # a span without a length
        return Fault("decode", "empty", str(error))


def _needed(job: Job) -> tuple[float, float] | None:
    """Seconds between which all stretches of a job lie; None where one is the whole medium."""
    spans = job.spans or tuple(question.span for question in job.questions if question.span is not None)
    is_whole = not job.spans and len(spans) < len(job.questions)
    if (
        not spans
        or is_whole
        or any(question.spans is None or question.spans.whole for question in job.questions if job.spans)
    ):
        return None
    return min(span.start or 0.0 for span in spans), max(inf if span.end is None else span.end for span in spans)


def _thinned(info: ClipInfo, most: int, fps: float) -> str | None:
    """The warning about a video of which `most` frames are taken where `fps` a second would be more."""
    if info.frame_count != most or not info.fps_sampled or int(most / info.fps_sampled * fps + 1e-6) <= most:
        return None
    return f"thinned out to {most} frames, {info.fps_sampled:.3g} a second, which fit the model's context"


class CountedFrames:
    """The frames of a clip, counted as they are read; closing it gives their room back.

    Windows that grow are told how far the frames have come.
    """

    def __init__(
        self,
        clip: Clip,
        count: Callable[[int], None],
        release: Callable[[], None],
        windows: GrowingWindows | None = None,
    ) -> None:
        self._windows = windows
        self._clip = clip
        self._count = count
        self._release = release

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            if self._windows is not None:
                self._windows.reached(float(chunk.times[-1]))
            yield chunk
            self._count(len(chunk.times))
        if self._windows is not None:
            self._windows.reached(inf)

    def ready(self) -> bool:
        """True if the next chunk can be had without waiting."""
        return self._clip.ready()

    def close(self) -> None:
        """Closes the clip. Safe to call twice."""
        self._clip.close()
        self._release()
        if self._windows is not None:
            self._windows.close()
