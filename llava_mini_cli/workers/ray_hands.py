"""Workers as actors of Ray, which starts processes, places them, carries what is said and tells who died.

Ray retries nothing: what becomes of media whose worker died is up to the books. A Ray of the run's own is started by a
thread that lives as long as it does, since Ray's processes end with the thread that started them.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np

from llava_mini_cli import __version__
from llava_mini_cli.errors import LlavaMiniError, WorkersError, first_line
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.media_root import file_of
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.needs import RAY
from llava_mini_cli.workers.hands import Gone
from llava_mini_cli.workers.messages import Batch, Work, from_bytes, to_bytes
from llava_mini_cli.workers.options import WorkerOptions
from llava_mini_cli.workers.places import Share, places, share_of
from llava_mini_cli.workers.worker import Worker

TAKE_S = 1.0  # seconds that a worker waits for something to say
GRACE_S = 5.0  # seconds more than --worker-timeout for an answer to come
CONNECT_S = 5.0  # seconds for a head to take a connection
OPEN_S = 60.0  # seconds for a cluster to take this run: its head has answered, and its machine may be busy
LOOK_S = 1.0  # seconds between looks at the machines
POLL_S = 0.2
CLOSE_S = 5.0  # seconds for Ray to end; what is left then ends with this process
STORE_BYTES = 200 << 20  # of the object store of a Ray of our own, through which rows go
SHIPPED_BYTES = 2 << 30  # where files go through it, too
_EXIT = re.compile(r"Worker exit type: (?P<kind>\w+) Worker exit detail: (?P<detail>[^.]*)", re.DOTALL)
METHODS_AT_ONCE = 4  # of a worker: hello, begin, give and take


@dataclass
class _Hired:
    """One worker."""

    actor: Any
    name: str
    work: Work
    asked: Any  # the answer that is waited for
    is_known: bool = False  # it has said hello
    asked_at: float = 0.0


class RayHands:
    """The workers of one run."""

    def __init__(self, options: WorkerOptions, device: str) -> None:
        self._options = options
        self._device = device
        self._share: Share | None = None
        self._hired: dict[int, _Hired] = {}
        self._shipped: dict[int, Any] = {}  # references to the bytes of media, by number
        self._next = 1
        self._looked: tuple[float, int] = (0.0, 0)  # when machines were looked at, and how many places there were
        self._ray: Any = None
        self._opening: threading.Thread | None = None
        self._opened = threading.Event()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._began = 0.0

    def is_open(self) -> bool:
        """True once workers can be hired; waits a moment otherwise.

        Raises:
            WorkersError, UsageError: Ray is not installed, nobody answers, or there is no room for a worker.
        """
        if self._opening is None:
            self._ray = RAY.load("--workers" if self._options.address is None else "--ray", "ray")
            self._look_for_head()
            self._began = time.monotonic()
            self._opening = threading.Thread(target=self._live, name="ray", daemon=True)
            self._opening.start()
        if not self._opened.wait(POLL_S):
            if time.monotonic() - self._began > OPEN_S and self._options.address is not None:
                raise WorkersError(f"--ray {self._options.address}: no answer from a Ray cluster within {OPEN_S:g} s")
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _look_for_head(self) -> None:
        """Raises `WorkersError` where nobody answers, or something else than Ray: Ray itself would try for long."""
        address = self._options.address
        if address is None or address == "auto":
            return
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as connection:
                is_head = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_http2(connection)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise WorkersError(f"--ray {address}: nobody answers there ({reason}); is a Ray head running?") from None
        if not is_head:
            raise WorkersError(
                f"--ray {address}: what answers there is no Ray head; its port is 6379 unless it was set"
            )

    def _live(self) -> None:
        """The life of the thread that Ray's processes are children of."""
        try:
            self._start()
            self._share = share_of(self._options, self._nodes(), self._device)
        except LlavaMiniError as error:
            self._failure = error
        except BaseException as error:  # noqa: BLE001 - raised again by `is_open`
            where = "--workers" if self._options.address is None else f"--ray {self._options.address}"
            self._failure = WorkersError(one_line(f"{where}: {first_line(error)}"))
        self._opened.set()
        self._closing.wait()
        self._ray.shutdown()

    def _start(self) -> None:
        options, own = self._options, {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        _hush()
        if options.address is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            count = 1 if options.count == "auto" else options.count
            own = {
                "num_cpus": max(cores, count * (options.cpus or 1)),
                "object_store_memory": SHIPPED_BYTES if options.ship_media else STORE_BYTES,
                "include_dashboard": False,
            }
        self._ray.init(
            address=options.address or "local",
            log_to_driver=False,  # what workers print is no row
            configure_logging=False,
            logging_level="ERROR",
            namespace=f"llava-mini-{os.getpid()}",
            **own,
        )

    def _nodes(self) -> list[dict[str, float]]:
        nodes = cast(list[dict[str, Any]], self._ray.nodes())
        return [node["Resources"] for node in nodes if node["Alive"]]

    @property
    def _of_each(self) -> Share:
        assert self._share is not None  # it is open
        return self._share

    @property
    def count(self) -> int:
        """The number of workers that are wanted."""
        return self._of_each.count

    @property
    def beside(self) -> int:
        """The number of workers that share a machine's memory."""
        return self._of_each.beside

    def places(self) -> int:
        """The number of workers that the machines have room for, those of this run among them."""
        at, found = self._looked
        if time.monotonic() - at > LOOK_S:
            found = places(self._nodes(), self._of_each)
            self._looked = time.monotonic(), found
        return found

    def name(self, worker: int) -> str:
        """What a user may know a worker by."""
        return self._hired[worker].name if worker in self._hired else f"worker {worker}"

    def hire(self, work: Work) -> int:
        """Begins to start a worker."""
        number, share = self._next, self._of_each
        self._next += 1
        remote = self._ray.remote(Worker).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=METHODS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        actor = remote.remote()
        self._hired[number] = _Hired(actor, f"worker {number}", work, actor.hello.remote())
        return number

    def has_started(self, worker: int) -> bool:
        """True once a worker has said hello."""
        return worker in self._hired and self._hired[worker].is_known

    def give(self, worker: int, jobs: Sequence[Job]) -> None:
        """Sends media to a worker."""
        shipped = {job.number: place for job in jobs if (place := self._ship(job)) is not None}
        self._hired[worker].actor.give.remote(to_bytes(list(jobs)), shipped)

    def _ship(self, job: Job) -> Any:
        """Where the bytes of a job's file are in the object store; None where they are not sent."""
        if not self._options.ship_media or job.source is not None or job.fault is not None or job.number is None:
            return None
        if job.number not in self._shipped:
            file = file_of(job)
            try:
                assert isinstance(file, str)
                self._shipped[job.number] = self._ray.put(np.memmap(file, np.uint8, "r"))
            except (AssertionError, OSError, ValueError):  # a worker finds out what is wrong with it
                return None
        return self._shipped[job.number]

    def let_go(self, job: Job) -> None:
        """A medium is done, and its bytes may go."""
        if job.number is not None:
            self._shipped.pop(job.number, None)

    def heard(self, seconds: float) -> list[tuple[int, Batch | Gone]]:
        """What workers have said by now; waits for so long where there is nothing."""
        asked = {hired.asked: number for number, hired in self._hired.items()}
        if not asked:
            time.sleep(seconds)
            return []
        try:
            ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=seconds)
            if ready:
                ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        except (self._ray.exceptions.RayError, OSError) as error:
            raise WorkersError(one_line(f"{self._options.place} does not answer: {first_line(error)}")) from None
        found = [(asked[answer], said) for answer in ready if (said := self._answer(asked[answer], answer)) is not None]
        return found + [(number, Gone(self._silence)) for number in self._silent() if number not in dict(found)]

    @property
    def _silence(self) -> str:
        return f"did not answer for {self._options.timeout:g} s, --worker-timeout"

    def _silent(self) -> list[int]:
        """Workers that do not even say that they have nothing to say."""
        latest = time.monotonic() - self._options.timeout - TAKE_S - GRACE_S
        return [number for number, hired in self._hired.items() if hired.is_known and hired.asked_at < latest]

    def _answer(self, number: int, answer: Any) -> Batch | Gone | None:
        """What a worker has said, and asks it for more; None where it was hello."""
        hired = self._hired[number]
        try:
            said = self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            return self._dead(error)
        except self._ray.exceptions.RayError as error:
            return Gone(one_line(first_line(error)), hopeless=not hired.is_known)
        if hired.is_known:
            self._ask(hired)
            return from_bytes(said)
        version, place = said[0], said[1]
        hired.name = f"worker {number} ({place})"
        if version != __version__:
            return Gone(
                f"has llava-mini-cli {version}, and this is {__version__}: both have to be the same", hopeless=True
            )
        hired.is_known = True
        hired.actor.begin.remote(to_bytes(hired.work))
        self._ask(hired)
        return None

    def _ask(self, hired: _Hired) -> None:
        hired.asked = hired.actor.take.remote(TAKE_S)
        hired.asked_at = time.monotonic()

    def _dead(self, error: BaseException) -> Gone:
        """Why an actor died, in one line."""
        text = str(error)
        if "node has died" in text or "node was terminated" in text:
            return Gone("its machine went down", blamed=False)
        missing = "No module named" in text
        if missing:
            return Gone(
                one_line(f"llava-mini-cli {__version__} is not installed there, or not as here: {_said(text)}"),
                hopeless=True,
            )
        return Gone(_cause(text))

    def dismiss(self, worker: int) -> None:
        """Kills a worker."""
        hired = self._hired.pop(worker, None)
        if hired is not None:
            self._ray.kill(hired.actor, no_restart=True)

    def close(self) -> None:
        """Ends all workers, and a Ray of our own."""
        if self._opening is None:
            return
        if self._opened.is_set() and self._failure is None:
            for worker in list(self._hired):
                self.dismiss(worker)
        self._closing.set()
        if self._opened.is_set():
            self._opening.join(CLOSE_S)
        elif self._options.address is None:
            _end_children()


def _speaks_http2(connection: socket.socket) -> bool:
    """True if whoever answers begins as gRPC does, with a frame of settings (RFC 9113, 3.4 and 6.5)."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = b""
    while len(head) < 9 and (more := connection.recv(9 - len(head))):
        head += more
    return len(head) == 9 and head[3] == 4


def _hush() -> None:
    """Keeps Ray from printing to standard output which process died, as it does whatever `log_to_driver` says."""
    setattr(import_module("ray._private.worker"), "print_to_stdstream", _print_nothing)  # noqa: B010 - of no type


def _end_children() -> None:
    """Ends what a Ray that is being started has started so far: its agents would outlive it for a minute."""
    psutil = cast(Any, import_module("psutil"))  # which Ray brings
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _print_nothing(*_: object, **__: object) -> None:
    """Takes what Ray would print."""


def _cause(text: str) -> str:
    """Why a worker's process ended, of the many lines that Ray has for it."""
    found = _EXIT.search(text)
    detail = "" if found is None else f" ({one_line(found['kind'])}: {one_line(found['detail'])})"
    return f"its process ended unexpectedly{detail}"


def _said(text: str) -> str:
    """The line of Ray's many that names an error."""
    lines = [line.strip() for line in text.splitlines() if "Error:" in line]
    return one_line(lines[-1])[:300] if lines else "no reason is known"
