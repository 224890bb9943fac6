"""Jobs and an engine in, the stretches in which yes/no questions hold out: what `when` does in place of `answer`.

    jobs -> resume -> every frame or window of a medium is asked -> track -> events -> rows

The rows about one question of one medium go to the output together, when everything of the medium is known.
Prints nothing.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import EventOptions, ModelOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.formats.job import Fault, Job, TimeSpan
from llava_mini_cli.formats.outputs.done import placed
from llava_mini_cli.formats.outputs.event_plots import Curve, EventPlots
from llava_mini_cli.formats.outputs.open_output import Output
from llava_mini_cli.formats.row import EVENT_COLUMNS, TRACK_COLUMNS, Row, with_thumbnail
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.pipelines.event_thumbnails import EventThumbnails
from llava_mini_cli.pipelines.events import Event, Track, events_of, make_track, summary_of
from llava_mini_cli.pipelines.frame_times import TimedClip, TimedWindows, timed
from llava_mini_cli.pipelines.of_media import Came, Loaded, MediumLost, MediumOver, PartPrepared, WorkEvent
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.rows import RowBuilder
from llava_mini_cli.pipelines.run_jobs import (
    Asked,
    InFlight,
    MediumDone,
    ModelLoaded,
    NotOpened,
    OutcomeCame,
    run_jobs,
)
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts, loaded
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import MOST_SPANS, Place, grid_of, looked_at
from llava_mini_cli.pipelines.thumbnails import ThumbnailMaker

MOST_ASKED = 50_000_000  # windows times questions of one medium; 4 bytes each
_ROWS_AT_ONCE = 4096
_UNKNOWN = dict.fromkeys(column.name for column in EVENT_COLUMNS)


class Found(NamedTuple):
    """What one question about one medium came to."""

    job: Job
    rows: list[Row]  # one for each event; or one that says that there is none, or why nothing is known
    windows: Iterable[Row]  # one for each probability; the row of a failure
    track: Track | None  # None: the question failed, or the medium is a picture
    events: list[Event]


@dataclass(frozen=True)
class WhenExtras:
    """What is written beside the rows."""

    open_track: Callable[[], Output] | None = None
    plots: Callable[[], EventPlots] | None = None


def when_into(
    open_output: Callable[[], Output],
    jobs: Iterator[Job],
    load_engine: Callable[[ModelOptions], AnswerEngine],
    options: RunOptions,
    parts: RunParts,
    extras: WhenExtras,
) -> None:
    """Writes when each question of each job holds, without what the output (and the track's) has already.

    Raises: as `answer.answer_into`.
    """
    tally, events = parts.tally, options.events or EventOptions()
    tally.events = 0
    with ExitStack() as stack:
        output = stack.enter_context(open_output())
        tracks = None if extras.open_track is None else stack.enter_context(extras.open_track())
        if tracks is not None:
            output.done.keep_those_in(tracks.done)
        plots = None if extras.plots is None else stack.enter_context(extras.plots())
        wanted = jobs if plots is None else _told(jobs, plots)
        left = left_to_do(wanted, options.row_keys(), output.done, tally)
        try:
            with closing(find_events(left, load_engine, options, parts, tracked=tracks is not None)) as found:
                for one in found:
                    if tracks is not None:
                        tracks.done.replace(one.rows[0].fingerprint)
                        _write(tracks, one.windows)
                        if output.done.is_there is not None:
                            tracks.keep()  # the next run goes by the file of the question alone
                    if plots is not None and one.track is not None:
                        plots.save(one.rows[0], _curve(one.track, one.events, events))
                    output.write_answer(one.rows)
        finally:
            tally.skipped, tally.errors_skipped = output.done.rows_left, output.done.errors_left
    parts.interrupts.check()


def _told(jobs: Iterator[Job], plots: EventPlots) -> Iterator[Job]:
    for job in jobs:
        plots.expect(job)
        yield job


def _write(tracks: Output, windows: Iterable[Row]) -> None:
    """Writes the rows of one question's windows, which may be very many, piece by piece."""
    left = iter(windows)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        tracks.write_answer(some)


def _curve(track: Track, events: list[Event], options: EventOptions) -> Curve:
    stretches = [(event.start, event.end) for event in events]
    return Curve(track.starts, track.end, track.probabilities, stretches, options.on, options.off)


def find_events(
    jobs: Iterable[Job],
    load_engine: Callable[[ModelOptions], AnswerEngine],
    options: RunOptions,
    parts: RunParts,
    *,
    tracked: bool = True,
) -> Generator[Found]:
    """What each question of each job came to, exactly once; it counts in `parts.tally` when the next one is asked for.

    Args:
        tracked: the rows of windows are read; otherwise they need not be there.

    Raises:
        As `answer.load_and_answer`.
    """
    tally = parts.tally
    with closing(parts.work(FindingEvents(options, tracked=tracked), jobs, load_engine, options)) as came:
        for one in came:
            match one:
                case Came(_, found, fails_medium):
                    yield found
                    tally.row(found.rows[0], fails_medium=fails_medium)
                    tally.events = (tally.events or 0) + len(found.events)
                    parts.progress.row(found.rows[0])
                case MediumOver(_, seconds):
                    tally.video_s += seconds
                case MediumLost() | PartPrepared() | Loaded():
                    pass  # rows come once everything of a medium is known


@dataclass(frozen=True)
class FindingEvents:
    """What `when` does with a medium: the stretches in which each question holds, here or on a worker."""

    options: RunOptions
    tracked: bool

    def run(
        self, jobs: Iterable[Job], load: Callable[[], AnswerEngine], parts: RunParts
    ) -> Generator[WorkEvent[Found]]:
        """What each question of each job came to, and when there is no more of a job."""
        builder, events = RowBuilder(self.options), self.options.events or EventOptions()
        parts = replace(parts, open_clip=timed(parts.open_clip))
        probabilities: dict[InFlight[None], _Probabilities] = {}
        maker = ThumbnailMaker() if self.options.thumbnails else None

        def ask(job: Job, clip: Clip) -> Asked[None] | Fault:
            asked = self._ask(job, clip)
            if maker is None or isinstance(asked, Fault):
                return asked
            windows, bounds = asked.windows, looked_at(job.span, clip.info, self.options.sampling)
            assert isinstance(windows, TimedWindows)
            watcher = EventThumbnails(maker, clip.info, windows, len(asked.prompts), bounds, events)
            return replace(asked, watcher=watcher)

        with maker or nullcontext(), closing(run_jobs(jobs, load, ask, self.options, parts)) as came:
            for event in came:
                match event:
                    case ModelLoaded():
                        builder = replace(builder, model_revision=event.engine.model_revision)
                        if maker is not None:
                            maker.still = event.engine.still
                    case NotOpened(job, fault):
                        yield from self.unanswered(job, fault, builder.model_revision)
                        yield MediumOver(job)
                    case OutcomeCame(flight, result):
                        if flight not in probabilities:
                            probabilities[flight] = _Probabilities(len(flight.asked.prompts), len(flight.asked.windows))
                        probabilities[flight].take(result)
                        if isinstance(flight.asked.watcher, EventThumbnails):
                            flight.asked.watcher.take(result)
                    case MediumDone(flight):
                        taken, has_failed = probabilities.pop(flight), False
                        for index in range(len(flight.job.questions)):
                            found = _found(builder, flight, index, taken, events)
                            fails = found.rows[0].status == "error" and not has_failed
                            yield Came(flight.job, found, fails)
                            has_failed |= fails
                        yield MediumOver(flight.job, flight.clip.info.duration_s or 0.0)

    def unanswered(self, job: Job, fault: Fault, revision: str | None) -> Iterator[Came[Found]]:
        """What the questions of a job came to that nobody could look at."""
        builder = RowBuilder(self.options, revision)
        for index in range(len(job.questions)):
            yield Came(job, _failed(builder, job, index, fault), index == 0)

    def loaded(self, engine: AnswerEngine) -> Loaded:
        """What is told of a model."""
        return loaded(engine)

    def portable(self, item: Found) -> Found:
        """The same, with the rows of windows as a list; without them where nobody reads them."""
        return item._replace(windows=list(item.windows) if self.tracked else [])

    def _ask(self, job: Job, clip: Clip) -> Asked[None] | Fault:
        windows = _windows(job, clip, self.options, self.options.events or EventOptions())
        if isinstance(windows, Fault):
            return windows
        return Asked(tuple(question.prompt.text for question in job.questions), None, windows)


def _windows(job: Job, clip: Clip, options: RunOptions, events: EventOptions) -> TimedWindows | Fault:
    """The windows of a medium, or why nothing can be asked."""
    if events.timed and clip.info.kind == "image":
        return Fault("output", "no_time", "a picture has no times, which the format needs")
    assert isinstance(clip, TimedClip)
    grid = None if events.grid is None else grid_of(clip.info, events.grid, options.sampling)
    windows = TimedWindows(clip, grid)
    most = min(MOST_SPANS, MOST_ASKED // len(job.questions))
    if len(windows) > most:
        words = f"it has {len(windows):,} frames or windows; at most {most:,} are asked about"
        return Fault("decode", "too_many", words)
    return windows


class _Probabilities:
    """What came of the windows of one medium so far: 4 bytes a window and question."""

    def __init__(self, prompts: int, windows: int) -> None:
        self._yes = np.full((prompts, windows), np.nan, np.float32)
        self._failures: dict[int, Failure] = {}  # of each prompt the first one that is about more than a missing frame

    def take(self, result: Answer | Failure) -> None:
        if isinstance(result, Answer):
            assert result.p_yes is not None  # it was asked for
            self._yes[result.prompt_index, result.window_index] = result.p_yes
        elif result.error_type != "empty":
            self._failures.setdefault(result.prompt_index, result)

    def of(self, prompt: int) -> NDArray[np.float64] | Fault:
        """The probability of each window, NaN where it holds no frame; or why they are not all known."""
        failure = self._failures.get(prompt)
        if failure is not None:
            return Fault(failure.stage, failure.error_type, failure.message)
        found = self._yes[prompt].astype(np.float64)
        return Fault("decode", "empty", "no frame was looked at") if np.isnan(found).all() else found


def _failed(builder: RowBuilder, job: Job, index: int, fault: Fault, info: ClipInfo | None = None) -> Found:
    question = job.questions[index]
    row = builder.failure(job, index, fault, info, Place(index, None, question.key))
    row = replace(row, start=None, end=None)
    window = replace(row, kept=dict.fromkeys(column.name for column in TRACK_COLUMNS))
    return Found(job, [replace(row, kept=_UNKNOWN | dict(row.kept))], [window], None, [])


def _found(
    builder: RowBuilder, flight: InFlight[None], index: int, taken: _Probabilities, options: EventOptions
) -> Found:
    """What a question about a medium of which everything is known came to."""
    job, clip, windows = flight.job, flight.clip, flight.asked.windows
    assert isinstance(clip, TimedClip)
    assert isinstance(windows, TimedWindows)
    yes = taken.of(index)
    if isinstance(yes, Fault):
        return _failed(builder, job, index, yes, clip.info)
    times = np.array([np.nan if (time := windows.time(number)) is None else time for number in range(len(windows))])
    track = make_track(times, np.where(np.isnan(times), np.nan, yes), *_bounds(clip, builder.options))
    is_picture = clip.info.kind == "image"
    events = events_of(track, replace(options, min_length=0.0) if is_picture else options)
    rows = [
        _row(builder, flight, index, event, number, len(events), "yes") for number, event in enumerate(events, 1)
    ] or [_row(builder, flight, index, summary_of(track), None, 1, "no")]
    answers = _window_rows(builder, flight, index, windows, yes)
    return Found(job, rows, answers, None if is_picture else track, events)


def _row(
    builder: RowBuilder, flight: InFlight[None], index: int, event: Event, number: int | None, of: int, text: str
) -> Row:
    """The row of an event; with no number the row that says that there is none."""
    clip, job = flight.clip, flight.job
    assert isinstance(clip, TimedClip)
    is_picture = clip.info.kind == "image"
    start, end = (None, None) if is_picture or number is None else (event.start, event.end)
    span = None if number is None else TimeSpan(number, start, end, "")
    place = Place(index, span, placed(job.questions[index].key, number or 1, of))
    times = np.array(clip.times)
    within = len(times) if start is None else int(((times >= event.start) & (times < event.end)).sum())
    measured = {"p_mean": event.mean, "p_peak": event.peak, "peak_at": None if is_picture else event.peak_at}
    row = builder.event(job, place, clip.info, clip.warnings, measured, text=text, frame_count=within)
    watcher = flight.asked.watcher
    if not isinstance(watcher, EventThumbnails):
        return row
    return with_thumbnail(row, watcher.of(index, None if number is None else event))


def _window_rows(
    builder: RowBuilder, flight: InFlight[None], index: int, windows: TimedWindows, yes: NDArray[np.float64]
) -> Iterator[Row]:
    """The row of each window that holds a frame, in order."""
    clip, job = flight.clip, flight.job
    builder = replace(builder, options=replace(builder.options, thumbnails=None))
    key, numbers = job.questions[index].key, np.flatnonzero(~np.isnan(yes)).tolist()
    job = job._replace(questions=tuple(question._replace(kept={}) for question in job.questions))
    for place, number in enumerate(numbers, 1):
        start, end = _stretch(windows, number, clip.info)
        time = None if clip.info.kind == "image" else windows.time(number)
        span = TimeSpan(number + 1, start, end, "")
        where = Place(index, span, placed(key, place, len(numbers)))
        yield builder.event(job, where, clip.info, clip.warnings, {"time": time}, p_yes=float(yes[number]))


def _stretch(windows: TimedWindows, number: int, info: ClipInfo) -> tuple[float | None, float | None]:
    """Where a window begins and ends; a frame alone has its time in `time`, and no length."""
    window = windows[number]
    if info.kind == "image":
        return None, None
    if window.end == inf:
        return window.start, info.duration_s
    time = windows.time(number)
    return window.start, time if windows.by_frame else window.end


def _bounds(clip: TimedClip, options: RunOptions) -> tuple[float, float]:
    """Seconds between which a medium was looked at; where its last frames are missing, to a little behind the last."""
    info, sampling, times = clip.info, options.sampling, clip.times
    begin = min(sampling.start or 0.0, times[0])
    known = min(inf if info.duration_s is None else info.duration_s, inf if sampling.end is None else sampling.end)
    last = times[-1]
    step = 1.0 / (info.fps_sampled or sampling.fps)
    is_whole = info.frame_count is None or len(times) >= info.frame_count
    end = known if is_whole and isfinite(known) else min(known, last + step)
    return begin, end if end > last else last + step
