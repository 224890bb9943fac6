"""Arguments -> the jobs of a run. Tells what each argument is: a file, a folder, a glob, a table, a shard or a URL."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from itertools import chain
from pathlib import PurePath

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch.download import Download, check_installed
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.urls import has_listing, is_remote, local_path, shown
from llava_mini_cli.formats.inputs.columns import check_columns, merge_kinds
from llava_mini_cli.formats.inputs.folders import Found, IsMedia, find_glob, find_remote, walk
from llava_mini_cli.formats.inputs.listing import LONGEST_ENTRY, check_listing, read_listing
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.parts import Files, InputPart, Shards, TableRows
from llava_mini_cli.formats.inputs.passed_over import PassedOver
from llava_mini_cli.formats.inputs.questions import Template
from llava_mini_cli.formats.inputs.shards import is_shard
from llava_mini_cli.formats.inputs.tables import is_table, open_table
from llava_mini_cli.formats.job import Fault, Job, Prompt
from llava_mini_cli.formats.media_root import below
from llava_mini_cli.formats.row import KeptColumn
from llava_mini_cli.formats.shard import Shard
from llava_mini_cli.paths import is_file, is_folder

_TOO_LONG = Fault("input", "bad_row", f"an entry of more than {LONGEST_ENTRY} bytes, of which this is the beginning")


@dataclass(frozen=True)
class Inputs:
    """The media and questions of a run."""

    jobs: Iterator[Job]  # read once
    kept: tuple[KeptColumn, ...]  # the input's own columns, which every row carries on
    total: int | None  # media, where the number is known before they are read
    # The jobs from the beginning; None where that costs too much. `UsageError` where they turn out to cost too much.
    again: Callable[[], Iterator[Job]] | None = None

    def share(self, shard: Shard | None) -> "Inputs":
        """The share of the inputs that one of several runs does; all of them where there is one run."""
        if shard is None:
            return self
        total = None if self.total is None else shard.part_of(self.total)
        again = self.again
        return Inputs(shard.share(self.jobs), self.kept, total, again and (lambda: shard.share(again())))


def open_inputs(
    arguments: Sequence[str],
    prompts: Sequence[Prompt],
    is_media: IsMedia,
    cache: FileCache,
    options: InputOptions = InputOptions(),  # noqa: B008 - frozen
    passed_over: PassedOver | None = None,
) -> Inputs:
    """The jobs of what the user named: the arguments in order, then --files-from.

    Tables are opened and folders looked into at once; everything else is read when it is reached.

    Args:
        is_media: tells from a file's name whether a folder's file is meant.
        cache: where remote tables and shards are fetched to.
        passed_over: counts, while the jobs are read, what folders hold and is passed over.

    Raises:
        UsageError: a folder or glob without media, a table that cannot be read, a column that is not there.
    """
    finder = _Finder(is_media, cache, options, passed_over or PassedOver())
    parts = [part for argument in arguments for part in finder.parts(local_path(argument))]
    if options.files_from is not None:
        parts.append(finder.listing(options.files_from))
    with_columns = [part for part in parts if part.columns is not None]
    if options.column_flags and not with_columns:
        raise UsageError(f"{options.column_flags[0]} needs a table or a shard among the inputs")
    if options.has_spans and any(isinstance(part, Shards) for part in parts):
        raise UsageError("--start-column and --end-column are about tables; shards hold whole media")
    there = dict.fromkeys(column for part in with_columns for column in part.columns or ())
    check_columns("--keep-columns", options.keep_columns, tuple(there), "the input")
    kept = merge_kinds(part.kinds(_kept_of(part.columns or (), options)) for part in with_columns)
    plain = _without_columns(prompts) if with_columns and len(with_columns) < len(parts) else prompts

    def jobs(*, may_fetch: bool = True) -> Iterator[Job]:
        asked = [(part, plain if part.columns is None else prompts) for part in parts]
        return chain.from_iterable([part.jobs(prompts, kept, may_fetch=may_fetch) for part, prompts in asked])

    counts = [part.total for part in parts]
    known = [count for count in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    once = any(isinstance(part, Shards) for part in parts) or _is_stream(options.files_from)
    return Inputs(jobs(), tuple(kept.values()), total, None if once else partial(jobs, may_fetch=False))


def _is_stream(listing: str | None) -> bool:
    """True if a list can be read only once."""
    return listing is not None and not is_file(listing)


def _kept_of(columns: Sequence[str], options: InputOptions) -> Sequence[str]:
    return columns if options.keep_all else [column for column in columns if column in options.keep_columns]


def _without_columns(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as files get them when they stand beside a table."""
    for template in map(Template.parse, prompts):
        if template.columns:
            raise UsageError(
                f"the prompt names the column '{template.columns[0]}', and some of the inputs are no tables: "
                f"{template.prompt.text}"
            )
    return [prompt._replace(text=Template.parse(prompt).literals[0]) for prompt in prompts]


class _Finder:
    """Tells files, folders, globs, tables, shards and URLs apart."""

    def __init__(self, is_media: IsMedia, cache: FileCache, options: InputOptions, passed_over: PassedOver) -> None:
        self._is_media = is_media
        self._cache = cache
        self._options = options
        self._passed_over = passed_over

    def parts(self, argument: str) -> Iterator[InputPart]:
        """The parts that one argument stands for: one, or those that a glob matches."""
        if is_remote(argument):
            check_installed(argument)
            if has_listing(argument):
                yield from self._files(find_remote(argument, self._options, self._is_wanted, self._passed_over.add))
            else:
                yield self._one(Found(argument, _name_of(argument)))
        elif is_folder(argument):
            yield self._folder(argument)
        elif has_magic(argument) and "\0" not in argument and not os.path.lexists(argument):
            yield from self._files(find_glob(argument, self._options, self._is_wanted, self._passed_over.add))
        else:
            yield self._one(Found(argument, PurePath(argument).name))

    def listing(self, name: str) -> InputPart:
        """The list of --files-from; folders and shards in it stand for what they hold."""
        check_listing(name)
        telling = self._passed_over.once()

        def found() -> Iterator[Found]:
            tell = telling()
            for entry in map(local_path, read_listing(name, null=self._options.null)):
                if len(entry) > LONGEST_ENTRY:
                    yield Found(entry[:100], entry[:100], _TOO_LONG)
                elif not is_remote(entry) and is_folder(entry) and self._is_allowed(entry):
                    inside = walk(entry, self._options, self._is_media, tell)
                    first = next(inside, Found(entry, _name_of(entry), self._nothing_in(entry)))
                    yield from chain([first], inside)
                else:
                    yield Found(entry, _name_of(entry))

        shards = Shards((), self._options, self._is_media, self._cache, is_listed=True)
        return Files(found, None, shards, self._options.roots)

    def _is_allowed(self, folder: str) -> bool:
        """True for a folder that a list may name; another one is not looked into, and its row says why."""
        try:
            below(folder, self._options.roots)
        except FetchError:
            return False
        return True

    def _files(self, found: Sequence[Found]) -> Iterator[InputPart]:
        """Consecutive media as one part; tables and shards each by themselves."""
        media: list[Found] = []
        for each in found:
            if is_table(each.path) or is_shard(each.path):
                if media:
                    yield Files(media.copy, len(media))
                    media = []
                yield self._one(each)
            else:
                media.append(each)
        if media:
            yield Files(media.copy, len(media))

    def _one(self, found: Found) -> InputPart:
        if is_table(found.path):
            return self._table(found.path)
        if is_shard(found.path):
            return Shards([found.path], self._options, self._is_media, self._cache)
        return Files(lambda: [found], 1)

    def _folder(self, folder: str) -> InputPart:
        """A folder of media, or where it holds none, of Parquet parts or of shards."""
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UsageError(f"cannot read the folder '{folder}': permission denied")
        without_media = PassedOver()
        if next(walk(folder, self._options, self._is_media, without_media.add), None) is not None:
            telling = self._passed_over.once()
            # Where links are of concern, those in the folder lead no further than the folder itself.
            roots = (os.path.realpath(folder), *self._options.roots) if self._options.roots else ()
            return Files(lambda: walk(folder, self._options, self._is_media, telling()), None, roots=roots)
        for suffix in (".parquet", ".tar"):
            paths = [each.path for each in walk(folder, self._options, partial(_ends_with, suffix))]
            if paths and suffix == ".tar":
                return Shards(paths, self._options, self._is_media, self._cache)
            if paths:
                from llava_mini_cli.formats.inputs.parquet_table import ParquetTable

                return TableRows(ParquetTable(paths, folder, _with_slash(folder)), self._options)
        passed_over = f" (passed over: {without_media})" if without_media.counts else ""
        raise UsageError(self._nothing_in(folder).message + passed_over)

    def _nothing_in(self, folder: str) -> Fault:
        """The fault of a folder without media."""
        chosen = " that --include and --exclude leave" if self._options.include or self._options.exclude else ""
        return Fault("input", "empty", f"no images or videos in the folder '{folder}'{chosen}")

    def _table(self, name: str) -> InputPart:
        """A table; one that is remote is fetched now, because its columns must be known."""
        if not is_remote(name):
            folder = os.path.dirname(name)  # noqa: PTH120 - "" where the name has none
            return TableRows(
                open_table(name, name, _with_slash(folder) if folder else "", self._options), self._options
            )
        try:
            path = self._cache.get(Download(name), pinned=True)  # in use until the run ends
        except FetchError as error:
            raise UsageError(f"cannot read the table '{shown(name)}': {error}") from None
        folder = name.partition("?")[0].rpartition("/")[0] + "/"
        return TableRows(open_table(str(path), shown(name), folder, self._options), self._options, name)

    def _is_wanted(self, name: str) -> bool:
        return self._is_media(name) or is_table(name) or is_shard(name)


def _name_of(entry: str) -> str:
    """The file name of an entry: of a relative path all of it, so that equal names in two folders stay apart."""
    if is_remote(entry):
        return Download(entry).file_name
    path = PurePath(entry)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _ends_with(suffix: str, name: str) -> bool:
    return name.lower().endswith(suffix)


def _with_slash(folder: str) -> str:
    return folder if folder.endswith("/") else f"{folder}/"
