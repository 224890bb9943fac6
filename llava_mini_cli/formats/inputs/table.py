"""The protocol of every kind of table: its columns, and its rows one by one, good or bad."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from llava_mini_cli.errors import UsageError, first_line

TableRow = tuple[int, Sequence[object], str | None]  # number of the row or line, values, why there are none
MOST_COLUMNS = 10_000


class Table(Protocol):
    """A table of media."""

    @property
    def name(self) -> str:
        """The table's name as the user gave it."""
        ...

    @property
    def path(self) -> str:
        """The path of the table on this disk."""
        ...

    @property
    def folder(self) -> str:
        """The folder or URL at which relative media begin, with its slash; or nothing."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        ...

    @property
    def unit(self) -> str:
        """The unit that the numbers of its rows count: line or row."""
        ...

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """The types of some columns, by Arrow's names."""
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Each row's values of `columns`, in bounded memory. Raises `OSError` where the file cannot be read on."""
        ...


def reading_error(name: str, error: Exception) -> str:
    """One line about a table that cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return f"cannot read the table '{name}': {reason[:1].lower()}{reason[1:]}"


def check_width(columns: Collection[str], name: str) -> None:
    """Raises `UsageError` where a table has more columns than anybody's."""
    if len(columns) > MOST_COLUMNS:
        raise UsageError(f"the table '{name}' has more than {MOST_COLUMNS} columns")
