"""The few processes that decode pictures: started when they are needed, kept for the next picture, ended with the run.

The kernel ends a process with the thread that started it, so one thread, the keeper, starts and ends them all. It is
there while there are processes. A run holds a lease, at whose end every process is ended; without a lease a process
that nobody uses is ended after a moment.
"""

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager

from llava_mini_cli.media.child import KilledError
from llava_mini_cli.media.picture_process import PICTURES, CommandOf, PictureProcess, worker_command

AT_ONCE = max(2, min(4, os.cpu_count() or 1))  # pictures that are decoded
SLOW_S = 1.0  # seconds after which a picture no longer counts among them
MOST = 24  # processes, with those that are at something slow, or have an animation
LINGER_S = 2.0  # that an unused process is kept where no lease is held
JOIN_S = 5.0  # that the end waits for the thread that keeps them

Order = Future[PictureProcess] | None  # whoever waits for a process that is to be started; None: nobody yet


class PicturePool:
    """Processes that decode pictures, and who has them."""

    def __init__(self, command_of: CommandOf = worker_command) -> None:
        self.command_of = command_of
        self._changed = threading.Condition()
        self._idle: deque[PictureProcess] = deque()
        self._taken: set[PictureProcess] = set()
        self._orders: deque[Order] = deque()
        self._leases = 0
        self._rounds = 0  # how often every process was ended
        self._keeper: threading.Thread | None = None

    @contextmanager
    def lease(self) -> Generator[None]:
        """Keeps processes while it is held; at the end of the last lease all of them are ended, whatever they do."""
        with self._changed:
            self._leases += 1
        try:
            yield
        finally:
            with self._changed:
                self._leases -= 1
                is_last = not self._leases
            if is_last:
                self.close()

    @property
    def is_leased(self) -> bool:
        """True while a run keeps processes."""
        return self._leases > 0

    def expect(self) -> None:
        """Starts a process if there is none, without waiting for it: a picture will come."""
        with self._changed:
            if not (self._idle or self._taken or self._orders):
                self._order(None)

    def take(self) -> PictureProcess:
        """A process for one picture, once there may be one more; to be given back.

        Raises:
            KilledError: all were ended meanwhile. OSError: the system gives no process.
        """
        with self._changed:
            rounds = self._rounds
            while not self._has_room():
                self._changed.wait(0.05)  # a process becomes late without anybody's saying so
                if self._rounds != rounds:
                    raise KilledError
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    process.since = time.monotonic()
                    self._taken.add(process)
                    return process
                process.close()
            wanted: Future[PictureProcess] = Future()
            if None in self._orders:
                self._orders[self._orders.index(None)] = wanted  # the one that was expected
            else:
                self._order(wanted)
        return wanted.result()

    def _has_room(self) -> bool:
        quick = sum(process.is_quick(SLOW_S) for process in self._taken)
        return (quick + len(self._orders) < AT_ONCE and len(self._taken) < MOST) or None in self._orders

    def give_back(self, process: PictureProcess) -> None:
        """Keeps a process for the next picture, or ends it."""
        process.idle_since = time.monotonic()
        with self._changed:
            is_kept = process in self._taken and process.is_alive and len(self._idle) < AT_ONCE
            self._taken.discard(process)
            if is_kept and process.pictures < PICTURES:
                self._idle.append(process)
            else:
                process.close()
            self._changed.notify_all()

    def give_up(self) -> None:
        """Ends every process now, at the end of a run, if no other run holds a lease."""
        with self._changed:
            is_shared = self._leases > 1
        if not is_shared:
            self.close()

    def close(self) -> None:
        """Ends every process."""
        with self._changed:
            self._rounds += 1
            for process in self._idle:
                process.close()
            for process in self._taken:  # whoever has it closes it
                process.kill()
            self._idle.clear()
            self._taken.clear()
            self._changed.notify_all()
            keeper = self._keeper
        if keeper is not None:
            keeper.join(JOIN_S)

    def forget(self) -> None:
        """Leaves the processes to the process that this one was forked from."""
        for process in (*self._idle, *self._taken):
            process.forget()
        self.__init__(self.command_of)

    def _order(self, order: "Order") -> None:
        self._orders.append(order)
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="pictures", daemon=True)
            self._keeper.start()
        self._changed.notify_all()

    def _keep(self) -> None:
        """Starts what is ordered and ends what is over, until there is nothing left."""
        while True:
            with self._changed:
                if not (self._orders or not self._is_used() or any(map(self._is_over, self._idle))):
                    self._changed.wait(LINGER_S / 8 if self._idle and not self._leases else None)
                for process in [process for process in self._idle if self._is_over(process)]:
                    self._idle.remove(process)
                    process.close()
                if not self._is_used():
                    self._keeper = None
                    return
                has_order, rounds = bool(self._orders), self._rounds
            if has_order:
                self._start(rounds)

    def _start(self, rounds: int) -> None:
        """Starts a process for the first order."""
        process, failure = None, None
        try:
            process = PictureProcess(self.command_of)
        except BaseException as error:  # noqa: BLE001 - for whoever ordered it
            failure = error
        with self._changed:
            order = self._orders.popleft()
            if process is not None and self._rounds != rounds:
                process.close()
                failure = KilledError()
            elif process is not None and order is None:
                process.idle_since = time.monotonic()
                self._idle.append(process)
            elif process is not None:
                process.since = time.monotonic()
                self._taken.add(process)
            self._changed.notify_all()
        if order is not None and failure is not None:
            order.set_exception(failure)
        elif order is not None and process is not None:
            order.set_result(process)

    def _is_used(self) -> bool:
        return bool(self._idle or self._taken or self._orders)

    def _is_over(self, process: PictureProcess) -> bool:
        return not process.is_alive or not (self._leases or time.monotonic() - process.idle_since < LINGER_S)


POOL = PicturePool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.forget)
