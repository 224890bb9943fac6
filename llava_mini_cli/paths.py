"""Questions to the disk about a name that somebody gave, always answered with yes or no.

`pathlib` raises where a name is too long, a folder above it may not be entered or a network disk does not answer. Here
all of these mean no, so that a name alone never ends a run; whoever opens the file then says what is wrong with it.
"""

import os
from pathlib import Path

Name = str | os.PathLike[str]


def is_there(name: Name) -> bool:
    """True where something has this name, links followed."""
    return os.path.exists(name)  # noqa: PTH110


def is_folder(name: Name) -> bool:
    """True where a folder has this name, links followed."""
    return os.path.isdir(name)  # noqa: PTH112


def is_file(name: Name) -> bool:
    """True where a regular file has this name, links followed."""
    return os.path.isfile(name)  # noqa: PTH113


def cache_folder(name: str) -> Path:
    """`llava-mini/NAME` below $XDG_CACHE_HOME or ~/.cache; it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava-mini" / name
