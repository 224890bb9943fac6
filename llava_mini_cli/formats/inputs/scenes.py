"""Lists of scenes, as PySceneDetect's `list-scenes` writes them -> the spans of each job. Opens no medium.

Timecode List:,00:00:03.754                       (this line may be missing)
Scene Number,Start Frame,Start Timecode,Start Time (seconds),End Frame,End Timecode,End Time (seconds),...
1,1,00:00:00.000,0.000,90,00:00:03.754,3.754,...
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path, PurePath

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.read import Inputs
from llava_mini_cli.formats.job import Fault, Job, TimeSpan
from llava_mini_cli.paths import is_folder
from llava_mini_cli.plain_files import read_bytes

START, END = "Start Time (seconds)", "End Time (seconds)"
MOST_SCENES = 100_000  # of one list
_MOST_BYTES = 32 << 20  # of one list


def with_scenes(inputs: Inputs, source: str) -> Inputs:
    """The inputs, each job with its scenes; one whose list cannot be read, with a fault that says why.

    Args:
        source: a list, which then is that of the only medium, or a folder with a list `NAME-Scenes.csv` for each
            `NAME.mp4`.

    Raises:
        UsageError: the list cannot be read, or there are several media for it.
    """
    if is_folder(source):
        return replace(inputs, jobs=_each_with_own(inputs.jobs, Path(source)))
    try:
        scenes = read_scenes(source)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scenes-from '{source}': {_words(error)}") from None
    if inputs.total != 1:
        raise UsageError(
            f"--scenes-from '{source}' lists the scenes of one video; for several name a folder that holds "
            "NAME-Scenes.csv for each NAME.mp4"
        )
    return replace(inputs, jobs=(job._replace(spans=scenes) for job in inputs.jobs))


def _each_with_own(jobs: Iterator[Job], folder: Path) -> Iterator[Job]:
    for job in jobs:
        if job.fault is not None:
            yield job
            continue
        name = f"{PurePath(job.file_name).stem}-Scenes.csv"
        try:
            yield job._replace(spans=read_scenes(folder / name))
        except (OSError, ValueError) as error:
            yield job._replace(fault=Fault("input", "no_scenes", f"'{folder / name}': {_words(error)}"))


def read_scenes(path: str | Path) -> tuple[TimeSpan, ...]:
    """The scenes of one list, in order of their starts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such list, holds no scene or very many, or one that does not end after it begins.
    """
    text = read_bytes(path, _MOST_BYTES).decode("utf-8-sig", "replace")
    try:
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None
    line = next((line for line, row in enumerate(rows[:2]) if START in row and END in row), None)
    if line is None:
        raise ValueError(f"no list of scenes: its first two lines have no columns '{START}' and '{END}'")
    places = rows[line].index(START), rows[line].index(END)
    scenes = sorted(_scene(row, places, number) for number, row in enumerate(rows[line + 1 :], line + 2) if row)
    if not 0 < len(scenes) <= MOST_SCENES:
        raise ValueError(f"lists {len(scenes):,} scenes; it takes 1 to {MOST_SCENES:,}")
    return tuple(TimeSpan(number, start, end, "") for number, (start, end) in enumerate(scenes, start=1))


def _scene(row: Sequence[str], places: tuple[int, int], line: int) -> tuple[float, float]:
    try:
        start, end = (float(row[place]) for place in places)
    except (IndexError, ValueError):
        raise ValueError(f"line {line} has no start and end in seconds") from None
    if not (0 <= start < end and isfinite(end)):
        raise ValueError(f"line {line}: a scene from {start:g} to {end:g} s")
    return start, end


def _words(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
