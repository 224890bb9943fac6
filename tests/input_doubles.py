"""Inputs of tests: jobs from arguments, without a run around them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.read import Inputs, open_inputs
from llava_mini_cli.formats.job import Job, Prompt
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.open import is_media_path

WHAT = (Prompt("What?"),)


@contextmanager
def inputs(
    *arguments: object,
    prompts: Sequence[Prompt] = WHAT,
    options: InputOptions = InputOptions(),  # noqa: B008 - frozen
    fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> Iterator[Inputs]:
    """The inputs of a command line, with a cache that lives as long."""
    with FileCache(fetch) as cache:
        yield open_inputs([str(argument) for argument in arguments], prompts, is_media_path, cache, options)


def jobs_of(
    *arguments: object,
    prompts: Sequence[Prompt] = WHAT,
    options: InputOptions = InputOptions(),  # noqa: B008 - frozen
    fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
) -> list[Job]:
    """All the jobs of a command line."""
    with inputs(*arguments, prompts=prompts, options=options, fetch=fetch) as opened:
        return list(opened.jobs)


def asked(jobs: Sequence[Job]) -> list[tuple[str, list[str]]]:
    """Path and questions of each job, for comparing."""
    return [(job.path, [question.prompt.text for question in job.questions]) for job in jobs]


def faults(jobs: Sequence[Job]) -> list[tuple[str, str, str]]:
    """Stage, kind and message of the jobs that have a fault."""
    return [tuple(job.fault) for job in jobs if job.fault is not None]


def touch(folder: Path, *names: str) -> None:
    """Empty files, with their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
