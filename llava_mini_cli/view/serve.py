"""A page served until Ctrl-C, until it is told to end, or until the terminal goes."""

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import uvicorn

from llava_mini_cli.errors import OutputError
from llava_mini_cli.view.media import MediaPlaces
from llava_mini_cli.view.server import application
from llava_mini_cli.view.table import RowTable

ADDRESS = "127.0.0.1"
LOOKS = 2.0  # seconds between two looks at the files of the output
LAST_SECONDS = 1  # that answers under way have when it ends
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Server(uvicorn.Server):
    """Uvicorn's server, which ends as well when the terminal goes, and by itself raises no signal again."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        caught = [number for number in _ENDS if signal.getsignal(number) != signal.SIG_IGN]  # nohup stays what it is
        for number in caught:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


def serve(table: RowTable, places: MediaPlaces, title: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until a signal comes.

    Args:
        table: the rows, which are looked at again every two seconds.
        port: 0 takes a free one.
        ready: called with the address once it can be opened; the first rows are there then.

    Raises:
        OutputError: the port cannot be had.
        UsageError: nothing can be read of the output, or of the track.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen(128)
        except OSError as error:
            raise OutputError(f"cannot serve at port {port}: {(error.strerror or str(error)).lower()}") from error
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        app: Any = application(table, places, title, token, port)
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, server_header=False, lifespan="off", ws="none", http="h11",
            loop="asyncio", timeout_graceful_shutdown=LAST_SECONDS,
        )  # fmt: skip
        over, read_once = Event(), Event()
        Thread(target=_look_again, args=(table, read_once, over), daemon=True).start()
        try:
            while not table.version and not read_once.wait(0.05):
                pass
            table.check()
            ready(f"http://{ADDRESS}:{port}/{token}/")
            asyncio.run(_Server(config).serve(sockets=[listener]))
        finally:
            over.set()


def _look_again(table: RowTable, read_once: Event, over: Event) -> None:
    while not over.is_set():
        try:
            table.refresh()
        finally:
            read_once.set()
        over.wait(LOOKS)
