"""Files and folders on the command line -> a lazy stream of jobs, in the order given.

A folder gives the media inside it, recursively and sorted, by their suffix; a file is taken whatever
its suffix, and one that does not exist still gives a job, so that it becomes an error row and not the
end of the run. Opens nothing and knows nothing of decoding.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Job, Prompt

# What a folder's files are told by. HEIC is here although it may not open: an error row beats silence.
_IMAGES = "apng|avif|bmp|dib|gif|heic|heif|jfif|jp2|jpe?g|pbm|pgm|png|pnm|ppm|tga|tiff?|webp"
_VIDEOS = "3g2|3gp|asf|avi|f4v|flv|m2ts|m2v|m4v|mkv|mov|mp4|mpe?g|mts|mxf|ogv|ts|vob|webm|wmv"
_MEDIA_NAME = re.compile(rf"[^.].*\.({_IMAGES}|{_VIDEOS})", re.IGNORECASE | re.DOTALL)


def read_jobs(media: Sequence[str], prompts: tuple[Prompt, ...]) -> Iterator[Job]:
    """The jobs of files and folders. Folders are checked at once and walked only when reached.

    Raises:
        UsageError: a folder that cannot be read or that holds no media.
    """
    for medium in media:
        if Path(medium).is_dir():
            _check_folder(medium)
    return (Job(path, name, prompts) for medium in media for path, name in _expand(medium))


def _check_folder(folder: str) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"cannot read the folder '{folder}': permission denied")
    if next(_walk(folder), None) is None:
        raise UsageError(f"no images or videos in the folder '{folder}'")


def _expand(medium: str) -> Iterator[tuple[str, str]]:
    """Path and file name of each medium that one argument stands for."""
    if Path(medium).is_dir():
        for path in _walk(medium):
            yield path, Path(os.path.relpath(path, medium)).as_posix()
    else:
        yield medium, Path(medium).name


def _walk(folder: str) -> Iterator[str]:
    """Media below a folder, sorted within each folder; hidden files and folders are passed over."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _MEDIA_NAME.fullmatch(name):
                yield os.path.join(parent, name)  # noqa: PTH118 - keeps the folder as the user wrote it
