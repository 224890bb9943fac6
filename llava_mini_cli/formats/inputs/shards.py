"""WebDataset shards: tar archives whose consecutive members of one base name are a sample, read in order.

A sample's media become jobs; its `.json` and `.jsonl` members give columns by key, `.txt`, `.text`, `.caption` and
`.cls` members a column of that name. A line of `.jsonl` is a row of its own, so a sample may hold several questions.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from math import prod
from pathlib import PurePosixPath

from llava_mini_cli.errors import first_line
from llava_mini_cli.formats.fetch.embedded import Member, OpenTar
from llava_mini_cli.formats.fetch.urls import is_remote, plain_name, without_signature
from llava_mini_cli.formats.inputs.columns import as_mapping, as_text
from llava_mini_cli.formats.inputs.folders import IsMedia
from llava_mini_cli.formats.inputs.json_record import LARGEST_RECORD, parse_json
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.questions import RowAsker
from llava_mini_cli.formats.inputs.table import MOST_COLUMNS
from llava_mini_cli.formats.inputs.tables import MOST_ROWS
from llava_mini_cli.formats.inputs.tar_members import TarDamage, TarMember, tar_members
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.row import KeptColumn, printable

LOOKED_AT = 100  # samples whose columns are the shard's
MOST_QUESTIONS = 10_000  # of one medium
KEY = "__key__"  # the column of a sample's base name
_MOST_MEDIA = 10_000  # of one sample
_MOST_NOTES = 100  # text and JSON members of one sample
_LARGEST_ROWS = 1 << 30  # bytes of text that all rows about one medium hold together
_LARGEST_NOTE = LARGEST_RECORD  # bytes of a sample's text and JSON members together
_TEXTS = frozenset({"txt", "text", "caption", "cls"})

Record = dict[str, object]


@dataclass
class Sample:
    """The members of one base name."""

    key: str
    media: list[TarMember] = field(default_factory=list[TarMember])
    notes: list[list[Record]] = field(default_factory=list[list[Record]])  # what each text or JSON member holds
    sizes: list[int] = field(default_factory=list[int])  # bytes of each
    problem: str | None = None

    def rows(self, columns: Sequence[str]) -> Iterator[list[object]]:
        """The values of some columns: a row for each way to take one record of every note, made as it is reached."""
        for records in product(*self.notes):
            yield [self.key if column == KEY else _value(column, records) for column in columns]

    def check(self) -> None:
        """Notes as the problem that the rows would hold more text than anybody asks for: each repeats the notes."""
        count = min(prod(map(len, self.notes)), MOST_QUESTIONS)
        held = sum(size * count // len(note) for note, size in zip(self.notes, self.sizes, strict=True))
        if held > _LARGEST_ROWS:
            self.problem = f"{count} rows of {held // count} bytes are too many"


def _value(column: str, records: Sequence[Record]) -> object:
    """What the last of the records that has a column holds in it."""
    for record in reversed(records):
        if column in record:
            value = record[column]
            if isinstance(value, (list, dict)):  # as one text that all rows share
                value = record[column] = as_text(value)  # pyright: ignore[reportUnknownArgumentType]
            return value
    return None


def is_shard(name: str) -> bool:
    """True if a name has the suffix of a shard and can be the name of a file."""
    return "\0" not in name and plain_name(name).lower().endswith(".tar")


def shard_columns(path: str) -> tuple[str, ...]:
    """The columns of a shard's first samples; none where it cannot be read, which its jobs then say."""
    columns: dict[str, None] = {KEY: None}
    with suppress(OSError, TarDamage):
        for sample in islice(_samples(OpenTar(path), lambda name: False), LOOKED_AT):
            for record in (record for note in sample.notes for record in note):
                columns.update(dict.fromkeys(record))
            if len(columns) > MOST_COLUMNS:
                break
    return tuple(columns)[:MOST_COLUMNS]


@dataclass(frozen=True)
class ShardReader:
    """Shards -> jobs; each member is read when its job's turn comes."""

    prompts: Sequence[Prompt]
    options: InputOptions
    kept: Mapping[str, KeptColumn]
    is_media: IsMedia

    def check(self, columns: Sequence[str], name: str) -> None:
        """Raises `UsageError` where a prompt or a flag names a column that a shard has not."""
        RowAsker(self.prompts, self.options, self.kept, columns, name)

    def read(self, path: str, name: str) -> Iterator[Job]:
        """The jobs of one shard on this disk, then one with a fault where it cannot be read to its end."""
        asker = RowAsker(self.prompts, self.options, self.kept, None, name)
        try:
            archive = OpenTar(path)
            for sample in _samples(archive, self._is_medium):
                yield from self._jobs(sample, asker, archive, name)
        except FileNotFoundError:
            yield self.failed(name, Fault("input", "not_found", "no such file"))
        except OSError as error:
            yield self.failed(name, Fault("input", "unreadable", (error.strerror or str(error)).lower()))
        except TarDamage as error:
            yield self.failed(name, Fault("input", "truncated", f"the shard cannot be read to its end: {error}"))

    def failed(self, name: str, fault: Fault) -> Job:
        """The one row of a shard that cannot be read, or not to its end."""
        question = Question(Prompt(""), printable(name), self._blank)
        return Job(name, printable(PurePosixPath(name).name), (question,), fault)

    @property
    def _blank(self) -> Mapping[str, object]:
        return dict.fromkeys(each.name for each in self.kept.values())

    def _is_medium(self, member: str) -> bool:
        if self.options.column is not None:
            return _split(member)[1] == self.options.column.lower()
        return self.is_media(member)

    def _jobs(self, sample: Sample, asker: RowAsker, archive: OpenTar, shard: str) -> Iterator[Job]:
        place = f"{printable(shard)}, sample {printable(sample.key)}"
        problem = sample.problem or (None if sample.media else "no image or video")
        if problem is not None:
            question = Question(Prompt(""), printable(f"{shard}/{sample.key}"), self._blank)
            fault = Fault("input", "bad_row", f"{place}: {problem}")
            identity = (f"{_absolute(shard)}/{sample.key}", None, None)
            yield Job(f"{shard}/{sample.key}", printable(sample.key), (question,), fault, identity)
            return
        for member in sample.media:
            job = _job(member, archive, shard)
            asked, questions = 0, list[Question]()
            for values in sample.rows(asker.columns):
                if asked >= MOST_QUESTIONS:
                    why = f"{place}: more than {MOST_QUESTIONS} questions about {printable(member.name)}"
                    question = Question(Prompt(""), printable(job.path), self._blank)
                    yield job._replace(questions=(question,), fault=Fault("input", "bad_row", why))
                    break
                before = len(questions)
                for unasked in asker.ask(values, printable(job.path), questions):
                    why = Fault("input", "bad_row", f"{place}: {unasked.why}")
                    yield job._replace(questions=(unasked.question,), fault=why)
                    asked += 1
                asked += len(questions) - before
                if len(questions) >= MOST_ROWS:
                    yield job._replace(questions=tuple(questions))
                    questions = []
            if questions:
                yield job._replace(questions=tuple(questions))


def _job(member: TarMember, archive: OpenTar, shard: str) -> Job:
    """One member as a medium; not told apart by the date of the shard, so that a copy of it is the same."""
    path = f"{shard}/{member.name}"
    item = (f"{_absolute(shard)}/{member.name}", member.size, member.mtime)
    name = f"{path}@{member.offset}"  # `tar -r` adds a second member of the same name
    source = Member(name, PurePosixPath(member.name).suffix, archive, member.offset, member.size)
    return Job(path, f"{printable(PurePosixPath(shard).name)}/{printable(member.name)}", (), None, item, None, source)


def _absolute(shard: str) -> str:
    return without_signature(shard) if is_remote(shard) else os.path.abspath(shard)  # noqa: PTH100 - not the link's end


def _samples(archive: OpenTar, is_medium: IsMedia) -> Iterator[Sample]:
    """The samples in order. Raises `TarDamage` where the archive is cut short or damaged, after what it gave."""
    sample: Sample | None = None
    trouble: TarDamage | None = None
    members = _members(archive)
    while True:
        try:
            member = next(members, None)
        except TarDamage as error:
            member, trouble = None, error
        if sample is not None and (member is None or _split(member.name)[0] != sample.key):
            sample.check()
            yield sample
            sample = None
        if member is None:
            break
        sample = sample or Sample(_split(member.name)[0])
        _add(sample, member, archive, is_medium)
    if trouble is not None:
        raise trouble


def _members(archive: OpenTar) -> Iterator[TarMember]:
    """Files, and what is none and not read; hidden ones and those named like `__x__` are skipped."""
    for member in tar_members(archive.descriptor):
        if not PurePosixPath(member.name).name.startswith((".", "__")):
            yield member


def _add(sample: Sample, member: TarMember, archive: OpenTar, is_medium: IsMedia) -> None:
    extension = _split(member.name)[1]
    is_note = extension in _TEXTS or extension in ("json", "jsonl")
    is_media = is_medium(member.name)
    if not is_media and not is_note:
        return
    if member.problem is not None:
        sample.problem = f"{printable(member.name)}: {member.problem}"
    elif is_media and len(sample.media) < _MOST_MEDIA:
        sample.media.append(member)
    elif is_media or len(sample.notes) >= _MOST_NOTES:
        sample.problem = f"more than {_MOST_MEDIA} media or {_MOST_NOTES} texts"
    else:
        try:
            _add_note(sample, extension, _read_note(sample, member, archive))
        except ValueError as error:
            sample.problem = f"{printable(member.name)}: {first_line(error)}"


def _split(name: str) -> tuple[str, str]:
    """Base name, with its folders, and extension: what comes before and after the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return folder + slash + base, extension.lower()


def _read_note(sample: Sample, member: TarMember, archive: OpenTar) -> bytes:
    """The bytes of a text or JSON member. Raises `ValueError` where all of a sample's are too many."""
    size = sum(sample.sizes) + member.size
    if size > _LARGEST_NOTE:
        raise ValueError(f"{size} bytes are too many for a text")
    return os.pread(archive.descriptor, member.size, member.offset)


def _add_note(sample: Sample, extension: str, data: bytes) -> None:
    """Adds the records of a text or JSON member to a sample. Raises `ValueError` where it is not what it should be."""
    if extension in _TEXTS:
        records: list[Record] = [{extension: data.decode().strip()}]
    else:
        lines = [data] if extension == "json" else [line for line in data.splitlines() if line.strip()]
        if not lines:
            raise ValueError("no line")
        records = [_record(line) for line in lines[: MOST_QUESTIONS + 1]]
    sample.notes.append(records)
    sample.sizes.append(len(data))


def _record(line: bytes) -> Record:
    record = as_mapping(parse_json(line))
    if record is None:
        raise ValueError("not an object")
    return dict(record)
