"""Jobs in, jobs with what is left to do out: what an output holds already is dropped, question by question.

A medium is known by its path, size and time of change. Only one that these do not tell is looked up by what it holds:
it may have been moved, touched or copied. Gives each question the key and the digest that its row will carry, so that
a row says what the file was before it was decoded. Decodes nothing and writes nothing.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from llava_mini_cli.config import SpanOptions
from llava_mini_cli.formats.content import content_of_job, size_of
from llava_mini_cli.formats.job import Fault, ItemIdentity, Job, Question, SpanKeys
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.row_keys import RowKeys
from llava_mini_cli.pipelines.tally import Tally

MOST_HELD = 100_000  # media that seem to have moved and wait for the end of the jobs; half a kilobyte each


def left_to_do(
    jobs: Iterator[Job],
    keys: RowKeys,
    done: Done,
    tally: Tally,
    spans: SpanOptions = SpanOptions(),  # noqa: B008 - frozen
) -> Iterator[Job]:
    """The jobs with the questions whose rows are not there yet; looks at each medium once.

    Args:
        spans: the stretches of each medium that have rows of their own.
    """
    return (
        _by_span(jobs, keys, done, tally, whole=spans.whole) if spans.wanted else _by_question(jobs, keys, done, tally)
    )


def _by_span(jobs: Iterator[Job], keys: RowKeys, done: Done, tally: Tally, *, whole: bool) -> Iterator[Job]:
    """The questions of which the row of some span is not there, or that of the whole if it is wanted.

    What a medium holds is not compared: one that was moved or touched is asked about again.
    """
    asked_before: dict[bytes, int] = {}
    for job in jobs:
        item = keys.item(job)
        state, span_state = keys.state(item), keys.span_state(item, job.spans)
        left: list[Question] = []
        for question in job.questions:
            if done.is_there is not None and done.is_there(job, question):
                done.rows_left += 1
                continue
            work = keys.work(item, job.path, question)
            key = done.claim(work, state) if whole or job.fault is not None else None
            if job.fault is not None:  # a row of a table that cannot be used has one row
                left += [question._replace(key=key)] if key is not None else []
                continue
            before = asked_before[work] = asked_before.get(work, -1) + 1
            stem = keys.spans(item, job.path, question, before)
            there, is_complete = done.spans(stem, span_state)
            if key is not None or not is_complete:
                span_keys = SpanKeys(stem.hex(), span_state, there, key is not None)
                left.append(question._replace(key=key or "", spans=span_keys))
        if left:
            yield from _by_obstacle(job._replace(questions=tuple(left)), done)
        else:
            tally.media_skipped += 1


def _by_question(jobs: Iterator[Job], keys: RowKeys, done: Done, tally: Tally) -> Iterator[Job]:
    work, find, is_there = keys.work, done.find, done.is_there
    others = _Others(keys, done, tally)
    for job in jobs:
        item, path = keys.item(job), job.path
        state = keys.state(item)
        unknown: list[Question] = []
        for question in job.questions:
            if is_there is not None and is_there(job, question):
                done.rows_left += 1
            elif find(work(item, path, question), state) is not None:
                unknown.append(question)
        if unknown:
            for part in _by_obstacle(job._replace(questions=tuple(unknown)), done):
                yield from others.look_closer(part, item)
        else:
            tally.media_skipped += 1
    yield from others.settle()


def _by_obstacle(job: Job, done: Done) -> Iterator[Job]:
    """The job; the questions whose answers could not be written as jobs of their own, which say why."""
    if done.obstacle is None or job.fault is not None:
        yield job
        return
    sorted_out: dict[Fault | None, list[Question]] = {}
    for question in job.questions:
        sorted_out.setdefault(done.obstacle(job, question), []).append(question)
    for fault, questions in sorted_out.items():
        yield job._replace(questions=tuple(questions), fault=fault)


@dataclass
class _Others:
    """The media that path, size and time of change do not tell."""

    keys: RowKeys
    done: Done
    tally: Tally
    held: deque[tuple[Job, ItemIdentity, bool]] = field(default_factory=deque[tuple[Job, ItemIdentity, bool]])

    def look_closer(self, job: Job, item: ItemIdentity) -> Iterator[Job]:
        """The job with the questions that its content does not tell either.

        Rows of a medium that seems to have moved are left to media that come later: one of them may be where the row
        says, and the medium at hand a copy. A member of another file is not kept waiting, as that file is held open.
        """
        job = job._replace(content=self._content(job, item))
        left, moved = self._sorted(job, item, hold=job.source is None)
        if left:
            yield job._replace(questions=tuple(left))
        if moved:
            self.held.append((job._replace(questions=tuple(moved)), item, bool(left)))
        elif not left:
            self.tally.media_skipped += 1
        yield from self.settle(MOST_HELD)

    def settle(self, most: int = 0) -> Iterator[Job]:
        """The jobs that were held, with the questions whose rows somebody else has claimed; `most` stay held."""
        while len(self.held) > most:
            job, item, is_counted = self.held.popleft()
            left, _ = self._sorted(job, item, hold=False)
            if left:
                yield job._replace(questions=tuple(left))
            elif not is_counted:
                self.tally.media_skipped += 1

    def _content(self, job: Job, item: ItemIdentity) -> str | None:
        """The content of a medium, if a row will say it or a row that is there may: one about a medium of that size."""
        is_wanted = self.done.keeps_digests or (item[1] is not None and self.done.has_size(item[1]))
        return content_of_job(job, item) if is_wanted else None

    def _sorted(self, job: Job, item: ItemIdentity, *, hold: bool) -> tuple[list[Question], list[Question]]:
        """The questions that are to be asked, each claimed; and with `hold` those that a row elsewhere may answer."""
        done, state, content = self.done, self.keys.state(item), job.content
        may_be_there = content is not None and done.has_size(size_of(content))
        left: list[Question] = []
        moved: list[Question] = []
        for question in job.questions:
            work = done.find(self.keys.work(item, job.path, question), state)
            if work is None:
                continue
            digest = None if content is None else f"{content}-{self.keys.asked(job, question)}"
            known = done.alike(work, digest) if digest is not None and may_be_there else None
            if known is not None and known != work and hold:
                moved.append(question)
            elif known is not None and done.leave(known):
                self.tally.known_by_content += 1
            else:
                left.append(question._replace(key=done.take(known or work, state), digest=digest))
        return left, moved
