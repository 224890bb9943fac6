"""A bounded hand-over of frames from the thread that reads a decoder to whoever looks at them.

Knows nothing of decoders: its thread runs what it is given.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from llava_mini_cli.media.clip import FrameChunk

JOIN_S = 5.0  # its decoder is dead by then, unless the kernel cannot end it


class StoppedError(Exception):
    """Raised in the producing thread when nobody wants its frames any more."""


class FrameQueue:
    """Chunks made by one owned thread; at most `capacity` of them wait."""

    def __init__(self, produce: Callable[["FrameQueue"], None], capacity: int = 2) -> None:
        """`produce(feed)` calls `feed.put` for each chunk; what it raises is raised again to the consumer."""
        self._produce = produce
        self._capacity = capacity
        self._chunks: deque[FrameChunk] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    def put(self, chunk: FrameChunk) -> None:
        """Hands a chunk over, when there is room. Raises `StoppedError` when it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._chunks) < self._capacity)
            if self._stopped:
                raise StoppedError
            self._chunks.append(chunk)
            self._changed.notify_all()

    def ready(self) -> bool:
        """Whether the next chunk, the end or the error is there."""
        with self._changed:
            return bool(self._chunks) or self._ended

    def __iter__(self) -> Iterator[FrameChunk]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._chunks) or self._ended)
                if not self._chunks:
                    break
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drops what waits and makes `put` raise. Does not wait for the thread."""
        with self._changed:
            self._stopped = True
            self._chunks.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the thread, which must have been stopped; one that does not end soon is left behind."""
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            self._produce(self)
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - carried to the consumer's thread, where it is raised
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
