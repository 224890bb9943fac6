"""`--files-from`: paths and URLs from a file or from standard input, each as soon as its line has come.

Reads the descriptor itself, so that nothing waits for a full buffer. Knows nothing of what the paths lead to.
"""

import codecs
import os
from collections.abc import Iterator

from llava_mini_cli.errors import UsageError
from llava_mini_cli.paths import is_folder, is_there

_CHUNK = 1 << 16  # bytes


def check_listing(name: str) -> None:
    """Raises `UsageError` where there is no list to read; `-` is standard input."""
    if name != "-" and is_folder(name):
        raise UsageError(f"--files-from cannot read '{name}': it is a folder")
    if name != "-" and not os.access(name, os.R_OK):
        why = "permission denied" if is_there(name) else "no such file"
        raise UsageError(f"--files-from cannot read '{name}': {why}")


def read_listing(name: str, *, null: bool) -> Iterator[str]:
    """The entries of a list, in order; empty ones are skipped.

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
    descriptor = None
    try:
        descriptor = 0 if name == "-" else os.open(name, os.O_RDONLY)
        while chunk := os.read(descriptor, _CHUNK):
            whole, found, after = chunk.rpartition(end)
            if found:
                yield from (bytes(rest) + whole).split(end)
                rest.clear()
            rest += after
        yield bytes(rest)
    except OSError as error:
        raise UsageError(f"--files-from cannot read '{name}': {(error.strerror or str(error)).lower()}") from None
    finally:
        if descriptor:
            os.close(descriptor)
