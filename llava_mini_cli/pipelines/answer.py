"""Jobs and an engine in, rows out: what `ask` and `caption` do between what is done already and the output.

    jobs -> answer -> rows        jobs -> resume -> answer, with a model that is loaded when it is needed -> output

A test, a worker process, an evaluation or another program can call `answer` alone. Prints nothing.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.request import WHOLE, Answer, Evidence, Failure
from llava_mini_cli.formats.answer_schema import AnswerSchema
from llava_mini_cli.formats.job import Fault, Job, Prompt
from llava_mini_cli.formats.outputs.open_output import Output
from llava_mini_cli.formats.row import Row, with_part_thumbnails, with_thumbnail
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.pipelines.evidence import cut_of
from llava_mini_cli.pipelines.of_media import Came, Loaded, MediumLost, MediumOver, PartPrepared, WorkEvent
from llava_mini_cli.pipelines.question_parts import Assembly, Places, QuestionParts
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.rows import RowBuilder
from llava_mini_cli.pipelines.run_jobs import (
    Asked,
    Event,
    MediumDone,
    ModelLoaded,
    NotOpened,
    OutcomeCame,
    run_jobs,
)
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts, loaded
from llava_mini_cli.pipelines.scene_windows import SceneWindows
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import RowWindows, SpanWindows, looked_at, places_unopened
from llava_mini_cli.pipelines.thumbnails import ThumbnailMaker, WindowThumbnails, jpeg_of


def answer(
    jobs: Iterable[Job], engine: AnswerEngine, options: RunOptions, parts: RunParts | None = None
) -> Generator[Row]:
    """Exactly one row for each question of each job, answers and failures, in the order they are finished.

    A row counts (in `parts.tally`) when the next one is asked for. Closing the generator closes every clip and ends
    every thread.

    Args:
        engine: may be used again, also after the generator was closed early.
        options: its limits end the rows early; `parts.tally.stopped_by` says so.
        parts: None: files and URLs are opened as the commands do, and nobody is told how far it is.

    Raises:
        Interrupted: a signal came, where `parts.interrupts` catches signals. Also what the iterator of jobs raises.
    """
    parts = parts or RunParts()
    return _counted(Answering(options, engine.model_revision).run(jobs, lambda: engine, parts), parts)


def load_and_answer(
    jobs: Iterable[Job], load_engine: Callable[[ModelOptions], AnswerEngine], options: RunOptions, parts: RunParts
) -> Generator[Row]:
    """The same, with a model that is loaded when the first medium that can be read turns up; or by workers.

    Raises:
        ModelError, UsageError: the model cannot be loaded as asked.
        WorkersError: there is no worker, or none any more.
    """
    return _counted(parts.work(Answering(options), jobs, load_engine, options), parts)


def answer_into(
    open_output: Callable[[], Output],
    jobs: Iterator[Job],
    load_engine: Callable[[ModelOptions], AnswerEngine],
    options: RunOptions,
    parts: RunParts,
) -> None:
    """Writes the rows of every job to an output, without those that it holds already.

    The output is opened first. `parts.tally` counts while it goes on, so that a run which ends early is counted, too.

    Raises:
        ModelError, UsageError: the model cannot be loaded as asked, or the output is of other settings.
        OutputError: the output is locked, or a row cannot be written.
        Interrupted: a signal came; what was answered is in the output.
    """
    tally = parts.tally
    with open_output() as output:
        left = left_to_do(jobs, options.row_keys(), output.done, tally, options.spans)
        if parts.crew is not None:
            parts = replace(parts, place=output.place())
        try:
            came = parts.work(Answering(options), left, load_engine, options)
            with closing(_counted(came, parts, output.take_in)) as rows:
                for row in rows:
                    output.write(row)
        finally:
            tally.skipped, tally.errors_skipped = output.done.rows_left, output.done.errors_left
    parts.interrupts.check()


def _counted(
    came: Generator[WorkEvent[Row]], parts: RunParts, take_in: Callable[[str], None] | None = None
) -> Generator[Row]:
    with closing(came):
        for one in came:
            match one:
                case Came(_, row, fails_medium):
                    yield row
                    parts.tally.row(row, fails_medium=fails_medium)
                    parts.progress.row(row)
                case PartPrepared(name, count):
                    assert take_in is not None  # nobody was told of a place
                    take_in(name)
                    parts.tally.answered += count
                case MediumOver(_, seconds):
                    parts.tally.video_s += seconds
                case MediumLost() | Loaded():
                    pass  # rows come once everything of a medium is known


@dataclass(frozen=True)
class Answering:
    """What `ask` and `caption` do with a medium: a row for each question, here or on a worker."""

    options: RunOptions
    revision: str | None = None  # the model's, where that is loaded already

    def run(self, jobs: Iterable[Job], load: Callable[[], AnswerEngine], parts: RunParts) -> Generator[WorkEvent[Row]]:
        """The rows of each job, as they come, and when there are no more of it."""
        builder = RowBuilder(self.options, self.revision)
        maker = ThumbnailMaker() if self.options.thumbnails else None

        def ask(job: Job, clip: Clip) -> Asked[None] | Fault:
            asked = self._ask(job, clip)
            if isinstance(asked, Fault):
                return asked
            asked = self._with_evidence(asked, job, clip)
            if maker is None:
                return asked
            bounds = looked_at(job.span, clip.info, self.options.sampling)
            watcher = WindowThumbnails(maker, clip.info, asked.windows, len(asked.prompts), bounds, asked.cut)
            return replace(asked, watcher=watcher)

        with maker or nullcontext(), closing(known_places(run_jobs(jobs, load, ask, self.options, parts))) as events:
            for event in events:
                match event:
                    case ModelLoaded():
                        builder = replace(builder, model_revision=event.engine.model_revision)
                        if maker is not None:
                            maker.still = event.engine.still
                    case NotOpened(job, fault):
                        yield from self.unanswered(job, fault, builder.model_revision)
                        yield MediumOver(job)
                    case OutcomeCame():
                        row, flight = _with_picture(_row(builder, event), event), event.flight
                        if row is not None:
                            has_failed = row.status == "error"
                            yield Came(flight.job, row, has_failed and not flight.has_failed)
                            flight.has_failed |= has_failed
                    case MediumDone(flight):
                        yield MediumOver(flight.job, flight.clip.info.duration_s or 0.0)

    def unanswered(self, job: Job, fault: Fault, revision: str | None) -> Iterator[Came[Row]]:
        """The rows of a job that nobody could look at."""
        builder = RowBuilder(self.options, revision)
        places = [place for index in range(len(job.questions)) for place in places_unopened(job, index)]
        for count, place in enumerate(places):
            yield Came(job, builder.failure(job, place.question, fault, place=place), count == 0)

    def loaded(self, engine: AnswerEngine) -> Loaded:
        """What is told of a model."""
        return loaded(engine)

    def portable(self, item: Row) -> Row:
        """A row as it is sent."""
        return item

    def _with_evidence(self, asked: Asked[None], job: Job, clip: Clip) -> Asked[None]:
        """The same, with the parts of the medium that are left out, where evidence is asked for."""
        options, info = self.options, clip.info
        if options.evidence.most is None:
            return asked
        size = (info.width, info.height) if info.kind == "image" else None
        return replace(asked, cut=cut_of(job, clip, options.evidence, options.spans, options.sampling), size=size)

    def _ask(self, job: Job, clip: Clip) -> Asked[None] | Fault:
        options = self.options
        if any(question.span is not None for question in job.questions):
            rows = RowWindows(job, clip.info)
            return _asked(rows.prompts, options.schema, rows)
        prompts = tuple(question.prompt for question in job.questions)
        if not options.spans.wanted:
            return _asked(prompts, options.schema)
        if options.spans.scenes and clip.info.kind == "video":
            return _asked(prompts, options.schema, SceneWindows(job, clip, options.spans, options.sampling))
        windows = SpanWindows(job, clip.info, options.spans, options.sampling)
        return windows.fault or _asked(prompts, options.schema, windows)


def _with_picture(row: Row | None, came: OutcomeCame[None]) -> Row | None:
    """The row with the picture of what it is about, where pictures are kept; the outcome counts as dealt with."""
    watcher, window = came.flight.asked.watcher, came.result.window_index
    if not isinstance(watcher, WindowThumbnails):
        return row
    if row is not None:
        row = with_thumbnail(row, jpeg_of(watcher.of(window)))
        if isinstance(came.result, Answer) and came.result.evidence is not None:
            row = _with_pieces(row, came.result.evidence, watcher, window)
    watcher.answered(window)
    return row


def _with_pieces(row: Row, evidence: Evidence, watcher: WindowThumbnails, window: int) -> Row:
    """The row with a picture of each span of a video that carried its answer; blocks of a picture have none."""
    kept = {
        round(part.start, 6): watcher.of_piece(window, part.start, part.end)
        for part in evidence.parts
        if part.start is not None and part.end is not None
    }
    return with_part_thumbnails(row, lambda part: jpeg_of(kept.get(part["start"])))


def _asked(prompts: tuple[Prompt, ...], schema: AnswerSchema | None, places: Places | None = None) -> Asked[None]:
    """The prompts of rows as the engine is asked for them."""
    parts = QuestionParts.of(prompts, schema)
    windows = (WHOLE,) if places is None else parts.windows(places)
    assembly = Assembly(parts.each, places)
    return Asked(parts.texts, None, windows, parts.choices, parts.grammars, assembly)


def _row(builder: RowBuilder, came: OutcomeCame[None]) -> Row | None:
    """The row that an outcome is, or that it is the last part of; None where others are still to come."""
    flight, assembly = came.flight, came.flight.asked.assembly
    found = assembly and assembly.take(came.result)
    if found is None or assembly is None:
        return None
    prompt, results = found
    place = None if assembly.places is None else assembly.places.place(came.result.window_index, prompt)
    answers = [one for one in results if isinstance(one, Answer)]
    if len(answers) < len(results):
        failed = next(one for one in results if isinstance(one, Failure))
        fault = Fault(failed.stage, failed.error_type, failed.message)
        return builder.failure(flight.job, prompt, fault, flight.clip.info, place)
    if builder.options.schema is None:
        return builder.answer(flight.job, answers[0], flight.clip.info, flight.clip.warnings, place)
    return builder.filled(flight.job, prompt, answers, flight.clip.info, flight.clip.warnings, place)


def known_places(events: Generator[Event[None]]) -> Generator[Event[None]]:
    """The same events, but what comes of a scene of which the end is not known yet waits until it is."""
    waiting: list[OutcomeCame[None]] = []
    with closing(events):
        for event in events:
            if isinstance(event, OutcomeCame) and not _is_known(event):
                waiting.append(event)
                continue
            if waiting:
                known = [one for one in waiting if _is_known(one)]
                waiting = [one for one in waiting if not _is_known(one)]
                yield from known
            yield event


def _is_known(came: OutcomeCame[None]) -> bool:
    assembly = came.flight.asked.assembly
    places = assembly and assembly.places
    return not isinstance(places, SceneWindows) or places.is_known(came.result.window_index)
