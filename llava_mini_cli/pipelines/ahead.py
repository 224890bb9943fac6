"""Opens media in a few threads, ahead of whoever uses them, and hands them out in the order of their jobs.

A medium that takes long is overtaken by those behind it, and another thread takes its thread's place meanwhile.
Owns the bound on the bytes of decoded frames: a medium is decoded when there is room for what it will hold, and its
room is given back when it is closed. Decoders are processes with deadlines of their own. A file that cannot even be
opened, since its disk does not answer, is given up after the deadline; its thread, which nothing can end, stays behind.
Knows nothing of engines, rows or how media are opened.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from llava_mini_cli.errors import LlavaMiniError
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.handover import HandOver
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.open import Opening
from llava_mini_cli.media.picture import Still

MEDIA_BYTES = 512 << 20  # bytes of frames and decoders at once; one medium alone may need more
THREADS = 4  # that open media
SLOW_S = 1.0  # seconds after which a medium no longer holds up those behind it
MOST_SLOW = 12  # slow media at once, each with a thread of its own
AHEAD = 64  # media that are opened or being opened, and not yet taken
JOBS_WAITING = 8  # jobs that no thread has begun with
JOIN_S = 2.0  # seconds that the end of a run waits for the threads

OpenOne = Callable[[Job, Opening], Clip | Fault]


class Opened(NamedTuple):
    """A job with its clip, or with why there is none."""

    job: Job
    clip: Clip | Fault
    release: Callable[[], None]  # to be called once the clip is closed


class AbandonedError(Exception):
    """Raised in a thread whose medium nobody waits for any more."""


class _Slot(Opening):
    """One job on its way; the `Opening` of the thread that works on it."""

    def __init__(self, job: Job, ahead: "OpenAhead", still: Still) -> None:
        self.job = job
        self.still = still
        self.clip: Clip | Fault | None = None
        self.size = 0  # bytes reserved
        self.deadline: float | None = None  # None: waiting for room, or watched by somebody else
        self.began = time.monotonic()  # when its thread began, or began again once there was room
        self.is_waiting = False  # until there is room for its bytes
        self.is_slow = False  # overtaken, and its thread replaced
        self.is_taken = False
        self.is_abandoned = False  # nobody waits for it any more
        self.error: LlavaMiniError | None = None  # what ends the run, such as a decoder that is not installed
        self._ahead = ahead
        self._is_guarded = False
        self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline = None if self._is_guarded else time.monotonic() + self._ahead.timeout

    def guarded(self) -> None:
        """From here on a child process with a deadline of its own does the work."""
        self._is_guarded, self.deadline = True, None

    def reserve(self, size: int) -> None:
        """Waits until there is room for so many bytes."""
        self.deadline, self.is_waiting = None, True
        self._ahead.reserve(self, size)
        self.began, self.is_waiting = time.monotonic(), False
        self._set_deadline()

    def keep(self, size: int) -> None:
        """Gives back what was reserved but for so many bytes."""
        self._ahead.keep(self, size)


class OpenAhead:
    """An iterator's jobs, opened ahead. `take` and `wait` are for one thread, the one that made it."""

    def __init__(
        self,
        jobs: Iterator[Job],
        open_one: OpenOne,
        still: Still = None,
        limit: int = MEDIA_BYTES,
        *,
        timeout: float = math.inf,
    ) -> None:
        """Args: still: how pictures are wanted; limit: bytes; timeout: seconds that a disk may take to open a file."""
        self.timeout = timeout
        self._open_one = open_one
        self._still: Still = still
        self._limit = limit
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one thread at a time takes a job, so that slots stand in the order of jobs
        self._order: deque[_Slot] = deque()  # media that are being opened, or open and not yet taken
        self._held = 0  # bytes reserved by all media
        self._taken_bytes = 0  # bytes among them of media that were taken
        self._no_more = False  # every job has its slot
        self._stopped = False
        self._jobs: HandOver[Job] = HandOver(lambda handed: handed.put_all(jobs), JOBS_WAITING, "jobs")
        self._threads = [self._start() for _ in range(THREADS)]

    @property
    def is_exhausted(self) -> bool:
        """True once `take` has nothing left to give, now and later. Raises what the iterator of jobs raised."""
        with self._changed:
            is_exhausted = self._no_more and not self._order
        if is_exhausted:
            next(self._jobs, None)  # there is none, but it may raise
        return is_exhausted

    def take(self) -> Opened | None:
        """The next job with its medium, or None while that is being opened."""
        with self._changed:
            slot = self._next()
            if slot is None:
                return None
            self._order.remove(slot)
            slot.is_taken = True
            self._taken_bytes += slot.size
            self._changed.notify_all()
            if slot.error is not None:
                raise slot.error
            if slot.clip is None:
                return self._abandoned(slot)
            return Opened(slot.job, slot.clip, lambda: self.keep(slot, 0))

    def wait(self, seconds: float = 0.2) -> None:
        """Returns when `take` may have something, at the latest after so many seconds."""
        with self._changed:
            if self._next() is None:
                self._changed.wait(seconds)

    def _next(self) -> _Slot | None:
        """The first that is open, or given up; only what is slow is overtaken."""
        for slot in self._order:
            is_late = slot.deadline is not None and time.monotonic() > slot.deadline
            if slot.clip is not None or is_late:
                return slot
            if not slot.is_slow and not self._became_slow(slot):
                return None
        return None

    def _became_slow(self, slot: _Slot) -> bool:
        if slot.is_waiting or time.monotonic() - slot.began < SLOW_S or self._count_slow() == MOST_SLOW:
            return False
        slot.is_slow = True
        self._threads.append(self._start())
        self._changed.notify_all()
        return True

    def _count_slow(self) -> int:
        return sum(slot.is_slow for slot in self._order)

    def close(self) -> None:
        """Closes what was opened and not taken. Threads that do not end soon are left behind."""
        with self._changed:
            self._stopped = True
            waiting = [slot.clip for slot in self._order if slot.clip is not None]
            self._order.clear()
            self._changed.notify_all()
        self._jobs.stop()  # its thread may be waiting for its input, such as a pipe
        for clip in waiting:
            if not isinstance(clip, Fault):
                clip.close()
        end = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def reserve(self, slot: _Slot, size: int) -> None:
        """Waits for room. What comes first may exceed the limit once everything that was taken is closed again.

        So may what was overtaken, once nothing else is held: it is never first again. Two never exceed it together.
        """

        def is_free() -> bool:
            first = next((other for other in self._order if not other.is_slow), None) is slot
            alone = self._held == slot.size
            may_exceed = first and not self._taken_bytes and self._held <= self._limit
            fits = self._held + size <= self._limit or alone or may_exceed
            return fits or self._stopped or slot.is_abandoned

        with self._changed:
            self._changed.wait_for(is_free)
            if self._stopped or slot.is_abandoned:
                raise AbandonedError
            slot.size += size
            self._held += size

    def keep(self, slot: _Slot, size: int) -> None:
        """Gives back all but `size` bytes of what was reserved."""
        with self._changed:
            if slot.is_abandoned:
                return
            less = slot.size - size
            self._held -= less
            self._taken_bytes -= less if slot.is_taken else 0
            slot.size = size
            self._changed.notify_all()

    def _abandoned(self, slot: _Slot) -> Opened:
        """Goes on without the thread that works on this. What it holds no longer counts: it may never be given back."""
        self.keep(slot, 0)
        slot.is_abandoned = True
        if not slot.is_slow:
            self._threads.append(self._start())
        fault = Fault("decode", "timeout", f"the file could not be opened within {self.timeout:g} s")
        return Opened(slot.job, fault, lambda: None)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._open_next, name="open", daemon=True)
        thread.start()
        return thread

    def _open_next(self) -> None:
        """A thread that opens one medium after the other."""
        while (slot := self._next_slot()) is not None:
            clip = self._open(slot)
            if not self._hand_over(slot, clip):
                return

    def _next_slot(self) -> _Slot | None:
        """The next job in its place in the order, once there may be one more; None at the end."""
        with self._turn:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or len(self._order) < AHEAD + self._count_slow())
            try:
                job = next(self._jobs, None)
            except BaseException:  # noqa: BLE001 - raised again by `is_exhausted`
                job = None
            with self._changed:
                self._changed.notify_all()
                if job is None or self._stopped:
                    self._no_more = True
                    return None
                slot = _Slot(job, self, self._still)
                self._order.append(slot)
                return slot

    def _open(self, slot: _Slot) -> Clip | Fault:
        try:
            return self._open_one(slot.job, slot)
        except AbandonedError:
            return Fault("decode", "decoder_killed", "nobody waits for it any more")
        except LlavaMiniError as error:
            slot.error = error
            return Fault("decode", "internal", str(error))
        except Exception as error:  # noqa: BLE001 - a mistake of ours about one medium must not stop the others
            return Fault("decode", "internal", f"{type(error).__name__}: {error}")

    def _hand_over(self, slot: _Slot, clip: Clip | Fault) -> bool:
        """Closes what nobody wants any more. Whether the thread shall go on: not if another one took its place."""
        with self._changed:
            is_wanted = not (slot.is_abandoned or self._stopped)
            if is_wanted:
                slot.clip = clip
                self._changed.notify_all()
        if not is_wanted and not isinstance(clip, Fault):
            clip.close()
        if not is_wanted or isinstance(clip, Fault):
            self.keep(slot, 0)
        return is_wanted and not slot.is_slow
