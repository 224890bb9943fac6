"""`--media-root`: the folder that local files must lie below which tables, lists, shards and archives name."""

import os

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.paths import is_folder


def below(path: str, roots: tuple[str, ...]) -> str:
    """The path of a local file with all links resolved, for whoever opens it now.

    Args:
        roots: resolved folders. The file must lie below one of them; without any it may lie anywhere, and the path is
            given back as it is.

    Raises:
        FetchError: of the kind `refused`, also for what is not there: a row does not tell what lies outside.
    """
    if not roots:
        return path
    try:
        resolved = os.path.realpath(path)
    except (OSError, ValueError):
        resolved = ""
    if not any(f"{resolved}/".startswith(root.rstrip("/") + "/") for root in roots):
        raise FetchError("refused", f"it lies outside of --media-root '{roots[-1]}'")
    return resolved


def roots_of(folder: str | None) -> tuple[str, ...]:
    """The folder of --media-root with all links resolved; none where there is none. Raises `UsageError`."""
    if folder is None:
        return ()
    if not is_folder(folder):
        raise UsageError(f"--media-root: there is no folder '{folder}'")
    return (os.path.realpath(folder),)


def file_of(job: Job) -> str | Fault:
    """The file of a job, to be opened at once, or why it must not be."""
    if job.local is not None:
        return job.local
    try:
        return below(job.path, job.roots)
    except FetchError as error:
        return Fault("input", error.kind, str(error))
