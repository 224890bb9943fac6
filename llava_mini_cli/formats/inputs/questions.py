"""The questions of one row of a table: prompts with `{column}` in them, and columns that hold questions.

`{{` and `}}` stand for braces. Knows nothing of the kind of table.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.columns import as_kind, as_text, check_columns, is_empty
from llava_mini_cli.formats.inputs.named_text import encodes
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import NOTHING_KEPT, Prompt, Question, make_prompt, make_question
from llava_mini_cli.formats.row import KeptColumn, printable

LONGEST_QUESTION = 1_000_000  # characters, where a table or a shard gives some of them; no model takes as many
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

Values = Sequence[object]  # one row: the values of `RowAsker.columns`, in that order


class Template(NamedTuple):
    """A prompt in pieces: literal texts, one more than there are columns, and the columns between them."""

    prompt: Prompt  # as written
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, prompt: Prompt) -> "Template":
        """Raises `UsageError` for a brace that opens or closes nothing."""
        literals, columns, begin = [""], list[str](), 0
        for match in _PARTS.finditer(prompt.text):
            literals[-1] += prompt.text[begin : match.start()]
            begin = match.end()
            if match[0] in ("{{", "}}"):
                literals[-1] += match[0][0]
            elif match[1] is None:
                raise UsageError(f"a single '{match[0]}' in the prompt; {match[0] * 2} stands for it: {prompt.text}")
            else:
                columns.append(match[1])
                literals.append("")
        literals[-1] += prompt.text[begin:]
        return cls(prompt, tuple(literals), tuple(columns))

    def fill(self, values: Sequence[object]) -> str:
        """The text with the values of its columns."""
        filled = [text + as_text(value) for text, value in zip(self.literals[:-1], values, strict=True)]
        return "".join(filled) + self.literals[-1]


class Unasked(NamedTuple):
    """A question that a row does not give, and why."""

    question: Question
    why: str


class RowAsker:
    """Turns rows of one table into questions. A cell of --prompt-column that is empty asks nothing.

    Raises:
        UsageError: a prompt or a flag names a column that is not there.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        options: InputOptions,
        kept: Mapping[str, KeptColumn],
        columns: Sequence[str] | None,  # None: not known beforehand
        table: str,
    ) -> None:
        templates = [Template.parse(prompt) for prompt in prompts]
        ids = [options.id_column] if options.id_column else []
        if columns is not None:
            for template in templates:
                check_columns("the prompt", template.columns, columns, table)
            check_columns("--prompt-column", options.prompt_columns, columns, table)
            check_columns("--id-column", ids, columns, table)
        there = None if columns is None else frozenset(columns)
        here = [name for name in kept if there is None or name in there]
        named = [name for template in templates for name in template.columns]
        self.columns = tuple(dict.fromkeys([*named, *options.prompt_columns, *ids, *here]))  # of each row, for `ask`
        place = {name: position for position, name in enumerate(self.columns)}
        self._constant = [t.prompt._replace(text=t.literals[0]) for t in templates if not t.columns]
        self._templates = [(t, [place[name] for name in t.columns]) for t in templates if t.columns]
        self._cells = [(printable(name), place[name]) for name in options.prompt_columns]
        self._id = place[options.id_column] if options.id_column else None
        self._kept = [(kept[name].name, kept[name].kind, place[name]) for name in here]
        self._blank: Mapping[str, object] = dict.fromkeys(each.name for each in kept.values()) or NOTHING_KEPT

    def ask(self, values: Values, row_id: str, asked: list[Question]) -> list[Unasked]:
        """Adds the row's questions to `asked`; returns those that it should give and does not.

        `row_id` is the id where no column gives it.
        """
        kept = self._blank
        if self._kept:
            kept = {**kept, **{name: as_kind(values[place], kind) for name, kind, place in self._kept}}
        if self._id is not None:
            if is_empty(values[self._id]):
                return [Unasked(Question(Prompt(""), row_id, kept), f"nothing in column '{self.columns[self._id]}'")]
            row_id = as_text(values[self._id])
        before = len(asked)
        for prompt in self._constant:
            asked.append(make_question(prompt, row_id, kept))
        unasked: list[Unasked] = []
        if self._templates:
            unasked.extend(self._fill(values, row_id, kept, asked))
        for name, place in self._cells:
            cell = values[place]
            if cell.__class__ is str and cell.isascii() and len(cell) <= LONGEST_QUESTION and not is_empty(cell):  # pyright: ignore
                asked.append(make_question(make_prompt(cell, name), row_id, kept))  # pyright: ignore
            elif not is_empty(cell):
                unasked.extend(self._read(cell, name, row_id, kept, asked))
        if len(asked) == before and not unasked:
            names = ", ".join(f"'{name}'" for name, _ in self._cells)
            unasked.append(Unasked(Question(Prompt(""), row_id, kept), f"no question in column {names}"))
        return unasked

    def _fill(
        self, values: Values, row_id: str, kept: Mapping[str, object], asked: list[Question]
    ) -> Iterator[Unasked]:
        """The prompts with columns in them."""
        for template, places in self._templates:
            given = [values[place] for place in places]
            why = next(filter(None, map(_trouble, given, template.columns)), None)
            text = template.fill(given) if why is None else ""
            why = why or _too_long(text)
            if why is None:
                asked.append(Question(template.prompt._replace(text=text), row_id, kept))
            else:
                yield Unasked(Question(template.prompt, row_id, kept), why)

    def _read(
        self, cell: object, name: str, row_id: str, kept: Mapping[str, object], asked: list[Question]
    ) -> Iterator[Unasked]:
        """A cell that holds a question in other letters than ASCII, or something else than text."""
        text = as_text(cell)
        why = _trouble(cell, name) or _too_long(text)
        if why is None:
            asked.append(Question(Prompt(text, name), row_id, kept))
        else:
            yield Unasked(Question(Prompt(text[:LONGEST_QUESTION], name), row_id, kept), why)


def _too_long(text: str) -> str | None:
    return f"a question of {len(text)} characters" if len(text) > LONGEST_QUESTION else None


def _trouble(value: object, column: str) -> str | None:
    """Why a cell cannot be part of a question; None where it can."""
    if is_empty(value):
        return f"nothing in column '{column}'"
    if isinstance(value, str) and not value.isascii() and not encodes(value):
        return f"column '{column}' is not valid UTF-8"
    return None
