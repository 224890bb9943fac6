"""A bounded hand-over of items from one thread, which it owns, to whoever takes them.

Knows nothing of what is handed over: its thread runs what it is given.
"""

from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition, Thread
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class StoppedError(Exception):
    """Raised in the producing thread when nobody wants its items any more."""


class HandOver(Generic[Item]):
    """An iterator of the items that its thread makes, in their order; any number of threads may take them."""

    def __init__(self, produce: Callable[["HandOver[Item]"], None], capacity: int, name: str) -> None:
        """Starts the thread.

        Args:
            produce: calls `put` for each item. What it raises is raised again by `next`, after the items before it.
            capacity: items that wait at most.
            name: of the thread.
        """
        self._produce = produce
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._changed = Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name=name, daemon=True)  # its input, such as a pipe, may never end
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hands an item over, once there is room. Raises `StoppedError` when it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                raise StoppedError
            self._items.append(item)
            self._changed.notify_all()

    def put_all(self, items: Iterable[Item]) -> None:
        """Hands over one after the other."""
        for item in items:
            self.put(item)

    def ready(self) -> bool:
        """True if `next` returns or raises without waiting."""
        with self._changed:
            return bool(self._items) or self._ended

    def has_items(self) -> bool:
        """True if `next` returns without waiting."""
        with self._changed:
            return bool(self._items)

    def wait(self, seconds: float) -> bool:
        """Waits until `ready` is true, for so long at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._ended, seconds)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._ended)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def stop(self) -> None:
        """Drops what waits; from now on `put` raises, and `next` finds the end. Does not wait for the thread."""
        with self._changed:
            self._stopped = self._ended = True
            self._items.clear()
            self._error = None
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Waits for the thread, which must have been stopped; False if it has not ended by then and is left behind."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        error = None
        try:
            self._produce(self)
        except StoppedError:
            pass
        except BaseException as raised:  # noqa: BLE001 - carried to the thread that takes, where it is raised again
            error = raised
        with self._changed:
            self._error = None if self._stopped else error
            self._ended = True
            self._changed.notify_all()
