"""A batch of columns in memory, as Ray Data and Hugging Face datasets hand them out, read as a table of media."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.questions import RowAsker
from llava_mini_cli.formats.inputs.span_columns import SpanColumns
from llava_mini_cli.formats.inputs.table import TableRow
from llava_mini_cli.formats.inputs.tables import media_column
from llava_mini_cli.formats.job import Prompt

BATCH = "batch"  # what messages, and the ids of rows that cannot be used, call it
NUMBER = "number of the row"  # a column that the batch gets, and that holds the id of each row's questions


class BatchTable:
    """The columns of a batch, and one more with the numbers of its rows from 0.

    Raises:
        UsageError: no batch, columns of different lengths, or none that `options` and `prompts` name.
    """

    unit = "row"
    name = BATCH
    path = BATCH
    folder = ""

    def __init__(
        self,
        batch: Any,
        prompts: Sequence[Prompt],
        options: InputOptions,
        as_medium: Callable[[Any], Any],
    ) -> None:
        """Args: as_medium: turns a cell of the column of media into what a table has there: a path, a URL or bytes."""
        self._columns = _columns_of(batch)
        self._as_medium = as_medium
        self.columns = tuple(self._columns)
        lengths = {len(column) for column in self._columns.values()}
        if len(lengths) > 1:
            raise UsageError(f"the columns of the batch have different lengths: {', '.join(map(str, sorted(lengths)))}")
        self.row_count = max(lengths, default=0)
        RowAsker(prompts, options, {}, self.columns, BATCH)  # names what is missing before there is a column more
        SpanColumns(options, self.columns, BATCH)
        self.media = media_column(self, options)
        self.columns = (*self.columns, NUMBER)

    def kinds(self, columns: Sequence[str]) -> Mapping[str, str]:
        """No column is carried on from here: whoever hands out the batch has them."""
        return dict.fromkeys(columns, "string")

    def values(self, column: str) -> Sequence[Any]:
        """The values of a column, as Python has them; an array of pictures stays one."""
        found: Any = self._columns[column]
        if isinstance(found, pa.ChunkedArray | pa.Array):
            return cast("list[Any]", found.to_pylist())
        return found.tolist() if getattr(found, "ndim", 0) == 1 else found

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """The values of each row."""
        numbers = range(self.row_count)
        values = [numbers if column == NUMBER else self.values(column) for column in columns]
        if self.media in columns:
            values[columns.index(self.media)] = [_plain(self._as_medium(cell)) for cell in self.values(self.media)]
        for number, row in enumerate(zip(*values, strict=True)):
            yield number, row, None


def _plain(cell: Any) -> Any:
    """A cell that can be compared with others: a text, bytes or a struct of these; False for what holds no medium."""
    if isinstance(cell, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", cell))
    if isinstance(cell, bytearray):
        return bytes(cell)
    if isinstance(cell, Mapping):
        struct = cast("Mapping[str, Any]", cell)
        return {name: _plain(struct[name]) for name in ("bytes", "path") if name in struct}
    return cell if cell is None or isinstance(cell, str | bytes | float) else False


def _columns_of(batch: Any) -> Mapping[str, Any]:
    """The columns by name."""
    if isinstance(batch, pa.Table):
        return dict(zip(batch.column_names, batch.columns, strict=True))
    if not isinstance(batch, Mapping):
        raise UsageError(f"a batch is a mapping of columns or a pyarrow.Table, not {type(batch).__name__}")
    return cast("Mapping[str, Any]", batch)
