"""Answers row by row, and for several batches at once: the engine goes on while a batch waits for its last row."""

import asyncio
import itertools
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from llava_mini_cli.batch.captioner import BatchModel
from llava_mini_cli.formats.job import Job, Question
from llava_mini_cli.formats.row import Row
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.run_parts import AnswerEngine
from llava_mini_cli.pipelines.settings import RunOptions

Deliver = Callable[[Row | BaseException], None]


class AsyncCaptioner(BatchModel):
    """A callable that takes a batch of columns and yields batches of one row, each as soon as it is answered.

    Several calls may go on at once; their media share the engine, so that it never idles until the longest video of a
    batch is done. Arguments, batches and columns are those of `Captioner`.
    """

    _answering: "_Answering | None" = None

    async def __call__(self, batch: Any) -> AsyncIterator[Any]:
        """Yields the rows of the batch with the columns of their answers, in the order in which they are finished.

        Raises:
            UsageError: as `Captioner` does. An error that ends the engine is raised for every batch at work.
        """
        asked = await asyncio.to_thread(self.asking.read, batch)
        came, loop = asyncio.Queue[Row | BaseException](), asyncio.get_running_loop()

        def deliver(row: Row | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(came.put_nowait, row)

        left = RowsLeft(asked.jobs, whole=self.asking.options.spans.whole)
        answering = await asyncio.to_thread(self._at_work)
        ticket = answering.add(asked.jobs, deliver)
        try:
            while not left.are_none:
                row = await came.get()
                if isinstance(row, BaseException):
                    raise row
                left.came(row)
                yield asked.joined([row])
        finally:
            answering.forget(ticket)

    def close(self) -> None:
        """Ends the thread that answers; media that it has begun are given up. A later call starts another one.

        The thread ends as well when nothing refers to this object any more.
        """
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def _at_work(self) -> "_Answering":
        with _starting:
            if self._answering is None or self._answering.is_over:
                self._answering = _Answering(self.engine, self.asking.options)
                weakref.finalize(self, self._answering.stop)  # its thread must not outlive whoever asks
            return self._answering

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._answering = None


_starting = threading.Lock()


class RowsLeft:
    """The rows of some jobs that are still to come: one a question, or one for each span of its medium."""

    def __init__(self, jobs: Sequence[Job], *, whole: bool) -> None:
        """Args: whole: where spans are asked about, the medium as a whole has a row, too."""
        self._questions: dict[str, Question] = {one.id: one for job in jobs for one in job.questions}
        self._whole = set(self._questions) if whole else set[str]()
        self._spans: dict[str, int] = {}

    @property
    def are_none(self) -> bool:
        """True once every row has come."""
        return not self._questions

    def came(self, row: Row) -> None:
        """Takes note of a row."""
        question = self._questions[row.id]
        if question.spans is not None:
            if row.segment is None:
                self._whole.discard(row.id)
            else:
                self._spans[row.id] = self._spans.get(row.id, row.spans) - 1
            if row.id in self._whole or self._spans.get(row.id, 1):
                return
        del self._questions[row.id]


class _Answering:
    """A thread in which the engine answers about media without an end, and hands each row to who asked for it."""

    def __init__(self, engine: AnswerEngine, options: RunOptions) -> None:
        self._engine, self._options = engine, options
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._tickets = map(str, itertools.count())
        self._waiting: dict[str, Deliver] = {}
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self.is_over = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def add(self, jobs: Sequence[Job], deliver: Deliver) -> str:
        """Has the questions of some jobs answered; returns a ticket, by which they may be forgotten."""
        ticket = next(self._tickets)
        with self._changing:
            self._waiting[ticket] = deliver
        for job in jobs:
            asked = tuple(one._replace(id=f"{ticket}/{one.id}") for one in job.questions)
            self._jobs.put(job._replace(questions=asked))
        return ticket

    def forget(self, ticket: str) -> None:
        """Nobody waits for the rows of these jobs any more."""
        with self._changing:
            self._waiting.pop(ticket, None)

    def stop(self) -> None:
        """Has the thread end, and does not wait for it."""
        self._closed.set()
        self._jobs.put(None)

    def close(self) -> None:
        """Ends the thread."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = RuntimeError("the captioner was closed")
        try:
            with closing(answer(iter(self._jobs.get, None), self._engine, self._options)) as rows:
                for row in rows:
                    if self._closed.is_set():
                        break
                    self._hand_out(row)
        except BaseException as found:  # noqa: BLE001 - raised again where the rows are awaited
            error = found
        with self._changing:
            self.is_over = True
            waiting = list(self._waiting.values())
        for deliver in waiting:
            deliver(error)

    def _hand_out(self, row: Row) -> None:
        ticket, _, own = row.id.partition("/")
        with self._changing:
            deliver = self._waiting.get(ticket)
        if deliver is not None:
            deliver(replace(row, id=own))
