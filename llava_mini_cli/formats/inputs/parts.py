"""The three kinds of input -> jobs: files, tables, shards. Each says which columns it has before a job is made."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch.download import download_of
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.fetch.piped import Piped, is_descriptor
from llava_mini_cli.formats.fetch.urls import is_remote, shown
from llava_mini_cli.formats.inputs.folders import Found, IsMedia
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.shards import ShardReader, is_shard, shard_columns
from llava_mini_cli.formats.inputs.table import Table
from llava_mini_cli.formats.inputs.tables import TableJobs
from llava_mini_cli.formats.job import NOTHING_KEPT, Fault, Job, Prompt, Question
from llava_mini_cli.formats.media_root import below
from llava_mini_cli.formats.row import KeptColumn, printable

_OPEN_HERE = Fault("input", "refused", "a list may not name what the run has open; as an argument it may be given")
_NUL = Fault("input", "bad_row", "no file's name holds a NUL byte; a list that is separated by them is read with -0")

KeptColumns = Mapping[str, KeptColumn]  # by their name in the input


class InputPart(Protocol):
    """The media that one argument stands for."""

    @property
    def total(self) -> int | None:
        """The number of media, where it is known."""
        ...

    @property
    def columns(self) -> Sequence[str] | None:
        """The columns of its rows; None where it has no rows."""
        ...

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """The types of some of the columns, by Arrow's names."""
        ...

    def jobs(self, prompts: Sequence[Prompt], kept: KeptColumns, *, may_fetch: bool = True) -> Iterable[Job]:
        """Its jobs, read when they are iterated. Raises `UsageError` at once for a column that is not there.

        Without `may_fetch` iterating raises `UsageError` where a shard would have to be fetched.
        """
        ...


class Files:
    """Media by their names."""

    columns = None

    def __init__(
        self,
        found: Callable[[], Iterable[Found]],
        total: int | None,
        shards: "Shards | None" = None,
        roots: tuple[str, ...] = (),
    ) -> None:
        """Args: shards: reads those that turn up among the files of a list; None: no list names the files."""
        self.total = total
        self._found = found
        self._shards = shards
        self._roots = roots  # folders, one of which a local file must lie below

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """None: files have no columns."""
        return {}

    def jobs(self, prompts: Sequence[Prompt], kept: KeptColumns, *, may_fetch: bool = True) -> Iterable[Job]:
        blank = dict.fromkeys(each.name for each in kept.values()) or NOTHING_KEPT
        shards = self._shards.reader(prompts, kept, may_fetch=may_fetch) if self._shards else None
        return self._jobs(prompts, blank, shards)

    def _jobs(
        self, prompts: Sequence[Prompt], blank: Mapping[str, object], shards: "Callable[[str], Iterator[Job]] | None"
    ) -> Iterator[Job]:
        for path, file_name, problem in self._found():
            fault = _NUL if "\0" in path else problem
            if shards is not None and is_shard(path):
                yield from shards(path)
                continue
            row_id = printable(path)
            questions = tuple(Question(prompt, row_id, blank) for prompt in prompts)
            source = None
            if is_remote(path):
                source = download_of(path, self._roots, is_listed=shards is not None)
            elif is_descriptor(path) and shards is None:
                source = Piped(path)
            elif is_descriptor(path):
                fault = fault or _OPEN_HERE
            yield Job(path, file_name, questions, fault, source and source.item, None, source, roots=self._roots)


class TableRows:
    """A table."""

    total = None  # rows about one medium are one job

    def __init__(self, table: Table, options: InputOptions, origin: str = "") -> None:
        self._table = table
        self._options = options
        self._origin = origin

    @property
    def columns(self) -> Sequence[str]:
        return self._table.columns

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        return self._table.kinds(columns)

    def jobs(self, prompts: Sequence[Prompt], kept: KeptColumns, *, may_fetch: bool = True) -> Iterable[Job]:
        return TableJobs(self._table, prompts, self._options, kept, self._origin)


class Shards:
    """Some tar archives; those that are remote are fetched whole, one after the other."""

    total = None

    def __init__(
        self,
        names: Sequence[str],
        options: InputOptions,
        is_media: IsMedia,
        cache: FileCache,
        *,
        is_listed: bool = False,
    ) -> None:
        """Args: is_listed: a list names them, and not the user himself."""
        self._is_listed = is_listed
        self._names = names
        self._options = options
        self._is_media = is_media
        self._cache = cache
        self._columns: Sequence[str] | None = None

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the first samples of the first shard; none where it cannot be had, which its rows then say."""
        if self._columns is None:
            try:
                with self._on_disk(self._names[0]) as path:
                    self._columns = shard_columns(path)
            except FetchError:
                self._columns = ()
        return self._columns

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """Text: what later samples hold cannot be known."""
        return dict.fromkeys(columns, "string")

    def jobs(self, prompts: Sequence[Prompt], kept: KeptColumns, *, may_fetch: bool = True) -> Iterable[Job]:
        read = self.reader(prompts, kept, may_fetch=may_fetch)
        return chain.from_iterable(map(read, self._names))

    def reader(
        self, prompts: Sequence[Prompt], kept: KeptColumns, *, may_fetch: bool = True
    ) -> Callable[[str], Iterator[Job]]:
        """A function from a shard's name to its jobs. Raises `UsageError` as `jobs` does."""
        shards = ShardReader(prompts, self._options, kept, self._is_media)
        if self._names and self.columns:
            shards.check(self.columns, shown(self._names[0]))

        def read(name: str) -> Iterator[Job]:
            if not may_fetch and is_remote(name):
                raise UsageError(f"'{shown(name)}' is not here yet")
            try:
                with self._on_disk(name) as path:
                    yield from shards.read(path, name)
            except FetchError as error:
                yield shards.failed(name, Fault(error.stage, error.kind, str(error)))

        return read

    @contextmanager
    def _on_disk(self, name: str) -> Generator[str]:
        """The path of a shard, fetched first when it is remote. Raises `FetchError`."""
        if not is_remote(name):
            yield below(name, self._options.roots if self._is_listed else ())
            return
        roots = self._options.roots if self._is_listed else ()
        path = self._cache.get(download_of(name, roots, is_listed=self._is_listed), pinned=True)
        try:
            yield str(path)
        finally:
            self._cache.release(path)
