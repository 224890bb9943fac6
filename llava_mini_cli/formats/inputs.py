"""Files and folders on the command line -> a lazy stream of jobs, in the order given.

A folder gives the media inside it, recursively and sorted, by their names; a file is taken whatever
its name, and one that does not exist still gives a job, so that it becomes an error row and not the
end of the run. Opens nothing and knows nothing of decoding.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.row import printable

IsMedia = Callable[[str], bool]


def read_jobs(media: Sequence[str], prompts: tuple[Prompt, ...], is_media: IsMedia) -> Iterator[Job]:
    """The jobs of files and folders. Folders are checked at once and walked only when reached.

    `is_media` tells from a file's name whether a folder's file is meant.

    Raises:
        UsageError: a folder that cannot be read or that holds no media.
    """
    for medium in media:
        if Path(medium).is_dir():
            _check_folder(medium, is_media)
    return (_job(path, name, prompts) for medium in media for path, name in _expand(medium, is_media))


def _job(path: str, file_name: str, prompts: tuple[Prompt, ...]) -> Job:
    name = printable(path)
    return Job(path, file_name, tuple(Question(prompt, name) for prompt in prompts))


def _check_folder(folder: str, is_media: IsMedia) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"cannot read the folder '{folder}': permission denied")
    if next(_walk(folder, is_media), None) is None:
        raise UsageError(f"no images or videos in the folder '{folder}'")


def _expand(medium: str, is_media: IsMedia) -> Iterator[tuple[str, str]]:
    """Path and file name of each medium that one argument stands for."""
    if Path(medium).is_dir():
        for path in _walk(medium, is_media):
            yield path, Path(os.path.relpath(path, medium)).as_posix()
    else:
        yield medium, Path(medium).name


def _walk(folder: str, is_media: IsMedia) -> Iterator[str]:
    """Media below a folder, sorted within each folder; hidden files and folders and links to folders are passed over.

    A folder that cannot be read is given as if it were a medium: it becomes an error row, not a silent gap.
    """
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and is_media(name):
                yield os.path.join(parent, name)  # noqa: PTH118 - keeps the folder as the user wrote it
    yield from (str(error.filename) for error in unreadable)
