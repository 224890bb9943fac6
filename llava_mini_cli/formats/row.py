"""The one definition of a row: what every output format writes for one prompt about one medium.

Times are seconds, timestamps are UTC, and what is not known is null. An error row has the same columns.
Knows nothing of files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast, get_args, get_type_hints

from llava_mini_cli.formats.job import NOTHING_KEPT

Status = Literal["ok", "error"]
ColumnKind = type[str] | type[int] | type[float] | type[datetime] | type[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt about one medium, answered or failed. The fields but the last four are the columns, in order."""

    id: str  # the medium, as the user named it
    file_name: str  # relative to the folder that was given; the name that Hugging Face datasets read
    media: str | None = None  # image or video; null when it could not be opened
    segment: int | None = None  # number of the span within the medium; null: the whole medium was asked about
    start: float | None = None  # seconds, the span that was asked about; null: from the beginning, or to the end
    end: float | None = None
    prompt_name: str | None = None  # NAME of -p NAME=TEXT
    prompt: str
    text: str | None = None  # the answer
    status: Status
    error: str | None = None  # one line
    error_type: str | None = None  # not_found, truncated, timeout, too_long, out_of_memory, ...
    error_stage: str | None = None  # input, fetch, decode, prompt, generate, output or worker
    warning: str | None = None  # what was odd about a medium that was answered all the same
    finish_reason: str | None = None  # stop, length or repetition
    frame_count: int | None = None  # frames seen
    fps_sampled: float | None = None  # frames sampled a second
    duration_s: float | None = None
    width: int | None = None  # pixels, as displayed
    height: int | None = None
    prompt_tokens: int | None = None
    vision_tokens: int | None = None
    completion_tokens: int | None = None
    p_yes: float | None = None  # for yes-no questions
    choice: str | None = None  # for questions with given choices
    choice_probs: dict[str, float] | None = None
    json: str | None = None  # for answers held to a schema
    model: str
    model_revision: str | None = None  # commit of a hub id
    fingerprint: str  # digest of the item, the prompt, the model and the settings
    digest: str | None = None  # of what the file holds and of the question, by which the row is known when it moved
    created_at: datetime  # UTC
    more: Mapping[str, object] = field(default_factory=lambda: NOTHING_KEPT)  # columns that were asked for
    kept: Mapping[str, object] = field(default_factory=lambda: NOTHING_KEPT)  # the input's own
    source: str = ""  # path or URL of the medium, for outputs that write beside it; no column
    spans: int = 1  # rows that the question has about the spans of its medium; no column

    def as_dict(self) -> dict[str, Any]:
        """The columns by name, in order: the fixed ones, those that were asked for, then those kept from the input."""
        return {column.name: getattr(self, column.name) for column in COLUMNS} | dict(self.more) | dict(self.kept)


class KeptColumn(NamedTuple):
    """One column of the input that rows carry behind their own."""

    name: str
    kind: str  # an Arrow type by its name, such as string, int64 or timestamp[us]


PARTS = "parts"  # kind of the column whose values are lists of a medium's parts
EVIDENCE_COLUMNS = (  # behind all others, where evidence was asked for
    KeptColumn("evidence", PARTS),  # the parts that carried the answer, the weightiest first
    KeptColumn("p_answer", "float64"),  # likelihood of the answer
    KeptColumn("p_blind", "float64"),  # and to the same prompt with no medium
)
PICTURED = "pictured parts"  # the same, each with a JPEG
THUMBNAIL = "thumbnail"  # behind these, where small pictures were asked for: a JPEG, or the path of one


def with_thumbnail(row: Row, picture: bytes | str | None) -> Row:
    """A row with a small picture, or the path of one; None where there is none."""
    return replace(row, kept={**row.kept, THUMBNAIL: picture})


def with_part_thumbnails(row: Row, shown: Callable[[Mapping[str, Any]], bytes | str | None]) -> Row:
    """A row with evidence, of which each part has a small picture, or the path of one; None where there is none."""
    parts: list[dict[str, Any]] = cast("Any", row.kept["evidence"])
    return replace(row, kept={**row.kept, "evidence": [{**part, THUMBNAIL: shown(part)} for part in parts]})


class Column(NamedTuple):
    """One column of the row: its name, the type of its values and whether they may be null."""

    name: str
    kind: ColumnKind
    nullable: bool


def _column(name: str, hint: Any) -> Column:
    if hint == Status:
        return Column(name, str, nullable=False)
    options: tuple[Any, ...] = get_args(hint)
    if type(None) not in options:
        return Column(name, hint, nullable=False)
    return Column(name, options[0], nullable=True)


def _columns() -> tuple[Column, ...]:
    hints = get_type_hints(Row)
    return tuple(
        _column(field.name, hints[field.name])
        for field in fields(Row)
        if field.name not in ("more", "kept", "source", "spans")
    )


COLUMNS = _columns()
EVENT_COLUMNS = (  # further ones, of rows that say when something holds
    KeptColumn("p_mean", "double"),  # probability of yes, the mean over what was looked at
    KeptColumn("p_peak", "double"),  # the highest
    KeptColumn("peak_at", "double"),  # seconds, where it is
)
TRACK_COLUMNS = (KeptColumn("time", "double"),)  # seconds, that a probability is about; beside `p_yes`


def printable(text: str) -> str:
    """`text` as valid UTF-8: the bytes of a file name that are not are written as `\\xNN`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as JSON may hold it, stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """`text` as valid UTF-8, with runs of white space as one space."""
    return " ".join(printable(text).split())
