"""What a benchmark found: facts about the machine, and tables with the charts that show them. Knows no torch.

One table is one list of records, which a terminal, JSON, Markdown and a page all show.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Value = str | int | float | None
Record = Mapping[str, Value]


@dataclass(frozen=True)
class Column:
    """A column by the key that it has in JSON."""

    key: str
    title: str
    digits: int = 2  # behind the point
    grouped: bool = True  # thousands are set apart


@dataclass(frozen=True)
class Chart:
    """A picture of some columns of a table."""

    kind: Literal["stacked", "bars", "lines"]
    title: str
    x: str
    y: str
    places: Sequence[str | float]  # names of groups of bars, or where points of lines lie
    series: Mapping[str, Sequence[float | None]]  # a value for each place
    marks: Mapping[str, float] = field(default_factory=dict[str, float])  # level lines


@dataclass(frozen=True)
class Table:
    """Records, what they are of, and what a reader has to know."""

    name: str
    title: str
    columns: Sequence[Column]
    records: Sequence[Record]
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()

    def cells(self) -> Iterator[list[str]]:
        """The records as texts, a cell for each column."""
        for record in self.records:
            yield [shown(record.get(column.key), column) for column in self.columns]

    def is_number(self, column: Column) -> bool:
        """True of a column whose values are numbers, as far as there are any."""
        values = [record.get(column.key) for record in self.records]
        return any(isinstance(value, int | float) for value in values)

    def whole(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        columns = [{"key": column.key, "title": column.title} for column in self.columns]
        rows = [dict(record) for record in self.records]
        return {"name": self.name, "title": self.title, "columns": columns, "rows": rows, "notes": list(self.notes)}


@dataclass(frozen=True)
class Report:
    """A whole run."""

    facts: Mapping[str, Value]
    tables: Sequence[Table]

    def whole(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return {"facts": dict(self.facts), "tables": [table.whole() for table in self.tables]}


def shown(value: Value, column: Column) -> str:
    """A value for a person."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    digits = column.digits if isinstance(value, float) else 0
    return f"{value:,.{digits}f}" if column.grouped else f"{value:.{digits}f}"
