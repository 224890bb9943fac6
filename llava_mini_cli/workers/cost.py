"""What a medium will cost, told from its name and size alone: enough to share work evenly, and quick for millions."""

from pathlib import Path

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.formats.job import Job
from llava_mini_cli.media.open import is_picture_path

BYTES_A_SECOND = 250_000  # of video: 2 Mbit/s, as 720p is
UNKNOWN_S = 60.0  # of a video of which nobody knows how large it is


def cost_of(job: Job, sampling: SamplingOptions) -> float:
    """The frames of a medium, about, and what its questions cost beside them."""
    return frames_of(job, sampling) + len(job.questions)


def frames_of(job: Job, sampling: SamplingOptions) -> float:
    """The frames that will be looked at, about; at least one."""
    if is_picture_path(job.file):
        return 1.0
    size = size_of(job)
    seconds = UNKNOWN_S if size is None else size / BYTES_A_SECOND
    frames = max(1.0, seconds * sampling.fps)
    return frames if sampling.max_frames is None else min(frames, float(sampling.max_frames))


def size_of(job: Job) -> int | None:
    """The bytes of a medium's file; None where nobody knows."""
    if job.item is not None:
        return job.item[1]
    try:
        return None if job.source is not None else Path(job.file).stat().st_size
    except (OSError, ValueError):
        return None
