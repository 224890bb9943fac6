"""Tables of media -> jobs: consecutive rows about one medium become one job, a bad row becomes a job with a fault.

Opens no medium. Knows the kinds of table by their suffix; each lives in its own module.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePath

from llava_mini_cli.errors import PASSING_KINDS, UsageError, kind_of
from llava_mini_cli.formats.fetch.download import Download, download_of
from llava_mini_cli.formats.fetch.embedded import Embedded
from llava_mini_cli.formats.fetch.urls import is_remote, local_path, plain_name, without_signature
from llava_mini_cli.formats.inputs.columns import as_mapping, check_columns, is_empty, listed
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.questions import RowAsker
from llava_mini_cli.formats.inputs.span_columns import SpanColumns, crowds
from llava_mini_cli.formats.inputs.table import Table, reading_error
from llava_mini_cli.formats.job import Fault, ItemIdentity, Job, Prompt, Question, TimeSpan, make_job
from llava_mini_cli.formats.row import KeptColumn, printable
from llava_mini_cli.formats.source import Source

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
MEDIA_COLUMNS = ("path", "file", "file_name", "video", "image", "url", "media")
_ORDINARY = re.compile(r"[!-.0-9;-~][ -9;-~]*")  # a relative path in ASCII, and no URL
MOST_ROWS = 256  # rows about one medium that become one job

# Path, file name, what tells it from others, how it is had.
Medium = tuple[str, str, ItemIdentity | None, Source | None]


def is_table(name: str) -> bool:
    """True if a name has the suffix of a table and can be the name of a file."""
    return "\0" not in name and plain_name(name).lower().endswith(SUFFIXES)


def open_table(path: str, name: str, folder: str, options: InputOptions) -> Table:
    """The table in a file. `name` is for messages; relative media begin at `folder`. Raises `UsageError`."""
    suffix = PurePath(path).suffix.lower()
    if suffix == ".parquet":
        from llava_mini_cli.formats.inputs.parquet_table import ParquetTable

        return ParquetTable([path], name, folder)
    if suffix in (".csv", ".tsv"):
        from llava_mini_cli.formats.inputs.csv_table import CsvTable

        return CsvTable(path, name, folder)
    from llava_mini_cli.formats.inputs.jsonl_table import JsonlTable

    return JsonlTable(path, name, folder, look_at_all=bool(options.keep_columns) or options.keep_all)


class TableJobs:
    """The jobs of one table. `origin` is its path or its whole URL; the name of a remote one leaves out the query.

    Raises:
        UsageError: a column that is named is not there, or none is known to hold media.
    """

    def __init__(
        self,
        table: Table,
        prompts: Sequence[Prompt],
        options: InputOptions,
        kept: Mapping[str, KeptColumn],
        origin: str = "",
    ) -> None:
        self._table = table
        origin = origin or table.name
        self._known_as = without_signature(origin) if is_remote(origin) else origin  # rows carry it: no password
        self._asker = RowAsker(prompts, options, kept, table.columns, table.name)
        self._media = media_column(table, options)
        self._spans = SpanColumns(options, table.columns, table.name) if options.has_spans else None
        self._is_local = "://" not in table.folder
        self._roots = options.roots
        self._blank: Mapping[str, object] = dict.fromkeys(each.name for each in kept.values())

    def __iter__(self) -> Iterator[Job]:
        table, asker = self._table, self._asker
        last: object = None  # what the medium's cell held in the row before
        medium: Medium | None = None
        questions: list[Question] = []
        number = rows_about_it = 0
        columns = () if self._spans is None else self._spans.columns
        try:
            for number, values, problem in table.rows((*asker.columns, *columns, self._media)):
                cell = None if problem is not None else values[-1]
                rows_about_it = rows_about_it + 1 if cell == last else 1
                if medium is None or cell != last or len(questions) >= MOST_ROWS:
                    if questions and medium is not None:
                        yield self._job(medium, questions)
                        questions = []
                    medium, last = None if problem is not None else self._medium(cell, number), cell
                if medium is None:
                    yield self._bad_row(number, problem or self._why_no_medium(cell))
                    continue
                row_id = medium[0] if medium[0].isascii() else printable(medium[0])
                before = len(questions)
                for unasked in asker.ask(values, row_id, questions):
                    fault = Fault("input", "bad_row", f"{self._place(number)}: {unasked.why}")
                    yield self._job(medium, [unasked.question], fault)
                if self._spans is not None:
                    stretch = partial(self._spans.read, values[len(asker.columns) : -1], rows_about_it)
                    yield from self._with_stretch(stretch, medium, questions, before, number)
        except OSError as error:
            kind = kind_of(error)
            yield self._bad_row(
                number + 1, reading_error(table.name, error), kind if kind in PASSING_KINDS else "bad_row"
            )
        if questions and medium is not None:
            yield self._job(medium, questions)

    def _with_stretch(
        self, read: Callable[[], TimeSpan | None], medium: Medium, questions: list[Question], before: int, number: int
    ) -> Iterator[Job]:
        """Gives the questions of a row, those from `before` on, the stretch that it asks about."""
        asked = questions[before:]
        del questions[before:]
        try:
            span = read()
        except ValueError as error:
            if asked:
                yield self._job(medium, asked, Fault("input", "bad_row", f"{self._place(number)}: {error}"))
            return
        if questions and span is not None and crowds(span, questions):
            yield self._job(medium, questions)
            questions.clear()
        questions += asked if span is None else [question._replace(span=span) for question in asked]

    def _job(self, medium: Medium, questions: list[Question], fault: Fault | None = None) -> Job:
        path, file_name, item, source = medium
        return make_job(path, file_name, tuple(questions), fault, item, source, self._roots)

    def _medium(self, cell: object, number: int) -> "Medium | None":
        """The medium of a cell; None where the cell holds none."""
        if not isinstance(cell, str):
            return self._embedded(cell, number)
        folder = self._table.folder
        if self._is_local and _ORDINARY.fullmatch(cell):
            return folder + cell, cell, None, None
        if is_empty(cell) or "\0" in cell or not _is_path(cell):
            return None
        if is_remote(cell):
            return self._remote(cell, Download(cell).file_name)
        path = local_path(cell)
        if "\0" in path:  # of a URL with %00
            return None
        if PurePath(path).is_absolute():
            return path, PurePath(path).name, None, None
        return (folder + path, path, None, None) if self._is_local else self._remote(folder + path, path)

    def _remote(self, url: str, file_name: str) -> Medium:
        source = download_of(url, self._roots)
        return url, file_name, source.item, source

    def _embedded(self, cell: object, number: int) -> "Medium | None":
        """A picture or video whose bytes are in the table itself, as Hugging Face datasets store them."""
        struct = as_mapping(cell)
        data = struct.get("bytes") if struct is not None else cell
        name = struct.get("path") if struct is not None else None
        if not isinstance(data, bytes):
            return self._medium(name, number) if isinstance(name, str) else None
        file_name = PurePath(name).name if isinstance(name, str) else f"{number}"
        place = f"{self._known_as}/{number}/{file_name}" if name else f"{self._known_as}/{number}"
        item = (f"{self._absolute()}/{number}", len(data), _digest(data))
        return place, file_name, item, Embedded(place, PurePath(file_name).suffix, data)

    def _absolute(self) -> str:
        """The path or URL of the table, for the identities of the media that lie in it."""
        name = self._known_as
        return name if is_remote(name) else os.path.abspath(name)  # noqa: PTH100 - must not follow links

    def _why_no_medium(self, cell: object) -> str:
        if is_empty(cell):
            return f"nothing in column '{self._media}'"
        return f"column '{self._media}' holds no path"

    def _bad_row(self, number: int, why: str, kind: str = "bad_row") -> Job:
        question = Question(Prompt(""), f"{printable(self._known_as)}:{number}", self._blank)
        fault = Fault("input", kind, f"{self._place(number)}: {why}")
        item = (f"{self._absolute()}:{number}", None, None)
        return Job(self._known_as, printable(Path(self._table.name).name), (question,), fault, item)

    def _place(self, number: int) -> str:
        return f"{printable(self._table.name)}, {self._table.unit} {number}"


def _digest(data: bytes) -> int:
    """A number in place of a file's time of change: other bytes of the same size are another state of the medium.

    48 bits are what a key has for the state, and a time that every archive can store.
    """
    return int.from_bytes(blake2b(data, digest_size=6).digest(), "big")


def media_column(table: Table, options: InputOptions) -> str:
    """The column that holds the media. Raises `UsageError` where it is not there, or none has a known name."""
    if options.column is not None:
        check_columns("--column", [options.column], table.columns, table.name)
        return options.column
    for name in MEDIA_COLUMNS:
        if name in table.columns:
            return name
    if not table.columns:  # no rows either
        return MEDIA_COLUMNS[0]
    raise UsageError(
        f"which column of '{table.name}' holds the media? Name it with --column; there are: {listed(table.columns)}"
    )


def _is_path(text: str) -> bool:
    """True if a text with other letters than ASCII can be the name of a file."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
