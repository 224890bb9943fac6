"""The files that are opened while something runs, and the servers that are asked, by Python's own audit events."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.listdir", "os.scandir", "socket.getaddrinfo", "socket.connect")


@dataclass
class Opened:
    """What was opened below a folder, and which servers were asked."""

    folder: Path
    files: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)


_watched: list[Opened] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which can never be taken away again: it does nothing while nobody watches."""
    if not _watched or event not in _EVENTS:
        return
    for opened in _watched:
        if event.startswith("socket"):
            opened.servers.append(repr(arguments))
        elif isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if Path(path).is_relative_to(opened.folder):
                opened.files.append(path)


sys.addaudithook(_hear)


@contextmanager
def opened_below(folder: Path) -> Generator[Opened]:
    """Notes what is opened below a folder inside the block."""
    opened = Opened(folder.resolve())
    _watched.append(opened)
    try:
        yield opened
    finally:
        _watched.remove(opened)


def main() -> None:
    """`python opened_files.py FOLDER ask ...`: the command line; says at the end on stderr what was opened."""
    from llava_mini_cli.__main__ import main as run

    folder = Path(sys.argv.pop(1))
    with opened_below(folder) as opened:
        try:
            run()
        finally:
            print(f"opened: {len(opened.files)} {len(opened.servers)}", file=sys.stderr)


if __name__ == "__main__":
    main()
