"""One frame of a medium as a small JPEG: of pixels that are there, or decoded for it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.open import Unwatched, open_clip

EDGE = 256  # pixels of the longer edge, at most
INSTANT = 1e-3  # seconds, of which no video shows two frames in four


def small_jpeg(pixels: NDArray[np.uint8], width: int, height: int) -> bytes:
    """A frame `[h, w, 3]`, which may be squashed, in the shape `width` to `height`; a small one is not enlarged."""
    scale = min(1.0, EDGE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def thumbnail(path: str, time: float | None) -> bytes:
    """The frame of a video at a time in seconds, or an image (`time` is None), as JPEG. Raises `MediaError`."""
    # The middle lies behind the time, which may be rounded, so that the frame that appears then is on display.
    span = (None, None) if time is None else (max(0.0, time - INSTANT), time + 3 * INSTANT)
    sampling = SamplingOptions(start=span[0], end=span[1], max_frames=1)
    with open_clip(path, sampling, frame_size=EDGE, opening=Unwatched(still=EDGE)) as clip:
        pixels = next(iter(clip)).pixels[0]
        return small_jpeg(pixels, clip.info.width, clip.info.height)
