"""The lock of an output: a file that one run at a time holds by flock, and that says which.

The kernel lets it go when the run is gone, however it ended. Knows nothing of what is locked.
"""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, Self, cast

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.safe_files import is_at, open_regular

_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MOST = 1 << 20  # bytes of a lock file that are read


class FileLock:
    """Holds the lock from the moment it is made until `release`. The file may hold some JSON beside the holder."""

    def __init__(
        self, path: Path, output: Path, *, shared: bool = False, wait: bool = False, busy: str | None = None
    ) -> None:
        """Takes the lock; with others if `shared`, and after them if `wait`.

        Raises:
            OutputLocked: another run holds it; the text is `busy` where that is given.
            OutputError: the file cannot be written, or its file system has no locks.
        """
        self.path = path
        self._output = output
        self._shared = shared
        self._busy = busy
        self._descriptor = self._take((fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        if not shared:
            self.write(self.read())

    def _take(self, mode: int) -> int:
        alone = not self._shared  # whoever shares the lock writes nothing into its file
        while True:
            try:
                descriptor = open_regular(self.path, writing=alone, create=True, alone=alone)
            except OSError as error:
                raise OutputError(f"cannot write '{self._output}': no lock '{self.path}': {error.strerror}") from error
            try:
                fcntl.flock(descriptor, mode)
            except OSError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise self._not_had(error, holder) from error
            if is_at(self.path, descriptor):
                return descriptor
            os.close(descriptor)  # whoever held it has removed it

    def _not_had(self, error: OSError, holder: str) -> OutputError:
        if isinstance(error, BlockingIOError):
            return OutputLocked(self._busy or f"another run{holder} is writing '{self._output}'")
        reason = "its file system has no locks" if error.errno in _UNLOCKABLE else error.strerror
        return OutputError(f"cannot lock '{self._output}': {reason}")

    def share(self) -> None:
        """Lets others in that share the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        self._shared = True

    def read(self) -> dict[str, Any]:
        """The content of the file without its holder. Raises `OutputError` for a damaged file."""
        text = os.pread(self._descriptor, _MOST, 0)
        content = _object_in(text)
        if content is None:
            os.close(self._descriptor)
            raise OutputError(f"'{self.path}' is damaged; without it settings are not compared")
        return {name: value for name, value in content.items() if name not in ("pid", "host")}

    def write(self, content: dict[str, Any]) -> None:
        """Replaces what the file holds. In place, since the lock is on this very file, and by one call.

        Blanks cover what was there beyond the new text, so that there is no moment at which the file is no JSON.
        """
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        text = json.dumps(holder | content, indent=1).encode() + b"\n"
        try:
            os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size), 0)
            os.ftruncate(self._descriptor, len(text))
        except OSError as error:
            raise OutputError(f"cannot write '{self.path}': {error.strerror}") from error

    def release(self, *, remove: bool = False) -> None:
        """Lets go, and takes the file away if nobody else can hold it."""
        if remove and not self._shared and is_at(self.path, self._descriptor):
            self.path.unlink()
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _holder(descriptor: int) -> str:
    """` (pid 12 on host)`; nothing where the holder has not said so."""
    content = _object_in(os.pread(descriptor, _MOST, 0))
    if not content:
        return ""
    elsewhere = "" if content.get("host") == socket.gethostname() else f" on {content.get('host')}"
    return f" (pid {content.get('pid')}{elsewhere})"


def _object_in(text: bytes) -> dict[str, Any] | None:
    """The JSON object in the text of a lock file; empty where the text is, None for anything else."""
    try:
        content: object = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None
