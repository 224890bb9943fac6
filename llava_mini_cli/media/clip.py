"""The one type that every medium becomes: a clip, which gives frames in bounded chunks.

Knows nothing of models; pixels are as the eye would see them (upright, RGB, 8 bits).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "video"]


@dataclass(frozen=True)
class ClipInfo:
    """Facts about a medium that are known before its first frame is decoded."""

    path: str
    kind: MediaKind
    width: int  # as players show it: after rotation, in square pixels
    height: int
    duration_s: float | None  # None for an image, or when the container does not say
    frame_count: int | None  # frames that will be sampled; None when only decoding can tell
    fps_sampled: float | None  # frames sampled a second; None for an image
    codec: str | None = None


@dataclass(frozen=True)
class FrameChunk:
    """Consecutive sampled frames of one clip."""

    # [n, height, width, 3] RGB; frames of a video are squashed to the asked size. Of a picture that was asked for in
    # pieces, [1, parts, height, width, 3].
    pixels: NDArray[np.uint8]
    times: NDArray[np.float64]  # [n] seconds from the beginning of the video; zeros for an image


class Clip(Protocol):
    """An opened medium. Iterate over it once; close it (or leave its `with` block) to end its decoder."""

    info: ClipInfo
    warnings: list[str]  # one line each, complete once iteration ended ("read 8.0 of 13.0 s: ...")
    # Seconds at which scenes begin, ascending: all up to a chunk's last frame are there once the chunk is. None: nobody
    # asked for them, or not every frame is looked at.
    cuts: list[float] | None = None

    def __iter__(self) -> Iterator[FrameChunk]:
        """Chunks in time order, with at least one frame in all. Raises `MediaError`."""
        ...

    def ready(self) -> bool:
        """True if the next chunk (or the end, or an error) can be had without waiting, as where its reader decodes."""
        return True

    def close(self) -> None:
        """Ends the decoder's process, if there is one. Safe to call twice, at any time."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
