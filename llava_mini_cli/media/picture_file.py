"""A decoded picture as the bytes of a file that holds the same pixels, for media that other programs decoded."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def picture_file(cell: Any) -> Any:
    """A Pillow image, or an array uint8 `[H, W, 3]`, `[H, W, 4]` or `[H, W]`, as a PNG; anything else as it is."""
    if getattr(cell, "dtype", None) == np.uint8 and _is_picture(cell.shape):
        upright = Image.fromarray(np.ascontiguousarray(cell))
    elif isinstance(cell, Image.Image):
        upright = ImageOps.exif_transpose(cell)
    else:
        return cell
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _is_picture(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
