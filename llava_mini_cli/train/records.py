"""LLaVA's own training data: a JSON array (or JSON lines) of records with a medium and a conversation.

    {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                    {"from": "gpt", "value": "A cat."}]}

Everything that can be wrong with a record is found here, before training starts; media are only looked at, and
read when their turn comes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError, UsageError
from llava_mini_cli.media.clip import MediaKind
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.model.prompt_layouts import IMAGE

SPEAKERS = {"human": True, "user": True, "gpt": False, "assistant": False}  # True: asks; False: answers


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str  # without the `<image>` that stands for the medium
    answer: str


@dataclass(frozen=True)
class Record:
    """One checked record."""

    number: int  # its place in the file, from 1
    kind: MediaKind | None  # None: text alone
    path: Path | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be trained on, and why."""

    file: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: record {self.number}: {self.reason}"


@dataclass(frozen=True)
class RecordSet:
    """The records of a data file, good and bad."""

    file: Path
    good: tuple[Record, ...]
    bad: tuple[BadRecord, ...]

    def with_media(self, why: str) -> "RecordSet":
        """The set in which records of text alone are bad, for the reason `why`."""
        text = tuple(BadRecord(self.file, record.number, why) for record in self.good if record.path is None)
        bad = sorted((*self.bad, *text), key=lambda record: record.number)
        return RecordSet(self.file, tuple(record for record in self.good if record.path is not None), tuple(bad))


class _UnusableRecordError(Exception):
    """A record cannot be used; the text says why."""


def read_records(file: Path, media_root: Path | None = None, *, check_media: bool = True) -> RecordSet:
    """Reads and checks a data file.

    Args:
        file: `.json` (one array) or `.jsonl` (one record a line).
        media_root: directory of the media; None: that of the file.
        check_media: open every medium and decode its first frame.

    Raises:
        UsageError: the file cannot be read, or is no JSON array; the text names the line.
    """
    root = file.parent if media_root is None else media_root
    good: list[Record] = []
    bad: list[BadRecord] = []
    seen: dict[Path, str | None] = {}
    for number, value in enumerate(_values(file), start=1):
        try:
            record = _record(number, value, root)
            if check_media and record.path is not None:
                if record.path not in seen:
                    seen[record.path] = medium_trouble(record.path)
                trouble = seen[record.path]
                if trouble is not None:
                    raise _UnusableRecordError(trouble)
            good.append(record)
        except _UnusableRecordError as why:
            bad.append(BadRecord(file, number, str(why)))
    return RecordSet(file, tuple(good), tuple(bad))


def medium_trouble(path: Path) -> str | None:
    """The reason why a medium cannot be used, or None. Decodes its first frame."""
    try:
        with open_clip(path, SamplingOptions(max_frames=1)) as clip:
            for _ in clip:
                return None
    except MediaError as error:
        return f"{path}: {error}"
    return f"{path}: no frame"


def _values(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--data {file}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--data {file}: not UTF-8 text") from error
    if file.suffix.lower() == ".jsonl":
        return [_line_value(line) for line in text.split("\n") if line.strip()]
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        number = _records_before(text[: error.pos]) + 1
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"--data {file}: record {number}: not JSON at {where}: {error.msg}") from error
    if not isinstance(value, list):
        raise UsageError(f"--data {file}: not a JSON array of records")
    return cast(list[Any], value)


def _line_value(line: str) -> Any:
    """A line's record, or the error of a line that is none: other lines can still be used."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def _records_before(text: str) -> int:
    """The number of whole records of a JSON array before its first fault."""
    decoder = json.JSONDecoder()
    at, count = text.find("[") + 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        try:
            _, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return count
        count += 1


def _record(number: int, value: Any, root: Path) -> Record:
    if isinstance(value, json.JSONDecodeError):
        raise _UnusableRecordError(f"not JSON at column {value.colno}: {value.msg}")
    if not isinstance(value, dict):
        raise _UnusableRecordError("not a JSON object")
    fields = cast(dict[str, Any], value)
    kind, path = _medium(fields, root)
    turns = _turns(fields.get("conversations"))
    return Record(number, kind, path, turns)


def _medium(fields: dict[str, Any], root: Path) -> tuple[MediaKind | None, Path | None]:
    kinds: list[MediaKind] = [kind for kind in ("image", "video") if fields.get(kind) is not None]
    if len(kinds) > 1:
        raise _UnusableRecordError("both an image and a video")
    if not kinds:
        return None, None
    name = fields[kinds[0]]
    if not isinstance(name, str) or not name:
        raise _UnusableRecordError(f"{kinds[0]} is not a path")
    path = root / name
    try:
        is_there = path.is_file()
    except OSError as error:  # a name that no file can have, such as a picture in base64
        raise _UnusableRecordError(f"{kinds[0]} is not a path: {name[:40]!r}...") from error
    if not is_there:
        raise _UnusableRecordError(f"{path}: no such file")
    return kinds[0], path


def _turns(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise _UnusableRecordError("no conversations")
    said = [_utterance(entry) for entry in cast(list[Any], value)]
    if said and not said[0][0]:  # LLaVA's own data has a few that begin with an answer
        said = said[1:]
    if not any(not asks for asks, _ in said):
        raise _UnusableRecordError("a conversation with no answer")
    if len(said) % 2 or any(asks is bool(place % 2) for place, (asks, _) in enumerate(said)):
        raise _UnusableRecordError("questions and answers do not take turns")
    turns = tuple(Turn(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2))
    for turn in turns:
        if not turn.answer:
            raise _UnusableRecordError("a conversation with an empty answer")
    return turns


def _utterance(entry: Any) -> tuple[bool, str]:
    """True if the speaker asks, and the words without the placeholder of the medium."""
    if not isinstance(entry, dict):
        raise _UnusableRecordError("a conversation with an entry that is no object")
    fields = cast(dict[str, Any], entry)
    speaker, text = fields.get("from"), fields.get("value")
    if not isinstance(text, str) or not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise _UnusableRecordError("a conversation with an entry without 'from' (human or gpt) or 'value'")
    return SPEAKERS[speaker], text.replace("<video>", IMAGE).replace(IMAGE, "").strip()


def usable(records: RecordSet, skip_bad: bool, say: Callable[[str], None]) -> tuple[Record, ...]:
    """The good records; with bad ones an error that names them, or a count of those skipped.

    Raises:
        UsageError: there are bad records and `skip_bad` is not set, or no good ones.
    """
    if records.bad and not skip_bad:
        shown = "; ".join(str(bad) for bad in records.bad[:5])
        rest = f"; and {len(records.bad) - 5} more" if len(records.bad) > 5 else ""
        raise UsageError(f"{shown}{rest} (--skip-bad leaves such records out)")
    for bad in records.bad:
        say(f"skipped: {bad}")
    if records.bad:
        say(f"skipped {len(records.bad)} of {len(records.bad) + len(records.good)} records")
    if not records.good:
        raise UsageError("--data holds no record that can be trained on")
    return records.good
