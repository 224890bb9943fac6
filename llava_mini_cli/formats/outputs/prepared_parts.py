"""Parts of a folder that other processes prepare, and that the run which they work for puts in place.

They lie in `.llava-mini/parts-HOST-TOKEN.d` beside the lock `parts-HOST-TOKEN`, which the run holds. A part that nobody
puts in place, since its writer or the run died, goes with that folder: in the end, or when the next run begins.
"""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import pyarrow as pa

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.output import PartsPlace
from llava_mini_cli.formats.outputs.parquet_parts import as_parquet
from llava_mini_cli.formats.row import Row
from llava_mini_cli.paths import is_folder
from llava_mini_cli.safe_files import HOST, STALE, make_own_folder

_HEX = "[0-9a-f]"
_NAME = f"parts-{_HEX * 8}-{_HEX * 16}"  # of the lock: the machine, and the run


class PreparedParts:
    """The folder that others prepare parts in, from the moment it is made until `close`."""

    def __init__(self, hidden: Path, output: Path) -> None:
        """Raises `OutputError` where it cannot be made; `hidden`: where the output's locks are."""
        self._lock = FileLock(hidden / f"parts-{HOST}-{token_hex(8)}", output)
        self.folder = _folder_of(self._lock.path)
        try:
            with errors_of(output):
                make_own_folder(self.folder)
        except BaseException:
            self._lock.release(remove=True)
            raise

    def place(self, schema: pa.Schema) -> PartsPlace:
        """What whoever prepares parts is told."""
        return PartsPlace(str(self.folder.resolve()), schema.serialize().to_pybytes())

    def close(self) -> None:
        """Takes the folder away, with what was not put in place."""
        _remove(self.folder)
        self._lock.release(remove=True)


def prepare_part(place: PartsPlace, rows: Sequence[Row]) -> str:
    """Writes rows as a part that is not in place yet, synced; returns its name. Raises `OutputError`."""
    schema = pa.ipc.read_schema(pa.py_buffer(place.schema))
    path = Path(place.folder, f"{token_hex(8)}.parquet")
    data = as_parquet(rows, schema)
    with errors_of(path), whole_file(path) as stream:
        stream.write(data)
    return path.name


def can_prepare(place: PartsPlace) -> bool:
    """True if this process sees the folder, whose name nobody could guess, and may write there."""
    return is_folder(Path(place.folder)) and os.access(place.folder, os.W_OK | os.X_OK)


def remove_prepared(hidden: Path, *, alone: bool) -> None:
    """Takes away what was prepared for runs that are gone; `alone`: no other run writes into the output."""
    for path in hidden.glob(_NAME):
        if not alone and f"-{HOST}-" not in path.name and _is_recent(_folder_of(path)):
            continue  # some network disks keep the locks of each machine to itself
        with suppress(OutputLocked, OutputError):  # its run is there, or it is somebody else's
            lock = FileLock(path, hidden.parent)
            _remove(_folder_of(path))
            lock.release(remove=True)


def _is_recent(folder: Path) -> bool:
    """True if something was written into a folder within the last hour."""
    try:
        return time.time() - folder.lstat().st_mtime < STALE
    except OSError:
        return False


def _folder_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.d")


def _remove(folder: Path) -> None:
    """Removes a folder; a writer whose run has let it go may be at work there, and ends with an error."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
