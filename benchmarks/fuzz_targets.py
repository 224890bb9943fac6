"""The readers that `fuzz.py` gives damaged files to: each takes a folder with one case."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np

from llava_mini_cli.commands.config_files import Kind, read_settings
from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import ArchiveError, FetchError, LlavaMiniError, UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader
from llava_mini_cli.formats.archive.reader import Archive, open_archive
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs.columns import as_kind
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.read import open_inputs
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.outputs.row_keys import RowKeys
from llava_mini_cli.formats.source import FetchOptions, PartlyRead
from llava_mini_cli.media.open import is_media_path
from llava_mini_cli.pipelines.archive_media import StoredMedia, sampling_of
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, search

MOST_JOBS = 3000
WAYS = (
    ([Prompt("What?")], {}),
    ([Prompt("{name}{n}?")], {"keep_all": True}),
    ([], {"prompt_columns": ("q",), "id_column": "name"}),
)


def table(folder: Path) -> None:
    """Every job of a table or a shard, asked in three ways; media inside are read."""
    (path,) = folder.iterdir()
    for prompts, options in WAYS:
        with suppress(UsageError):  # a column that is gone
            jobs([str(path)], prompts, InputOptions(**options))


def listing(folder: Path) -> None:
    """Every job of a list; the folders that it happens to name are not walked."""
    (path,) = folder.iterdir()
    with patch("llava_mini_cli.formats.inputs.read.is_folder", lambda name: False):
        for null in (False, True):
            jobs([], [Prompt("What?")], InputOptions(files_from=str(path), null=null))


def jobs(arguments: list[str], prompts: list[Prompt], options: InputOptions) -> None:
    """The jobs of a command line, with all that is asked of each before it is opened."""
    keys = RowKeys("demo", None, {})
    with FileCache(FetchOptions(timeout=0.2, retries=0)) as cache:
        opened = open_inputs(arguments, prompts, is_media_path, cache, options)
        kinds = {column.name: column.kind for column in opened.kept}
        for job in islice(opened.jobs, MOST_JOBS):
            item = keys.item(job)
            keys.state(item)
            for question in job.questions:
                keys.work(item, job.path, question)
                keys.asked(job, question)
                for name, value in question.kept.items():
                    as_kind(value, kinds[name])
                f"{question.id}{question.prompt.text}".encode()
            if isinstance(job.source, PartlyRead):
                with suppress(FetchError):
                    job.source.read_at(100, 0)


def archive(folder: Path) -> None:
    """An archive, read in every way: its media, frames, vectors, features and captions, a search and the jobs of it."""
    header = ArchiveHeader.read(folder)
    header.difference(ArchiveHeader("demo", None, "abc", header.shapes, None, {"fps": 2.0}))
    with open_archive(folder) as opened:
        _read(opened)
        with suppress(UsageError):
            query = np.full(opened.header.shapes.clip or 1, 0.5, np.float32)
            options = SearchOptions(3)
            scanner = Scanner(
                lambda file, rows, query, _: np.fromfile(file, "<f2").reshape(rows, -1).astype(np.float32) @ query,
                lambda batches, vector: np.concatenate([batch.astype(np.float32) @ vector for batch in batches]),
            )
            found = search(opened, query, options, scanner)
            stored = StoredMedia(opened, lambda *_, **__: None)  # pyright: ignore
            sampling_of(opened, SamplingOptions())
            for job in (*stored.jobs((Prompt("What?"),)), *stored.moment_jobs(Prompt("What?"), found)):
                stored.find_fault(job)


def _read(opened: Archive) -> None:
    with suppress(ArchiveError):
        opened.mean_vector()
    list(opened.each_failure())
    for medium in opened.each_medium():
        for read in (opened.captions, opened.features if opened.header.features else opened.captions):
            with suppress(ArchiveError):
                list(read(medium))
    for part in opened.parts:
        with suppress(ArchiveError):
            rows = len(opened.frames(part).medium)
            opened.vector_file(part, rows)
            opened.vector_rows(part, np.arange(rows, dtype=np.int32))


def config(folder: Path) -> None:
    """A config file, for two commands."""
    flags = {"fps": Kind(False, False), "prompt": Kind(False, True), "quiet": Kind(True, False)}
    commands = {"ask": {**flags, "model": Kind(False, False), "seed": Kind(False, False)}, "index": flags}
    for command in commands:
        with suppress(UsageError):
            read_settings((folder / "a.toml",), commands, command)


def checkpoint(folder: Path) -> None:
    """What is looked at of a checkpoint before its weights."""
    from llava_mini_cli.model.checkpoint import load_config, weight_files

    for look in (partial(load_config, local_files_only=True), weight_files):
        with suppress(LlavaMiniError):
            look(folder)


TARGETS: dict[str, Callable[[Path], None]] = {
    "tar": table, "csv": table, "jsonl": table, "parquet": table, "list": listing,
    "archive": archive, "config": config, "checkpoint": checkpoint,
}  # fmt: skip
