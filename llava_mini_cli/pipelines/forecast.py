"""The work that a run would have to do, told from headers alone: media, hours, frames, vision tokens, memory.

Reads the header of every medium in a few threads, each within a deadline, and the model's config.json; decodes nothing
and loads neither a model nor torch. Remote media are counted, not fetched. The number of frames is an estimate: only
decoding tells it exactly.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from llava_mini_cli.config import Choices, EventOptions, SamplingOptions, WeightFormat
from llava_mini_cli.engine.estimate import Estimates, RunWork
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.media_root import file_of
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.footprint import Footprint
from llava_mini_cli.pipelines.question_parts import QuestionParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import SpanWindows, grid_of, places_unopened

PROBE_S = 10.0  # seconds for one header
THREADS = 4  # that read headers
AHEAD = 64  # headers asked for and not yet counted
TOKEN_BYTES = 3  # of a choice, about; a token of English words has four

Probe = Callable[[str, float], ClipInfo]


class Longest(NamedTuple):
    """The medium with the most frames."""

    path: str
    frames: int
    vision_tokens: int | None  # None: the model is not known
    memory_bytes: int | None  # of its tokens and of keys and values, all questions answered at once


class RunTime(NamedTuple):
    """Seconds that the run takes, media that were not looked at left out."""

    load: float
    frames: float  # vision, with every question
    answers: float  # at most: each of them as long as it may be
    total: float
    format: WeightFormat  # of the model's weights
    new_tokens: int  # of each answer that is written; 0: all are chosen


@dataclass
class Forecast:
    """The work that is left, in numbers."""

    media: int = 0
    images: int = 0
    videos: int = 0
    not_looked_at: int = 0  # media that are not on this disk
    unknown_length: int = 0  # videos whose header does not say how long they are
    unreadable: Counter[str] = field(default_factory=Counter[str])  # media, by error type
    too_long: int = 0  # media whose frames do not fit the model's context; with --fit they are thinned out
    frames_fit: int | None = None  # frames with --fit, whether it was given or not; None: the model is not known
    video_s: float = 0.0
    frames: int = 0
    vision_tokens: int | None = None
    weights_bytes: int | None = None
    rows: int = 0  # at least, where there are unknown scenes
    unknown_scenes: int = 0  # videos whose scenes only decoding finds; each question has one row here
    rows_done: int = 0
    longest: Longest | None = None
    time: RunTime | None = None  # None: nothing was measured of the model on this machine, or scenes are unknown
    evidence: bool = False  # it is asked for, and `time` is without it


def forecast(
    jobs: Iterator[Job],
    options: RunOptions,
    probe: Probe,
    footprint: Footprint | None,
    estimates: Estimates | None = None,
) -> Forecast:
    """Counts what `jobs` would take.

    Args:
        footprint: None: the model is not on this disk.
        estimates: None: nothing was measured of the model on this machine.
    """
    work = RunWork(0, 0, 0, 0, options.generation.max_new_tokens)
    evidence = options.evidence.most is not None
    found = Forecast(weights_bytes=footprint and footprint.weights_bytes, evidence=evidence)
    for job, info in _probed(jobs, probe):
        found.media += 1
        rows = _rows(job, info if isinstance(info, ClipInfo) else None, options)
        found.rows += sum(rows)
        found.unknown_scenes += _has_unknown_scenes(info, options)
        if isinstance(info, Fault):
            found.unreadable[info.kind] += 1
        elif info is None:
            found.not_looked_at += 1
        else:
            frames = _count(found, job, info, options, footprint)
            if options.events is not None:
                rows = [_windows(info, options.events, options)] * len(job.questions)
            choices = _choices(job, options)
            each = len(choices) // len(rows)
            work = _more(work, frames, choices, [count for count in rows for _ in range(each)])
    found.time = None if found.unknown_scenes else _time(work, options, estimates)
    if footprint is not None:
        found.vision_tokens = found.frames * footprint.tokens_per_frame
    return found


def _rows(job: Job, info: ClipInfo | None, options: RunOptions) -> list[int]:
    """The rows that each question of a job will give; of a medium with spans that is not known, one for all of them."""
    spans, questions = options.spans, range(len(job.questions))
    if job.fault is not None or not spans.wanted:
        return [1] * len(questions)
    if info is not None and not _has_unknown_scenes(info, options):
        windows = SpanWindows(job, info, spans, options.sampling)
        if windows.fault is None:
            left_out = Counter(question for window in windows for question in window.without)
            return [len(windows) - left_out[question] for question in questions]
    return [sum(1 for _ in places_unopened(job, question)) for question in questions]


def _has_unknown_scenes(info: ClipInfo | Fault | None, options: RunOptions) -> bool:
    return options.spans.scenes and isinstance(info, ClipInfo) and info.kind == "video"


def _windows(info: ClipInfo, events: EventOptions, options: RunOptions) -> int:
    """How often each question is asked where it is to be found when it holds."""
    grid = events.grid
    return expected_frames(info, options.sampling) if grid is None else grid_of(info, grid, options.sampling).total


def _choices(job: Job, options: RunOptions) -> list[Choices | None]:
    """Of each question to the engine, of which a schema has several for a row; None where an answer is written."""
    asked = QuestionParts.of([question.prompt for question in job.questions], options.schema)
    return [part.choices for part in asked.parts]


def _more(work: RunWork, frames: int, choices: Sequence[Choices | None], rows: Sequence[int]) -> RunWork:
    """The work with one medium more; `choices` and `rows` of each question to the engine."""
    chosen = {index: given for index, given in enumerate(choices) if given}
    return RunWork(
        work.media + 1,
        work.frames + frames,
        work.frame_questions + frames * max(0, len(rows) - 1),
        work.rows + sum(rows),
        work.new_tokens,
        work.chosen_rows + sum(rows[index] for index in chosen),
        work.choice_tokens + sum(rows[index] * _tokens(given) for index, given in chosen.items()),
    )


def _tokens(choices: Choices) -> int:
    """About as many tokens as choices have, for no tokenizer is loaded: one for every `TOKEN_BYTES`, and an end."""
    return sum(1 + ceil(len(choice.encode()) / TOKEN_BYTES) for choice in choices)


def _time(work: RunWork, options: RunOptions, estimates: Estimates | None) -> RunTime | None:
    """How long the work takes in the format that the run would load the model in."""
    model = options.model
    kind = model.quantize or (model.dtype if model.dtype != "auto" else estimates and estimates.auto)
    estimate = estimates.formats.get(kind) if estimates is not None and kind is not None else None
    if kind is None or estimate is None or model.device.startswith("cuda"):
        return None
    if not work.media:
        return RunTime(0.0, 0.0, 0.0, 0.0, kind, work.new_tokens)
    took = estimate.run(work)
    new_tokens = work.new_tokens if work.chosen_rows < work.rows else 0
    return RunTime(took.load, took.frames, took.answers, took.total, kind, new_tokens)


def _count(found: Forecast, job: Job, info: ClipInfo, options: RunOptions, footprint: Footprint | None) -> int:
    """Adds one medium; returns the frames of it that the model would see."""
    seen = frames = expected_frames(info, options.sampling)
    found.frames += frames
    found.images += info.kind == "image"
    found.videos += info.kind == "video"
    found.unknown_length += info.kind == "video" and info.duration_s is None
    found.video_s += info.duration_s or 0.0
    written = _choices(job, options).count(None)  # answers; the others are chosen
    new_tokens = options.generation.max_new_tokens if written else 0
    if footprint is not None:
        most = (footprint.context - new_tokens) // footprint.tokens_per_frame
        found.too_long += frames > most
        seen = max(0, min(frames, most)) if options.sampling.fit else frames
        found.frames_fit = (found.frames_fit or 0) + max(0, min(frames, most))
    if found.longest is None or frames > found.longest.frames:
        tokens = memory = None
        if footprint is not None:
            tokens = frames * footprint.tokens_per_frame
            memory = footprint.memory_bytes(frames, written, new_tokens)
        found.longest = Longest(job.path, frames, tokens, memory)
    return seen


def expected_frames(info: ClipInfo, sampling: SamplingOptions) -> int:
    """Frames that will be sampled of a medium, as far as its header tells; at least one."""
    if info.kind == "image" or info.duration_s is None:
        return 1
    span = min(info.duration_s, sampling.end or info.duration_s) - (sampling.start or 0.0)
    frames = max(1, int(span * sampling.fps + 1e-6))
    return frames if sampling.max_frames is None else min(frames, sampling.max_frames)


def _probed(jobs: Iterator[Job], probe: Probe) -> Iterator[tuple[Job, ClipInfo | Fault | None]]:
    """Each job with what its header says, in order; None for one that is not on this disk."""
    pending: deque[tuple[Job, Future[ClipInfo | Fault | None]]] = deque()
    with ThreadPoolExecutor(THREADS, "probe") as threads:
        for job in jobs:
            pending.append((job, threads.submit(_look, job, probe)))
            if len(pending) == AHEAD:
                first, future = pending.popleft()
                yield first, future.result()
        for job, future in pending:
            yield job, future.result()


def _look(job: Job, probe: Probe) -> ClipInfo | Fault | None:
    if job.fault is not None:
        return job.fault
    if job.source is not None:
        return None
    file = file_of(job)
    try:
        return probe(file, PROBE_S) if isinstance(file, str) else file
    except MediaError as error:
        return Fault(error.stage, error.kind, str(error))
