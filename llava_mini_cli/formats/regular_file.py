"""Opening files of strangers: plain files alone, since a pipe or a device may never end, or never even open."""

import errno
import os
import stat


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading a plain file. Raises `OSError`, for pipes, sockets, devices and folders as well."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe without a writer opens at once
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a plain file", os.fspath(path))
