"""The stretch of its medium that a row of a table asks about: --start-column, --end-column. Knows no kind of table."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from math import isfinite

from llava_mini_cli.formats.inputs.columns import check_columns, is_empty
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Question, TimeSpan
from llava_mini_cli.formats.timecodes import seconds_of

MOST_OVERLAPS = 32  # stretches of one job that hold the same frame: each of them keeps its tokens


class SpanColumns:
    """Reads the stretch of each row, in a table that has columns for it.

    Raises:
        UsageError: a column is not there.
    """

    def __init__(self, options: InputOptions, columns: Sequence[str] | None, table: str) -> None:
        named = {"--start-column": options.start_column, "--end-column": options.end_column}
        for flag, name in named.items():
            if name is not None and columns is not None:
                check_columns(flag, [name], columns, table)
        self.columns = tuple(name for name in named.values() if name is not None)
        self._has_start, self._has_end = (name is not None for name in named.values())

    def read(self, cells: Sequence[object], number: int) -> TimeSpan | None:
        """The stretch that `columns` of a row say; None if all of these are empty: the whole medium.

        Args:
            number: of the row, among those about its medium.

        Raises:
            ValueError: a cell holds no time, or the stretch does not end after it begins.
        """
        times = [_time(cell, name) for cell, name in zip(cells, self.columns, strict=True)]
        start, end = times[0] if self._has_start else None, times[-1] if self._has_end else None
        if start is None and end is None:
            return None
        if end is not None and end <= (start or 0.0):
            raise ValueError(f"a stretch from {start or 0.0:g} to {end:g} s")
        return TimeSpan(number, start or 0.0, end, "")


def _time(cell: object, column: str) -> float | None:
    """Seconds, from a number, a time such as `1:30` or a length of time; None from an empty cell."""
    if is_empty(cell):
        return None
    seconds = -1.0
    with suppress(ValueError, OverflowError):
        if isinstance(cell, timedelta):
            seconds = cell.total_seconds()
        elif isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
            seconds = float(cell)
        elif isinstance(cell, str):
            seconds = seconds_of(cell.strip())
    if seconds < 0 or not isfinite(seconds):
        raise ValueError(f"column '{column}' holds no time: {str(cell)[:40]}")
    return seconds


def crowds(span: TimeSpan, questions: Sequence[Question]) -> bool:
    """True if a stretch would overlap too many of those that are asked about."""
    start, end = span.start or 0.0, span.end
    others = (one.span for one in questions if one.span is not None)
    overlapping = {
        (one.start, one.end)
        for one in others
        if (end is None or (one.start or 0.0) < end) and (one.end is None or start < one.end)
    }
    return len(overlapping - {(span.start, span.end)}) >= MOST_OVERLAPS
