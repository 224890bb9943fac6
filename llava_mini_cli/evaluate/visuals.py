"""What a task shows beside a question, as a medium; questions that show the same have the same one.

A picture is known again by what it shows, a video by its file. Pictures are not kept: a task's data set gives them
again when their turn comes.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.evaluate.arguments import SeveralImages
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.given import FramesClip, is_picture, picture_clip, picture_digest
from llava_mini_cli.media.open import Opening, open_clip
from llava_mini_cli.pipelines.open_job import fault_of

Show = Callable[[Any], object]  # lmms-eval's `doc_to_visual`: a row of a data set -> what is shown


@dataclass(frozen=True)
class Medium:
    """A file, or pictures that a data set holds."""

    key: str  # the same for the same medium
    name: str = field(compare=False)  # for messages: a file, or the row that shows it first
    file: str | None = field(default=None, compare=False)
    pictures: Callable[[], Sequence[Image.Image]] | None = field(default=None, compare=False)
    is_video: bool = field(default=False, compare=False)  # pictures are its frames


class Media:
    """The media of questions, each once."""

    def __init__(self, several_images: SeveralImages) -> None:
        """`several_images`: what becomes of several pictures in one question."""
        self._several = several_images
        self._known: dict[str, Medium] = {}
        self._of_row: dict[tuple[str, int], Medium | None] = {}

    def of(self, show: Show, row_of: Callable[[], Any], name: str, row: int) -> Medium | None:
        """What is shown beside a question; None: nothing is.

        Args:
            row_of: gives the row anew. name, row: the task and the row's number.

        Raises:
            UsageError: what is shown cannot be looked at. MediaError: a picture that is damaged.
        """
        key = name, row
        if key not in self._of_row:
            self._of_row[key] = self._found(show, row_of, f"{name}, row {row}")
        return self._of_row[key]

    def open(
        self, path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> Clip:
        """Opens a medium by its key, as `media.open.open_clip` does by its path. Raises `MediaError`."""
        medium = self._known[path]
        if medium.file is not None:
            return open_clip(medium.file, options, frame_size=frame_size, chunk_frames=chunk_frames, opening=opening)
        assert medium.pictures is not None
        pictures = medium.pictures()
        if medium.is_video:
            return FramesClip(medium.name, pictures, frame_size, opening)
        return picture_clip(medium.name, pictures[0], opening)

    def find_fault(self, job: Job) -> Fault | None:
        """Why a medium cannot even be opened, told without a decoder; None when it looks as if it could."""
        medium = self._known[job.path]
        return None if medium.file is None else fault_of(job._replace(path=medium.file))

    def _found(self, show: Show, row_of: Callable[[], Any], name: str) -> Medium | None:
        shown = _flat(show(row_of()))
        if not shown:
            return None
        files = [str(one) for one in shown if isinstance(one, str | Path)]
        pictures = [one for one in shown if is_picture(one)]
        other = next((one for one in shown if not isinstance(one, str | Path) and not is_picture(one)), None)
        if other is not None:
            kind = type(other).__name__
            raise UsageError(f"{name}: shows a thing of type {kind}; llava-mini looks at pictures and videos")
        if files:
            if len(shown) > 1:
                raise UsageError(f"{name}: shows {len(shown)} media at once; llava-mini looks at one")
            medium = Medium(f"file {os.path.abspath(files[0])}", files[0], files[0])  # noqa: PTH100 - as jobs do
            return self._known.setdefault(medium.key, medium)
        return self._of_pictures(pictures, name, lambda: _pictures(show(row_of())))

    def _of_pictures(
        self, pictures: Sequence[Image.Image], name: str, again: Callable[[], Sequence[Image.Image]]
    ) -> Medium:
        several = len(pictures) > 1
        if several and self._several == "error":
            raise UsageError(
                f"{name}: shows {len(pictures)} pictures; llava-mini looks at one, or with several_images=video takes "
                "them as the frames of a video, or with several_images=middle the one in the middle"
            )
        is_video = several and self._several == "video"
        middle = len(pictures) // 2
        wanted = pictures if is_video else [pictures[middle]]
        key = " ".join(["frames" if is_video else "picture", *(picture_digest(one) for one in wanted)])
        medium = Medium(key, name, None, again if is_video else lambda: [again()[middle]], is_video)
        return self._known.setdefault(key, medium)


def _flat(shown: object) -> list[object]:
    """What a task shows, as one list: it may be nothing, one thing, or lists of lists."""
    if shown is None:
        return []
    if isinstance(shown, list | tuple):
        return [one for part in cast("Iterable[object]", shown) for one in _flat(part)]
    return [shown]


def _pictures(shown: object) -> list[Image.Image]:
    return [one for one in _flat(shown) if is_picture(one)]
