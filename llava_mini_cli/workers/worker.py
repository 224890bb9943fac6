"""A worker: one engine with its own decoders in a process of its own. Media in, what comes of them out.

Its methods answer at once, or wait a little for something to say; a thread of its own does the work, so that it
answers also while the model computes. Knows neither outputs nor keys, nor who carries what is said.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from llava_mini_cli import __version__, memory_there
from llava_mini_cli.config import WeightFormat
from llava_mini_cli.errors import LlavaMiniError, ModelError, OutputError, UsageError, first_line
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.outputs.output import PartsPlace
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.of_media import Came, Loaded, MediumLost, MediumOver, PartPrepared
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.workers.messages import (
    Batch,
    Ended,
    Made,
    Message,
    NoDisk,
    Piece,
    Prepared,
    Work,
    from_bytes,
    to_bytes,
)
from llava_mini_cli.workers.shipped import Shipped

MOST_PIECES = 4  # that wait to be taken: up to 32 frames each, with features 35 MB
PART_ROWS = 500  # that a worker writes as a part; fewer are sent
WAIT_S = 15.0  # the most that rows wait for others to become a part with
POLL_S = 0.5


class Worker:
    """The process's one object. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._in_hand = 0  # media that it got and has not told the end of
        self._said = Batch()
        self._pulse = _Pulse()
        self._place: PartsPlace | None = None  # where rows may be written
        self._waiting: list[Made] = []  # media that are over, and whose rows wait to be enough for a part
        self._waits_since = 0.0

    def hello(self) -> tuple[str, str]:
        """The version of this package, and the machine and process in words."""
        return __version__, f"{socket.gethostname()}, process {os.getpid()}"

    def begin(self, work: bytes) -> None:
        """Starts to load the model. `work`: a `Work`."""
        threading.Thread(target=self._run, args=(work,), name="work", daemon=True).start()

    def give(self, jobs: bytes, shipped: Mapping[int, Any]) -> None:
        """More media to work on.

        Args:
            jobs: a list of `Job`.
            shipped: by a job's number where its bytes are, which do not lie on a disk of this machine.
        """
        given: list[Job] = from_bytes(jobs)
        for place, job in enumerate(given):
            if (sent := shipped.get(_number(job))) is not None:
                given[place] = job._replace(source=Shipped(job.identity, job.path, sent))
        with self._changed:
            if not self._in_hand:
                self._pulse.beat()
            self._jobs.extend(given)
            self._in_hand += len(given)
            self._changed.notify_all()

    def take(self, seconds: float) -> bytes:
        """A `Batch`: at once where there is something to say, otherwise after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._said.messages) or self._is_due(), seconds)
            if self._is_due():
                self._send_waiting()
            said, self._said = self._said, Batch()
            self._changed.notify_all()
            said.silent_s = self._pulse.silent_s() if self._in_hand else 0.0
        return to_bytes(said)

    def _say(self, message: Message) -> None:
        with self._changed:
            if isinstance(message, Ended):
                self._send_waiting()
            self._said.messages.append(message)
            if isinstance(message, Made):
                self._in_hand -= 1
            elif isinstance(message, Prepared):
                self._in_hand -= len(message.media)
            self._changed.notify_all()

    def opened(self, info: ClipInfo) -> None:
        """A medium was opened."""
        with self._changed:
            self._said.opened.append(info)

    def read(self, frames: int) -> None:
        """So many more frames were read."""
        with self._changed:
            self._said.frames += frames

    def _run(self, work: bytes) -> None:
        """The life of the thread that works."""
        could_begin = False
        try:
            told: Work = from_bytes(work)
            with suppress(OSError):  # not there: relative paths lead nowhere, and each of them says so
                os.chdir(told.folder)
            memory_there.share_with(told.beside)
            engine = told.load_engine(told.model)
            could_begin = True
            self._say(told.task.loaded(engine))
            if told.place is not None:
                self._look_for(told.place)
            with FileCache(told.fetching) as cache:
                parts = RunParts(
                    told.open_clip,
                    progress=_Told(self),
                    interrupts=self._pulse,
                    cache=cache,
                    send=self._send,
                    has_model=True,
                )
                self._work(told, engine, parts)
        except LlavaMiniError as error:
            self._say(Ended(str(error), could_begin or not isinstance(error, ModelError | UsageError)))
        except BaseException as error:  # noqa: BLE001 - whoever started it has to know
            self._say(Ended(one_line(f"{type(error).__name__}: {first_line(error)}"), could_begin))

    def _work(self, told: Work, engine: Any, parts: RunParts) -> None:
        made: dict[int, list[tuple[Any, bool]]] = {}  # of media that are not over
        with closing(told.task.run(self._given(), lambda: engine, parts)) as came:
            for one in came:
                match one:
                    case Came(job, item, fails_medium):
                        made.setdefault(_number(job), []).append((told.task.portable(item), fails_medium))
                    case MediumOver(job, seconds):
                        self._over(Made(_number(job), made.pop(_number(job), []), seconds))
                    case Loaded() | MediumLost() | PartPrepared():
                        pass  # the first was said, the other is for whoever has workers

    def _look_for(self, place: PartsPlace) -> None:
        try:
            from llava_mini_cli.formats.outputs.prepared_parts import can_prepare
        except ImportError:  # pyarrow is for those who write
            is_there = False
        else:
            is_there = can_prepare(place)
        if is_there:
            self._place = place
        else:
            self._say(NoDisk())

    def _over(self, made: Made) -> None:
        """A medium is over: its rows are sent, or wait for others where they may become a part together."""
        place = self._place
        if place is None or any(row.status == "error" or row.warning for row, _ in made.items):
            self._say(made)
            return
        with self._changed:
            self._waits_since = self._waits_since if self._waiting else time.monotonic()
            self._waiting.append(made)
            rows = [row for one in self._waiting for row, _ in one.items]
            if len(rows) < PART_ROWS:
                self._changed.notify_all()
                return
            waited, self._waiting = self._waiting, []
        try:
            from llava_mini_cli.formats.outputs.prepared_parts import prepare_part

            name = prepare_part(place, rows)
        except (OSError, OutputError):  # the command, which writes them then, says what is wrong
            self._place = None
            for one in waited:
                self._say(one)
            return
        self._say(Prepared(name, [(one.number, one.video_s) for one in waited], len(rows)))

    def _is_due(self) -> bool:
        """True where rows have waited for long, or for most of what is in hand: more media are to come in time."""
        waiting = len(self._waiting)
        return bool(waiting) and (2 * waiting >= self._in_hand or time.monotonic() - self._waits_since > WAIT_S)

    def _send_waiting(self) -> None:
        self._said.messages += self._waiting
        self._in_hand -= len(self._waiting)
        self._waiting = []

    def _send(self, job: Job, item: object) -> None:
        """A piece of what comes of a medium, once there is room for it: pieces may be large."""
        with self._changed:
            while sum(isinstance(message, Piece) for message in self._said.messages) >= MOST_PIECES:
                self._changed.wait(POLL_S)
                self._pulse.beat()  # it is the command that is slow
            self._said.messages.append(Piece(_number(job), item))
            self._changed.notify_all()

    def _given(self) -> Iterator[Job]:
        """The media, as they come; there is no end but that of the process."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs))
                job = self._jobs.popleft()
            yield job


def _number(job: Job) -> int:
    assert job.number is not None
    return job.number


class _Pulse(Interrupts):
    """Knows when the work last got on: a run asks it again and again whether it is to end."""

    def __init__(self) -> None:
        super().__init__()
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        self._at = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since the last one."""
        return time.monotonic() - self._at

    def check(self) -> None:
        self.beat()

    @contextmanager
    def allowed(self) -> Generator[None]:
        self.beat()
        yield
        self.beat()


class _Told(Progress):
    """Tells the command what happens here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def loaded(self, weight_format: WeightFormat, note: str | None) -> None:
        """It is said by `Ready`."""

    def opened(self, info: ClipInfo) -> None:
        self._worker.opened(info)

    def frames(self, count: int) -> None:
        self._worker.read(count)
