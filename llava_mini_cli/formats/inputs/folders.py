"""Folders and globs -> paths of media, by their names. Opens nothing and knows nothing of decoding."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from glob import glob, has_magic
from pathlib import PurePath
from typing import NamedTuple

from fsspec.utils import glob_translate  # pyright: ignore[reportUnknownVariableType]  # Python's own came with 3.13

from llava_mini_cli.errors import UsageError, first_line
from llava_mini_cli.formats.fetch.download import open_filesystem
from llava_mini_cli.formats.fetch.urls import scrubbed, shown
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Fault
from llava_mini_cli.paths import is_folder

IsMedia = Callable[[str], bool]


class Found(NamedTuple):
    """One file of a folder or of a glob."""

    path: str  # begins with the folder as the user wrote it
    file_name: str  # relative to that folder, with forward slashes
    fault: Fault | None = None  # why it is no medium


def walk(folder: str, options: InputOptions, is_wanted: IsMedia) -> Iterator[Found]:
    """Files below a folder, sorted within each folder; hidden files and folders and links to folders are passed over.

    A folder that cannot be read is given as if it were a medium: it becomes an error row, not a silent gap.
    """
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        inner = "" if parent == folder else _relative(parent, folder) + "/"
        hidden_or_out = [name for name in folders if name.startswith(".") or _matches(inner + name, options.exclude)]
        folders[:] = sorted(set(folders).difference(hidden_or_out)) if options.recursive else []
        for name in sorted(files):
            if not name.startswith(".") and is_wanted(name) and is_chosen(inner + name, options):
                yield Found(os.path.join(parent, name), inner + name)  # noqa: PTH118 - keeps the user's own spelling
    yield from (Found(str(error.filename), _relative(str(error.filename), folder)) for error in unreadable)


def find_glob(pattern: str, options: InputOptions, is_wanted: IsMedia) -> list[Found]:
    """The files that a glob in quotes stands for, sorted; `**` goes to the bottom. Folders themselves are passed over.

    A pattern that ends in a suffix (`*.dat`) takes files by it, another one (`a/*`) takes media.

    Raises:
        UsageError: nothing matches.
    """
    by_suffix = bool(PurePath(pattern).suffix) and not has_magic(PurePath(pattern).suffix)
    root = glob_root(pattern)
    found = [
        Found(path, _relative(path, root))
        for path in sorted(glob(pattern, recursive=True))  # noqa: PTH207 - keeps the user's own spelling
        if (by_suffix or is_wanted(path)) and not is_folder(path)
    ]
    chosen = [each for each in found if is_chosen(each.file_name, options)]
    if not chosen:
        what = "--include and --exclude leave nothing of" if found else "no file matches"
        raise UsageError(f"{what} '{pattern}'")
    return chosen


def find_remote(url: str, options: InputOptions, is_wanted: IsMedia) -> list[Found]:
    """The files of a remote folder (`s3://bucket/photos/`) or glob, sorted.

    Raises:
        UsageError: nothing matches, or the store cannot be asked.
    """
    try:
        filesystem, path = open_filesystem(url)
        root = glob_root(path) if has_magic(path) else path.rstrip("/")
        found: list[str] = (
            filesystem.glob(path)
            if has_magic(path)
            else filesystem.find(path, maxdepth=None if options.recursive else 1)
        )
        names = {name: name.removeprefix(root).lstrip("/") for name in sorted(found)}
        chosen = [
            Found(str(filesystem.unstrip_protocol(name)), relative)
            for name, relative in names.items()
            if is_wanted(name) and is_chosen(relative, options)
        ]
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - each protocol's package has exceptions of its own
        raise UsageError(f"cannot list '{shown(url)}': {scrubbed(first_line(error))}") from None
    if not chosen:
        raise UsageError(f"no images or videos match '{shown(url)}'")
    return chosen


def glob_root(pattern: str) -> str:
    """The folder above the first part of a pattern that is not literal."""
    literal: list[str] = []
    for part in PurePath(pattern).parts[:-1]:
        if has_magic(part):
            break
        literal.append(part)
    return str(PurePath(*literal))


def is_chosen(relative: str, options: InputOptions) -> bool:
    """True if --include and --exclude leave a file in, by its path relative to what the user gave."""
    if options.include and not _matches(relative, options.include):
        return False
    above = relative.split("/") if options.exclude else []  # with the folders that it lies in
    return not any(_matches("/".join(above[: depth + 1]), options.exclude) for depth in range(len(above)))


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    """True if one of the globs matches: the name where it has no slash, otherwise the whole relative path."""
    name = relative.rpartition("/")[2]
    return any(_compiled(glob).match(relative if "/" in glob.rstrip("/") else name) for glob in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_translate(pattern.rstrip("/")))


def _relative(path: str, folder: str) -> str:
    return PurePath(os.path.relpath(path, folder)).as_posix()
