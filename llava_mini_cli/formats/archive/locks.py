"""The locks of an archive: one writer at a time, any number of readers beside it.

Files that count no more are taken away where nobody reads; a writer that finds readers leaves them to the next one.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.formats.archive.layout import LOCK, NEAR, READERS, TABLES, VECTORS
from llava_mini_cli.formats.disk import errors_of
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.safe_files import make_own_folder


def writing(folder: Path) -> FileLock:
    """The writer's lock.

    Raises:
        OutputLocked: another run holds it. OutputError: a folder of the archive is a link to one of somebody else.
    """
    for table in (*TABLES, VECTORS, NEAR):
        with errors_of(folder / table):
            if os.path.lexists(folder / table):
                make_own_folder(folder / table)
    return FileLock(folder / LOCK, folder)


def take_away(folder: Path, files: Iterable[Path]) -> None:
    """Takes files away that no part of the archive has any more, unless somebody reads it at this moment."""
    files = list(files)
    if not files:
        return
    with suppress(OutputLocked), FileLock(folder / READERS, folder):
        for path in files:
            with errors_of(path):
                path.unlink(missing_ok=True)


def reading(folder: Path) -> ExitStack:
    """Keeps the files that count now from being taken away, after waiting for a run that is taking others away.

    Holds nothing where no lock can be had, such as on a read-only disk.
    """
    held = ExitStack()
    with suppress(OutputError):
        held.enter_context(FileLock(folder / READERS, folder, shared=True, wait=True))
    return held
