"""Rows as columns of a batch, beside the columns that it came with."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.outputs.companion import RunInfo
from llava_mini_cli.formats.outputs.parquet_schema import arrow_schema, table_of
from llava_mini_cli.formats.row import Row

_SAY_WHICH = ("id", "file_name", "media")  # columns of ours that give way to those of the batch


class BatchColumns:
    """The columns of answers: a row's own, those of a schema and of evidence, each with a prefix to its name."""

    def __init__(self, run: RunInfo, prefix: str = "") -> None:
        self._schema: Any = arrow_schema(run, "").remove_metadata()
        self._prefix = prefix

    def beside(self, batch: Any, places: Sequence[int], rows: Sequence[Row]) -> Any:
        """Rows beside the rows of the batch that they are about, as a batch of the same kind.

        Args:
            batch: a `pyarrow.Table`, which gets typed columns, or a mapping of sequences, which gets lists.
            places: for each row the number of the batch's row; the batch is given back as it is where they are all.

        Raises:
            UsageError: the batch has a column of a name of ours already, other than those that say which medium it is.
        """
        taken = batch.column_names if isinstance(batch, pa.Table) else batch
        names = [name for name in self._schema.names if name not in _SAY_WHICH or f"{self._prefix}{name}" not in taken]
        for name in names:
            if f"{self._prefix}{name}" in taken:
                raise UsageError(f"the batch has a column '{self._prefix}{name}' already; give its answers a `prefix`")
        if isinstance(batch, pa.Table):
            return self._typed(batch, places, rows, names)
        is_whole = _are_all(places, max((len(column) for column in batch.values()), default=0))
        values = [row.as_dict() for row in rows]
        return {
            **{name: column if is_whole else _picked(column, places) for name, column in batch.items()},
            **{f"{self._prefix}{name}": [one.get(name) for one in values] for name in names},
        }

    def _typed(self, batch: Any, places: Sequence[int], rows: Sequence[Row], names: Sequence[str]) -> Any:
        found = batch if _are_all(places, batch.num_rows) else batch.take(pa.array(places, pa.int64()))
        answers: Any = table_of(rows, self._schema)
        for name in names:
            field = answers.schema.field(name).with_name(f"{self._prefix}{name}")
            found = found.append_column(field, answers.column(name))
        return found


def _are_all(places: Sequence[int], rows: int) -> bool:
    """True if each of so many rows stands in its place once, which a single row of many tells at once."""
    return len(places) == rows and all(place == row for row, place in enumerate(places))


def _picked(column: Any, places: Sequence[int]) -> Any:
    """Some of the values of a column: of an array an array, of anything else a list."""
    if hasattr(column, "take") and hasattr(column, "dtype"):
        return column[list(places)]
    return [column[place] for place in places]
