"""`--files-from`: paths and URLs from a file or from standard input, each as soon as its line has come.

Reads the descriptor itself, so that nothing waits for a full buffer. Knows nothing of what the paths lead to.
"""

import codecs
import os
import stat
from collections.abc import Iterator

from llava_mini_cli.errors import UsageError
from llava_mini_cli.paths import is_folder, is_there

LONGEST_ENTRY = 1 << 16  # bytes; the longest path of a system is 4096
_CHUNK = 1 << 16  # bytes
_LONGEST_REST = 1 << 30  # bytes of an entry that are passed over before the list is given up


def check_listing(name: str) -> None:
    """Raises `UsageError` where there is no list to read; `-` is standard input."""
    if name != "-" and is_folder(name):
        raise UsageError(f"--files-from cannot read '{name}': it is a folder")
    if name != "-" and _is_endless(name):
        raise UsageError(f"--files-from cannot read '{name}': it is a device")
    if name != "-" and not os.access(name, os.R_OK):
        why = "permission denied" if is_there(name) else "no such file"
        raise UsageError(f"--files-from cannot read '{name}': {why}")


def _is_endless(name: str) -> bool:
    """True of a device other than a terminal and the empty one, which may give bytes for ever."""
    if not is_there(name) or os.path.samefile(name, os.devnull):  # noqa: PTH121
        return False
    mode = os.stat(name).st_mode  # noqa: PTH116 - of any name
    return stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_terminal(name))


def _is_terminal(name: str) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # which whoever reads it says
        return True
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def read_listing(name: str, *, null: bool) -> Iterator[str]:
    """The entries of a list, in order; empty ones are skipped. Of one that is too long, somewhat more than is allowed.

    Of lines from Windows, the carriage return is skipped as well, and the byte order mark before the first one.

    Raises:
        UsageError: the list cannot be read to its end.
    """
    for number, part in enumerate(_parts(name, b"\0" if null else b"\n")):
        entry = part if null else part.removesuffix(b"\r")
        if number == 0 and not null:
            entry = entry.removeprefix(codecs.BOM_UTF8)
        if entry if null else entry.strip():
            yield os.fsdecode(entry)


def _parts(name: str, end: bytes) -> Iterator[bytes]:
    """The entries of a list without the byte that ends each. Raises `UsageError` as `read_listing` does."""
    rest = bytearray()
    passed = 0  # bytes of an entry that is too long, behind those that are given
    descriptor = None
    try:
        descriptor = 0 if name == "-" else os.open(name, os.O_RDONLY)
        while chunk := os.read(descriptor, _CHUNK):
            whole, found, after = chunk.rpartition(end)
            if found:
                yield from (bytes(rest) + whole).split(end)
                rest.clear()
                passed = 0
            rest += after
            if len(rest) > 2 * LONGEST_ENTRY:
                passed += len(rest) - 2 * LONGEST_ENTRY
                del rest[2 * LONGEST_ENTRY :]
            if passed > _LONGEST_REST:
                raise UsageError(f"--files-from cannot read '{name}': an entry of it does not end")
        yield bytes(rest)
    except OSError as error:
        raise UsageError(f"--files-from cannot read '{name}': {(error.strerror or str(error)).lower()}") from None
    finally:
        if descriptor:
            os.close(descriptor)
