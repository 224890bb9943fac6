"""Pictures that another program has in memory already, as clips: one alone, or several as the frames of a video.

The pixels are those that `ask` sees of a file with the same picture in it. Nothing here is decoded from a file of a
stranger, so no process of its own is needed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import numpy as np
from PIL import Image

from llava_mini_cli.errors import MediaError
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.image import BROKEN, Upright, broken, to_rgb
from llava_mini_cli.media.open import Opening
from llava_mini_cli.media.picture import PictureClip
from llava_mini_cli.pieces import PieceLayout, pieces

COPIES = 4  # bytes a pixel that a picture takes while it is cut and resized, beside its own


def is_picture(value: object) -> TypeGuard[Image.Image]:
    """True for a picture of Pillow's."""
    return isinstance(value, Image.Image)


def picture_digest(picture: Image.Image) -> str:
    """A digest of what a picture shows; two with the same one are the same medium. Raises `MediaError`."""
    try:
        found = hashlib.blake2b(f"{picture.mode} {picture.size} ".encode(), digest_size=16)
        found.update(picture.tobytes())
        if picture.palette is not None:
            found.update(picture.palette.tobytes())
    except BROKEN as error:
        raise broken(error) from None
    return found.hexdigest()


def picture_clip(name: str, picture: Image.Image, opening: Opening) -> Clip:
    """One picture, in the pieces that `opening.still` asks for, or as it is. Raises `MediaError`."""
    opening.reserve(COPIES * picture.width * picture.height)
    try:
        upright = Upright(picture)
        layout = opening.still
        pixels = pieces(upright, layout) if isinstance(layout, PieceLayout) else to_rgb(picture)
    except BROKEN as error:
        raise broken(error) from None
    opening.keep(pixels.nbytes)
    return PictureClip(ClipInfo(name, "image", upright.width, upright.height, None, 1, None), pixels, None)


class FramesClip(Clip):
    """Pictures as the frames of a video, one a second, squashed like those of a video."""

    def __init__(self, name: str, frames: Sequence[Image.Image], frame_size: int, opening: Opening) -> None:
        """`frames`: at least one. Raises `MediaError` if there is none."""
        if not frames:
            raise MediaError("empty", "the list of frames is empty")
        width, height = frames[0].size
        opening.reserve(len(frames) * (COPIES * width * height + 3 * frame_size**2))
        self.info = ClipInfo(name, "video", width, height, float(len(frames)), len(frames), 1.0)
        self.warnings: list[str] = []
        self._frames = list(frames)
        self._edge = frame_size

    def __iter__(self) -> Iterator[FrameChunk]:
        for second, frame in enumerate(self._frames):
            try:
                pixels = to_rgb(frame)
            except BROKEN as error:
                raise broken(error) from None
            rows, columns = (nearest_index(edge, self._edge) for edge in pixels.shape[:2])
            yield FrameChunk(pixels[rows][:, columns][None], np.array([float(second)]))

    def close(self) -> None:
        """Lets go of the pictures."""
        self._frames = []
