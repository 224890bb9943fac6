"""vLLM's process as this one sees it: started, spoken to, and gone when this one is."""

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Protocol

import torch

from llava_mini_cli.at_exit import at_the_end
from llava_mini_cli.engine.vllm.left_files import new_folder, take_away
from llava_mini_cli.engine.vllm.messages import Counted, Drop, Groups, Ready, Said, Start, from_bytes, to_bytes
from llava_mini_cli.errors import LlavaMiniError

SERVER = "llava_mini_cli.engine.vllm.server"
START_SECONDS = 1800.0  # to load and compile, on a slow disk
END_SECONDS = 30.0  # to come to an end by itself
GROUP_SECONDS = 5.0  # for the processes that it started to do so, looked at so many times
GROUP_TRIES = 100
_LAST_BYTES = 4096
_STDERR = 2


class VllmEnded(LlavaMiniError):
    """vLLM's process is not there any more; the text says what its last words were."""


class Link(Protocol):
    """A way to vLLM's process."""

    def send(self, message: Groups | Drop) -> None:
        """Sends work. Raises `VllmEnded`."""
        ...

    def take(self, seconds: float) -> list[Said | Counted]:
        """All that was said, or what comes within some seconds. Raises `VllmEnded`."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...


class Process:
    """A process with vLLM in it. It has a session of its own, so that Ctrl-C is this process's to deal with."""

    def __init__(self, start: Start, *, is_verbose: bool = False, module: str = SERVER) -> None:
        """Starts it; `wait` waits for it.

        Args:
            is_verbose: it talks on stderr.
            module: what it runs.
        """
        ours, theirs = Pipe()
        self._talk: IO[bytes] | None = None if is_verbose else tempfile.TemporaryFile()  # noqa: SIM115 - as long as self
        where = _STDERR if self._talk is None else self._talk
        files = new_folder()
        path = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[3])])
        settings = {
            "PYTHONPATH": path,
            "TMPDIR": str(files),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_USE_V2_MODEL_RUNNER": "0",
        }
        if start.on_cuda:  # vLLM takes the first cards that it sees
            cards = range(start.card, start.card + start.tensor_parallel)
            settings["CUDA_VISIBLE_DEVICES"] = _names(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
        elif "OMP_NUM_THREADS" not in os.environ:  # it would take one core, and this process waits while it answers
            settings["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // start.tensor_parallel))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(files)],
                stdin=subprocess.DEVNULL,
                stdout=where,
                stderr=where,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, **settings},
            )
        except OSError:
            files.rmdir()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._connection: Connection = ours
        self._heard: queue.SimpleQueue[object] = queue.SimpleQueue()  # None: it ended
        self._ended: str | None = None
        listener = threading.Thread(target=_listen, args=(ours, self._heard), name="vllm", daemon=True)
        listener.start()
        self._finish = weakref.finalize(self, _end, self._process, ours, listener, self._talk, files)
        at_the_end(self._finish)
        with suppress(VllmEnded):  # which `wait` tells
            self.send(start)

    def wait(self) -> Ready:
        """What it says once it is ready. Raises `VllmEnded`."""
        try:
            found = self._heard.get(timeout=START_SECONDS)
        except queue.Empty:
            self.close()
            raise VllmEnded("it was not ready in time") from None
        if not isinstance(found, Ready):
            raise VllmEnded(self._last_words())
        return found

    def send(self, message: Start | Groups | Drop) -> None:
        """Sends work. Raises `VllmEnded`."""
        try:
            self._connection.send_bytes(to_bytes(message))
        except OSError as error:
            raise VllmEnded(self._last_words()) from error

    def take(self, seconds: float) -> list[Said | Counted]:
        """All that was said, or what comes within some seconds. Raises `VllmEnded`."""
        found: list[Said | Counted] = []
        with suppress(queue.Empty):
            more = self._heard.get(timeout=seconds)
            while isinstance(more, list):
                found += more  # pyright: ignore[reportUnknownArgumentType]
                more = self._heard.get_nowait()
            self._heard.put(None)  # for the next time
            if not found:
                raise VllmEnded(self._last_words())
        return found

    def close(self) -> None:
        """Ends the process and all that it started."""
        self._ended = self._ended or "it was ended"
        self._finish()

    def _last_words(self) -> str:
        """How it ended, and the last line that it said."""
        if self._ended is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            status = self._process.poll()
            how = f"killed by {signal.Signals(-status).name}" if status and status < 0 else f"exit status {status}"
            words = self._last_line()
            self._ended = f"{how}: {words}" if words else how
        return self._ended

    def _last_line(self) -> str:
        if self._talk is None or self._talk.closed:
            return ""
        size = self._talk.seek(0, os.SEEK_END)
        self._talk.seek(max(0, size - _LAST_BYTES))
        lines = [line.strip() for line in self._talk.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line and not line.startswith(("File", "^"))]
        return (errors or lines or [""])[-1][:300]


def hang_up(connection: Connection) -> None:
    """Closes a connection, also where another thread is waiting at it."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def _listen(connection: Connection, heard: "queue.SimpleQueue[object]") -> None:
    """Puts what comes where it can be waited for; None once nothing will."""
    try:
        while True:
            heard.put(from_bytes(connection.recv_bytes()))
    except (EOFError, OSError):
        heard.put(None)


def _names(cards: range, visible: str | None) -> str:
    """The names of cards that have their places among those that CUDA_VISIBLE_DEVICES lets this program see."""
    return ",".join(visible.split(",")[card].strip() if visible else str(card) for card in cards)


def _end(
    process: "subprocess.Popen[bytes]",
    connection: Connection,
    listener: threading.Thread,
    talk: IO[bytes] | None,
    files: Path,
) -> None:
    """Has a process end, by itself or not, and who listens to it."""
    if talk is not None:
        talk.close()
    hang_up(connection)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        for _ in range(GROUP_TRIES):  # what it started ends by itself, too, and frees memory that is shared
            os.killpg(process.pid, 0)
            time.sleep(GROUP_SECONDS / GROUP_TRIES)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    take_away(files)
    if listener is not threading.current_thread():  # which garbage can be collected in
        listener.join(END_SECONDS)
    connection.close()
