"""The locks of an archive: one writer at a time, any number of readers beside it, and `--compact` alone."""

import os
from contextlib import ExitStack
from pathlib import Path

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.formats.archive.layout import LOCK, READERS, TABLES, VECTORS
from llava_mini_cli.formats.disk import errors_of
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.safe_files import make_own_folder


def writing(folder: Path) -> FileLock:
    """The writer's lock.

    Raises:
        OutputLocked: another run holds it. OutputError: a folder of the archive is a link to one of somebody else.
    """
    for table in (*TABLES, VECTORS):
        with errors_of(folder / table):
            if os.path.lexists(folder / table):
                make_own_folder(folder / table)
    return FileLock(folder / LOCK, folder)


def alone(folder: Path) -> FileLock:
    """Keeps readers out. Raises `OutputLocked` where one is at work."""
    return FileLock(folder / READERS, folder, busy=f"the archive '{folder}' is being read; --compact waits for nobody")


def reading(folder: Path) -> ExitStack:
    """Keeps `--compact` out. Holds nothing where no lock can be had, such as on a read-only disk.

    Raises `OutputLocked` where it is at work.
    """
    held = ExitStack()
    busy = f"the archive '{folder}' is being compacted; try again when that is done"
    try:
        held.enter_context(FileLock(folder / READERS, folder, shared=True, busy=busy))
    except OutputLocked:
        raise
    except OutputError:
        pass
    return held
