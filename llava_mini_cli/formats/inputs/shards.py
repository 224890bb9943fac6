"""WebDataset shards: tar archives whose consecutive members of one base name are a sample, read in order.

A sample's media become jobs; its `.json` and `.jsonl` members give columns by key, `.txt`, `.text`, `.caption` and
`.cls` members a column of that name. A line of `.jsonl` is a row of its own, so a sample may hold several questions.
"""

import json
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO

from llava_mini_cli.errors import first_line
from llava_mini_cli.formats.fetch.embedded import Member, OpenTar
from llava_mini_cli.formats.fetch.urls import is_remote, plain_name, without_signature
from llava_mini_cli.formats.inputs.columns import as_mapping
from llava_mini_cli.formats.inputs.folders import IsMedia
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.questions import RowAsker
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.row import KeptColumn, printable

LOOKED_AT = 100  # samples whose columns are the shard's
KEY = "__key__"  # the column of a sample's base name
_TEXTS = frozenset({"txt", "text", "caption", "cls"})
_LARGEST_NOTE = 1 << 26  # bytes of a text or JSON member that are read
_BLOCK = 512


@dataclass
class Sample:
    """The members of one base name."""

    key: str
    media: list[tarfile.TarInfo] = field(default_factory=list[tarfile.TarInfo])
    rows: list[dict[str, object]] = field(default_factory=lambda: [{}])
    problem: str | None = None


def is_shard(name: str) -> bool:
    """True if a name has the suffix of a shard and can be the name of a file."""
    return "\0" not in name and plain_name(name).lower().endswith(".tar")


def shard_columns(path: str) -> tuple[str, ...]:
    """The columns of a shard's first samples; none where it cannot be read, which its jobs then say."""
    columns: dict[str, None] = {KEY: None}
    with suppress(OSError, tarfile.TarError), open(path, "rb") as stream:  # noqa: PTH123
        for sample in islice(_samples(stream, lambda name: False), LOOKED_AT):
            for row in sample.rows:
                columns.update(dict.fromkeys(row))
    return tuple(columns)


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
            with open(path, "rb") as stream:  # noqa: PTH123
                for sample in _samples(stream, self._is_medium):
                    yield from self._jobs(sample, asker, archive, name)
        except FileNotFoundError:
            yield self.failed(name, Fault("input", "not_found", "no such file"))
        except OSError as error:
            yield self.failed(name, Fault("input", "unreadable", (error.strerror or str(error)).lower()))
        except tarfile.TarError as error:
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
        for info in sample.media:
            job = _job(info, archive, shard)
            questions: list[Question] = []
            for row in sample.rows:
                values = [row.get(column) for column in asker.columns]
                for unasked in asker.ask(values, printable(job.path), questions):
                    why = Fault("input", "bad_row", f"{place}: {unasked.why}")
                    yield job._replace(questions=(unasked.question,), fault=why)
            if questions:
                yield job._replace(questions=tuple(questions))


def _job(info: tarfile.TarInfo, archive: OpenTar, shard: str) -> Job:
    """One member as a medium; not told apart by the date of the shard, so that a copy of it is the same."""
    path = f"{shard}/{info.name}"
    time = int(info.mtime) if math.isfinite(info.mtime) else None
    item = (f"{_absolute(shard)}/{info.name}", info.size, time)
    name = f"{path}@{info.offset_data}"  # `tar -r` adds a second member of the same name
    source = Member(name, PurePosixPath(info.name).suffix, archive, info.offset_data, info.size)
    return Job(path, f"{printable(PurePosixPath(shard).name)}/{printable(info.name)}", (), None, item, None, source)


def _absolute(shard: str) -> str:
    return without_signature(shard) if is_remote(shard) else os.path.abspath(shard)  # noqa: PTH100 - not the link's end


def _samples(stream: BinaryIO, is_medium: IsMedia) -> Iterator[Sample]:
    """The samples in order. Raises `tarfile.TarError` where the archive is cut short or damaged, after what it gave."""
    sample: Sample | None = None
    trouble: tarfile.TarError | None = None
    members = _members(stream)
    while True:
        try:
            info = next(members, None)
        except tarfile.TarError as error:
            info, trouble = None, error
        if sample is not None and (info is None or _split(info.name)[0] != sample.key):
            for row in sample.rows:
                row[KEY] = sample.key
            yield sample
            sample = None
        if info is None:
            break
        sample = sample or Sample(_split(info.name)[0])
        _add(sample, info, stream, is_medium)
    if trouble is not None:
        raise trouble


def _add(sample: Sample, info: tarfile.TarInfo, stream: BinaryIO, is_medium: IsMedia) -> None:
    extension = _split(info.name)[1]
    is_note = extension in _TEXTS or extension in ("json", "jsonl")
    is_media = is_medium(info.name)
    if not is_media and not is_note:
        return
    if not info.isreg() or info.issparse():
        what = "a sparse file" if info.isreg() else "a link"
        sample.problem = f"{printable(info.name)}: {what}, which is not read"
    elif is_media:
        sample.media.append(info)
    else:
        try:
            _add_note(sample, extension, _read_note(stream, info))
        except (ValueError, RecursionError) as error:
            sample.problem = f"{printable(info.name)}: {first_line(error)}"


def _members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Files and links of an archive without compression; hidden ones and those named like `__x__` are skipped."""
    size = os.fstat(stream.fileno()).st_size
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for info in archive:
            vars(archive)["members"].clear()  # or they would all be kept
            if info.offset_data + info.size > size:
                raise tarfile.ReadError(f"it ends within {printable(info.name)}")
            name = PurePosixPath(info.name).name
            if (info.isreg() or info.islnk() or info.issym()) and not name.startswith((".", "__")):
                yield info
        stream.seek(archive.offset)
        if stream.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes any block that is no header for the end
            raise tarfile.ReadError("its end is missing")


def _split(name: str) -> tuple[str, str]:
    """Base name, with its folders, and extension: what comes before and after the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return folder + slash + base, extension.lower()


def _read_note(stream: BinaryIO, info: tarfile.TarInfo) -> bytes:
    if info.size > _LARGEST_NOTE:
        raise ValueError(f"{info.size} bytes are too many for a text")
    position = stream.tell()
    stream.seek(info.offset_data)
    data = stream.read(info.size)
    stream.seek(position)
    return data


def _add_note(sample: Sample, extension: str, data: bytes) -> None:
    """Adds the columns of a text or JSON member to a sample. Raises `ValueError` where it is not what it should be."""
    if extension in _TEXTS:
        for row in sample.rows:
            row[extension] = data.decode().strip()
        return
    lines = [data] if extension == "json" else [line for line in data.splitlines() if line.strip()]
    if not lines:
        raise ValueError("no line")
    records = [as_mapping(json.loads(line)) for line in lines]
    if None in records:
        raise ValueError("not an object")
    sample.rows = [{**row, **record} for row in sample.rows for record in records if record is not None]
