"""The exceptions of the package. One tree; `commands` alone turns it into words and an exit code.

LlavaMiniError                  exit 1
|-- UsageError                  exit 2    an option or argument that cannot be used
|-- ModelError                  exit 1    the model cannot be had
|   |-- ModelNotFound                     no such directory, hub id or cached snapshot
|   `-- CheckpointError                   files that are missing, damaged or misshapen
|-- ItemError                             one medium or prompt fails: becomes a row, not an exit
|   |-- FetchError                        the medium cannot be brought to this disk
|   |-- MediaError                        the medium cannot be read or decoded
|   `-- PromptError                       the prompt cannot be asked of this medium
|-- DeviceLost                  exit 1    the device that computes does not work any more
|-- WorkersError                exit 1    workers cannot be had, or none is left
|-- ArchiveError                exit 1    an archive cannot be read
`-- OutputError                 exit 1    the output cannot be written
    `-- OutputLocked            exit 75   another run holds it
"""

import errno
from typing import ClassVar, Literal, get_args

MediaErrorKind = Literal[
    "not_found",  # no such path
    "unreadable",  # permissions, or a format that no reader knows
    "no_video",  # readable, but holds neither picture nor video stream
    "unsupported_codec",
    "truncated",  # cut short, and nothing or too little of it could be read
    "corrupt",
    "empty",  # zero bytes, or a stream without a frame
    "too_large",  # absurd dimensions or a decompression bomb
    "timeout",  # no frame within the decode deadline
    "refused",  # the user's own bounds exclude it, such as --media-root or --hosts
    "decoder_killed",  # its decoder was ended from outside, twice
    "out_of_memory",  # the machine or the card had no memory left
    "no_resources",  # the system gave no more file handles, processes or threads, or its disk was full
    "unreachable",  # the server, the mounted disk or the drive did not answer
    "too_many",  # more scenes than are asked about
    "no_scenes",  # nothing tells where its scenes begin
]
MEDIA_ERROR_KINDS: tuple[str, ...] = get_args(MediaErrorKind)
PASSING_KINDS = frozenset({"decoder_killed", "out_of_memory", "no_resources", "unreachable"})  # of the moment

_KINDS_OF_ERRNO: tuple[tuple[MediaErrorKind, str], ...] = (
    ("out_of_memory", "ENOMEM"),
    ("no_resources", "EMFILE ENFILE EAGAIN ENOSPC EDQUOT ENOLCK ENOBUFS"),
    (
        "unreachable",
        "ESTALE EIO EREMOTEIO ETIMEDOUT EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENOTCONN ECONNREFUSED ECONNRESET "
        "ECONNABORTED ENODEV ENXIO ENOMEDIUM",
    ),
    ("not_found", "ENOENT ENOTDIR ENAMETOOLONG"),
)
# Not every system knows every name.
_KIND_OF_ERRNO: dict[int, MediaErrorKind] = {
    getattr(errno, name): kind for kind, names in _KINDS_OF_ERRNO for name in names.split() if hasattr(errno, name)
}


class LlavaMiniError(Exception):
    """Base of every error that the package raises on purpose. Its text is one line for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(LlavaMiniError):
    """An option or argument that cannot be used; the text names the flag."""

    exit_code = 2


class ModelError(LlavaMiniError):
    """The model cannot be had."""


class ModelNotFound(ModelError):
    """No such directory, hub id or cached snapshot; the text says how to get it."""


class CheckpointError(ModelError):
    """A checkpoint whose files are missing, damaged or of the wrong shape."""


class ItemError(LlavaMiniError):
    """One medium, or one prompt about it, fails. Batch runs turn it into an error row."""

    stage: ClassVar[str]

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class FetchError(ItemError):
    """A medium that cannot be brought to this disk. `kind` is one of `MEDIA_ERROR_KINDS`."""

    stage = "fetch"

    def __init__(self, kind: MediaErrorKind, message: str) -> None:
        super().__init__(kind, message)


class MediaError(ItemError):
    """A medium that cannot be read or decoded. `kind` is one of `MEDIA_ERROR_KINDS`."""

    stage = "decode"

    def __init__(self, kind: MediaErrorKind, message: str) -> None:
        super().__init__(kind, message)


class PromptError(ItemError):
    """A prompt that cannot be asked of this medium, such as one too long for the context."""

    stage = "prompt"


class DeviceLost(LlavaMiniError):
    """The device that computes does not work any more, or has no memory even to say what failed; the run ends."""


class WorkersError(LlavaMiniError):
    """Workers cannot be had, or none is left; what was written is whole, and the same command goes on."""


class ArchiveError(LlavaMiniError):
    """An archive, or a part of it, cannot be read."""


class OutputError(LlavaMiniError):
    """The output cannot be written."""


class OutputLocked(OutputError):
    """Another run holds the output's lock."""

    exit_code = 75


def is_fault(error: BaseException) -> bool:
    """True for an exception that is no wish to end, such as Ctrl-C; a panic of a library in Rust is one, too."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of a library's message; the name of the exception where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def kind_of(error: OSError) -> MediaErrorKind:
    """The kind of what the system answered when a medium was opened, read or fetched.

    What lies in the machine and in the moment is of `PASSING_KINDS`; `unreadable` where nothing better is known.
    """
    return _KIND_OF_ERRNO.get(error.errno or 0, "unreachable" if isinstance(error, TimeoutError) else "unreadable")
