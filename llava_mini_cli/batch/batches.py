"""What a batch of columns asks, and the batch that its rows make: its own columns with those of the answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llava_mini_cli.config import RunLimits
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.batch_table import BATCH, NUMBER, BatchTable
from llava_mini_cli.formats.inputs.columns import as_text
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.prompts import checked_prompt, unique_prompts
from llava_mini_cli.formats.inputs.tables import TableJobs
from llava_mini_cli.formats.job import Job, Prompt
from llava_mini_cli.formats.outputs.batch_columns import BatchColumns
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.row import Row, printable
from llava_mini_cli.media.picture_file import picture_file
from llava_mini_cli.pipelines.resume import left_to_do
from llava_mini_cli.pipelines.schema_needs import check_grammars
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally


@dataclass(frozen=True)
class Asking:
    """How batches are read and what their media are asked; the same for all batches.

    Raises:
        UsageError: nothing is asked, or an option makes no sense for a batch.
    """

    options: RunOptions
    prompts: Sequence[Prompt | str] = ()
    inputs: InputOptions = field(default_factory=InputOptions)
    prefix: str = ""

    def __post_init__(self) -> None:
        made = [one if isinstance(one, Prompt) else checked_prompt(one) for one in self.prompts]
        if not made and not self.inputs.prompt_columns:
            if self.options.schema is None:
                raise UsageError("there is no question: give `prompts`, or `inputs` with `prompt_columns`")
            made = [Prompt("")]
        object.__setattr__(self, "prompts", unique_prompts(made))
        if self.options.events is not None:
            raise UsageError("a batch cannot be asked when something holds; `llava-mini when` does that")
        if self.options.limits != RunLimits():
            raise UsageError("every row of a batch is answered: leave out `limits`")
        if self.inputs.keep_columns or self.inputs.keep_all:
            raise UsageError("every column of a batch is kept: leave out `keep_columns` and `keep_all`")
        if self.options.schema is not None and self.options.schema.grammars:
            check_grammars(self.options.schema)

    def read(self, batch: Any) -> "AskedBatch":
        """The questions of a batch, as jobs. Raises `UsageError` where its columns do not fit."""
        return AskedBatch(self, batch)


class AskedBatch:
    """The jobs of a batch; the questions of a batch's row have its number as their id, and theirs among them."""

    def __init__(self, asking: Asking, batch: Any) -> None:
        self._batch = batch
        self._columns = BatchColumns(asking.options.run_info(), asking.prefix)
        prompts = tuple(one for one in asking.prompts if isinstance(one, Prompt))
        table = BatchTable(batch, prompts, asking.inputs, picture_file)
        self.joined([])  # names a column that would be there twice before anything is asked
        self._ids = table.values(asking.inputs.id_column) if asking.inputs.id_column else None
        found = TableJobs(table, prompts, replace(asking.inputs, id_column=NUMBER), {})
        keys = asking.options.row_keys()
        self.jobs = list(left_to_do(_numbered(found), keys, Done(), Tally(), asking.options.spans))

    def joined(self, rows: Sequence[Row]) -> Any:
        """The batch's columns with those of its rows' answers, in the order of the batch's rows."""
        ordered = sorted(rows, key=lambda row: (*_place(row), row.segment or 0))
        numbers = [_place(row)[0] for row in ordered]
        named = [replace(row, id=self._id(row, number)) for row, number in zip(ordered, numbers, strict=True)]
        return self._columns.beside(self._batch, numbers, named)

    def _id(self, row: Row, number: int) -> str:
        if self._ids is not None:
            return as_text(self._ids[number])
        return f"{BATCH}:{number}" if row.source == BATCH and row.error_type == "bad_row" else printable(row.source)


def _numbered(jobs: TableJobs) -> Iterator[Job]:
    """The jobs with ids such as 17.0, 17.1: the batch's row, and the question among those of that row."""
    asked: Counter[str] = Counter()
    for job in jobs:
        questions = list(job.questions)
        for index, question in enumerate(questions):
            number = question.id.rpartition(":")[2]  # a row that cannot be used says `batch:17`
            questions[index] = question._replace(id=f"{number}.{asked[number]}")
            asked[number] += 1
        yield job._replace(questions=tuple(questions))


def _place(row: Row) -> tuple[int, int]:
    number, _, question = row.id.partition(".")
    return int(number), int(question)
