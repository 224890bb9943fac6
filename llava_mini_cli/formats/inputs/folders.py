"""Folders and globs -> paths of media, by their names. Knows nothing of decoding."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from glob import glob, has_magic
from pathlib import PurePath
from typing import NamedTuple

from fsspec.utils import glob_translate  # pyright: ignore[reportUnknownVariableType]  # Python's own came with 3.13

from llava_mini_cli.errors import UsageError, first_line
from llava_mini_cli.formats.fetch.download import open_filesystem
from llava_mini_cli.formats.fetch.urls import scrubbed, shown
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.passed_over import (
    Tell,
    ignore,
    is_clutter,
    is_like_media,
    is_named,
    is_snapshots,
    is_text,
    suffix_of,
)
from llava_mini_cli.formats.job import Fault
from llava_mini_cli.paths import is_folder

IsMedia = Callable[[str], bool]


class Found(NamedTuple):
    """One file of a folder or of a glob."""

    path: str  # begins with the folder as the user wrote it
    file_name: str  # relative to that folder, with forward slashes
    fault: Fault | None = None  # why it is no medium


def walk(folder: str, options: InputOptions, is_wanted: IsMedia, tell: Tell = ignore) -> Iterator[Found]:
    """Files below a folder, sorted within each folder; hidden files and folders and links to folders are passed over.

    So are folders of thumbnails and of deleted files, unless --include names them. A folder that cannot be read is
    given as if it were a medium: it becomes an error row, not a silent gap.

    Args:
        tell: is told of each file that looks like a medium and is passed over.
    """
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        inner = "" if parent == folder else _relative(parent, folder) + "/"
        entered, clutter = _sorted_out(folders, inner, options)
        for name in sorted(files):
            relative, path = inner + name, os.path.join(parent, name)  # noqa: PTH118 - keeps the user's own spelling
            if not (is_wanted(name) or is_like_media(name)) or not is_chosen(relative, options):
                continue
            is_hidden = name.startswith(".") and not is_named(name, options.include, _matches_part)
            what = f"hidden {suffix_of(name)}" if is_hidden else _what_it_is(name, options, is_wanted, path)
            if what is None:
                yield Found(path, relative)
            else:
                tell(path, what)
        for name in clutter:
            _tell_of(os.path.join(parent, name), inner + name, options, is_wanted, tell)  # noqa: PTH118
        folders[:] = entered
    yield from (Found(str(error.filename), _relative(str(error.filename), folder)) for error in unreadable)


def _sorted_out(folders: list[str], inner: str, options: InputOptions) -> tuple[list[str], list[str]]:
    """The folders to go into, and those that a system keeps copies in."""
    entered: list[str] = []
    clutter: list[str] = []
    for name in sorted(folders) if options.recursive else []:
        if _matches(inner + name, options.exclude):
            continue
        if is_named(name, options.include, _matches_part) or not (name.startswith(".") or is_clutter(name)):
            entered.append(name)
        elif is_clutter(name):
            clutter.append(name)
    return entered, clutter


def _what_it_is(name: str, options: InputOptions, is_wanted: IsMedia, path: str | None = None) -> str | None:
    """What a file is that is passed over although its name looks like a medium's; None for one that counts.

    Args:
        options: whose --include brings back what it names.
        path: where it can be read, if it can.
    """
    if not is_wanted(name):
        return suffix_of(name)
    if path is not None and is_text(path) and not is_named(name, options.include, _matches_part):
        return f"{suffix_of(name)} that are text"
    return None


def _in_clutter(relative: str, options: InputOptions) -> str | None:
    """What a file is that lies in a folder of thumbnails or of deleted files; None for one elsewhere."""
    *folders, name = relative.split("/")
    for folder in folders:
        if is_clutter(folder) and not is_named(folder, options.include, _matches_part):
            return f"{suffix_of(name)} in {folder}"
    return None


def _also_named(options: InputOptions, pattern: str) -> InputOptions:
    """The options as if what a glob names were named by --include."""
    return replace(options, include=(*options.include, *(part for part in PurePath(pattern).parts if part != "*")))


def _tell_of(folder: str, relative: str, options: InputOptions, is_wanted: IsMedia, tell: Tell) -> None:
    """Tells of the media in a folder that is passed over, or of the folder itself where it holds snapshots."""
    kind = relative.rpartition("/")[2]
    if is_snapshots(kind):
        tell(folder, f"{kind} folders")
    if is_snapshots(kind) or os.path.islink(folder):  # noqa: PTH114 - of any name
        return
    for each in walk(folder, InputOptions(), lambda name: is_wanted(name) or is_like_media(name)):
        if suffix_of(each.path) and is_chosen(f"{relative}/{each.file_name}", options):
            tell(each.path, f"{suffix_of(each.path)} in {kind}")


def find_glob(pattern: str, options: InputOptions, is_wanted: IsMedia, tell: Tell = ignore) -> list[Found]:
    """The files that a glob in quotes stands for, sorted; `**` goes to the bottom. Folders themselves are passed over.

    A pattern that ends in a suffix (`*.dat`) takes files by it, another one (`a/*`) takes media. Of what lies in
    folders of thumbnails and of deleted files, only what the pattern or --include names.

    Args:
        tell: is told of each file that looks like a medium and is passed over.

    Raises:
        UsageError: nothing matches.
    """
    by_suffix = bool(PurePath(pattern).suffix) and not has_magic(PurePath(pattern).suffix)
    root = glob_root(pattern)
    named = _also_named(options, pattern)
    found = [
        Found(path, _relative(path, root))
        for path in sorted(glob(pattern, recursive=True))  # noqa: PTH207 - keeps the user's own spelling
        if (by_suffix or is_wanted(path) or is_like_media(path)) and not is_folder(path)
    ]
    left = [each for each in found if is_chosen(each.file_name, options)]
    chosen: list[Found] = []
    for each in left:
        what = _in_clutter(each.file_name, named)
        what = what or (None if by_suffix else _what_it_is(each.path, named, is_wanted, each.path))
        if what is None:
            chosen.append(each)
        else:
            tell(each.path, what)
    if not chosen:
        what = "--include and --exclude leave nothing of" if found and not left else "no file matches"
        raise UsageError(f"{what} '{pattern}'")
    return chosen


def find_remote(url: str, options: InputOptions, is_wanted: IsMedia, tell: Tell = ignore) -> list[Found]:
    """The files of a remote folder (`s3://bucket/photos/`) or glob, sorted; told apart by their names alone.

    Args:
        tell: is told of each file that looks like a medium and is passed over.

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
        named = _also_named(options, path) if has_magic(path) else options
        chosen: list[Found] = []
        for name, relative in names.items():
            if is_chosen(relative, options) and (is_wanted(name) or is_like_media(name)):
                what = _in_clutter(relative, named) or _what_it_is(relative, named, is_wanted)
                if what is None:
                    chosen.append(Found(str(filesystem.unstrip_protocol(name)), relative))
                else:
                    tell(name, what)
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
    if options.include and not _matches(relative, options.include) and not _is_in_named_clutter(relative, options):
        return False
    above = relative.split("/") if options.exclude else []  # with the folders that it lies in
    return not any(_matches("/".join(above[: depth + 1]), options.exclude) for depth in range(len(above)))


def _is_in_named_clutter(relative: str, options: InputOptions) -> bool:
    """True if --include names, as a whole, a folder above that would be passed over without that."""
    above = relative.split("/")[:-1]
    return any(
        is_clutter(name) and _matches("/".join(above[: depth + 1]), options.include) for depth, name in enumerate(above)
    )


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    """True if one of the globs matches: the name where it has no slash, otherwise the whole relative path."""
    name = relative.rpartition("/")[2]
    return any(_matches_part(relative if "/" in glob.rstrip("/") else name, glob) for glob in patterns)


def _matches_part(name: str, pattern: str) -> bool:
    return _compiled(pattern).match(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_translate(pattern.rstrip("/")))


def _relative(path: str, folder: str) -> str:
    return PurePath(os.path.relpath(path, folder)).as_posix()
