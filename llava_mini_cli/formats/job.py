"""The work of a run: one job is one medium with every question about it.

Jobs are named tuples, because a table gives millions of them. Knows nothing of where jobs come from, nor of how
media are opened or answered.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from llava_mini_cli.config import Choices
from llava_mini_cli.formats.source import Source

NOTHING_KEPT: Mapping[str, object] = MappingProxyType({})

# Absolute path or URL, size in bytes, mtime in nanoseconds (of bytes in a table: a digest).
ItemIdentity = tuple[str, int | None, int | None]


class Prompt(NamedTuple):
    """One question, with the name that its rows carry in `prompt_name`. Checked where it is made: `inputs.prompts`."""

    text: str
    name: str | None = None
    choices: Choices | None = None  # one of which is the answer; None: the model writes one


class TimeSpan(NamedTuple):
    """A stretch of a medium that is asked about by itself."""

    number: int  # the row's segment
    start: float | None  # seconds; None: an image
    end: float | None
    note: str  # why this one; the row's warning


class SpanKeys(NamedTuple):
    """The keys of the rows about the spans of one medium, of which only opening it tells how many there are.

    They differ in the number that ends them. The last span's key says that it is the last, by its state: so a later
    run knows from the rows alone whether they are all there.
    """

    stem: str  # the digits of a key that name the work
    state: int  # of the file and the settings
    there: frozenset[int]  # numbers of the spans whose rows are there
    whole: bool  # the row of the whole medium is wanted, too

    def key(self, number: int, *, is_last: bool) -> str:
        """What the row of a span carries as its fingerprint."""
        return f"{self.stem}{self.state ^ is_last:012x}.{number}"


class Question(NamedTuple):
    """One prompt about one medium: one row of the output, or one for each of its spans."""

    prompt: Prompt
    id: str  # what the row carries as its id: the medium as the user named it, or a value of --id-column
    kept: Mapping[str, object] = NOTHING_KEPT  # columns of the input that the row carries on
    key: str = ""  # what the row carries as its fingerprint; given by `pipelines.resume`
    digest: str | None = None  # what the row carries as its digest; given there, too
    spans: SpanKeys | None = None  # given there, too, where spans of every medium are asked about
    span: TimeSpan | None = None  # what a row of a table asks about by itself; None: the job's own, or the whole


# The same as `Prompt(...)` and `Question(...)` in a third of the time, for the rows of tables.
def make_prompt(text: str, name: str | None) -> Prompt:
    return tuple.__new__(Prompt, (text, name, None))  # pyright: ignore[reportUnknownMemberType]


def make_question(prompt: Prompt, row_id: str, kept: Mapping[str, object]) -> Question:
    return tuple.__new__(Question, (prompt, row_id, kept, "", None, None, None))  # pyright: ignore[reportUnknownMemberType]


class Fault(NamedTuple):
    """Why there is no answer: the stage that failed, the kind of error and one line."""

    stage: str  # input, fetch, decode, prompt, generate, output or worker
    kind: str
    message: str


class Job(NamedTuple):
    """One medium and all its questions; they travel together so that the medium is decoded once."""

    path: str  # the medium: a path or a URL
    file_name: str  # relative to the folder that the user gave, or the base name of a file given by itself
    questions: tuple[Question, ...]
    fault: Fault | None = None  # known before anything is opened: a bad row of a table, a download that failed
    item: ItemIdentity | None = None  # what tells the medium from others; None: the file at `path`
    local: str | None = None  # the file that is opened, where it is not at `path`: a fetched copy
    source: Source | None = None  # how that copy is had, while it is not here
    span: TimeSpan | None = None  # None: the whole medium, or what --start and --end leave of it
    content: str | None = None  # what it holds (`formats.content`), where that is known without reading it
    roots: tuple[str, ...] = ()  # folders, one of which the file at `path` must lie below; none: it may lie anywhere
    spans: tuple[
        TimeSpan, ...
    ] = ()  # stretches to ask about one by one, ordered by their starts, where a list has them
    number: int | None = None  # its place among those that were sent to workers; None: it was not

    @property
    def file(self) -> str:
        """The file that is opened."""
        return self.local or self.path

    @property
    def identity(self) -> str:
        """The absolute path or URL of the medium, by which it is told from others; the disk is not looked at."""
        return self.item[0] if self.item else os.path.abspath(self.path)  # noqa: PTH100 - must not follow links


def make_job(
    path: str,
    file_name: str,
    questions: tuple[Question, ...],
    fault: Fault | None,
    item: ItemIdentity | None,
    source: Source | None,
    roots: tuple[str, ...] = (),
) -> Job:
    return tuple.__new__(Job, (path, file_name, questions, fault, item, None, source, None, None, roots, (), None))  # pyright: ignore
