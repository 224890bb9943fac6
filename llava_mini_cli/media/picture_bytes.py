"""The memory that decoding a picture takes in its process, told from its header.

The numbers are the peaks of processes that decoded pictures of 6 and 12 megapixels of each kind, noise among them.
"""

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from llava_mini_cli.media.image import is_deep
from llava_mini_cli.pieces import BAND_PIXELS

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel; 4 otherwise
# Bytes a pixel that the decoder of a format holds beside Pillow's picture.
_CODEC = {"AVIF": 12, "HEIF": 12, "JPEG2000": 20, "JXL": 14, "WEBP": 11}
_PROGRESSIVE = 6  # of a JPEG in several scans, whose coefficients are all kept
_BAND = 24  # bytes for a pixel of the rows that are converted and resized at once
_BAND_DEEP = 16  # more where they pass through floats
_RESIZED = 8 << 20  # what is resized, and pieces
_MOVING = 16  # bytes a pixel more of an animation: the canvas, the frame before, RGB
_STRIP = 8  # bytes a pixel of a TIFF's strip or tile, which libtiff unpacks at once
_ORIENTATION, _ROWS_PER_STRIP, _TILE_LENGTH = 274, 278, 323  # tags of TIFF
_READ_WHOLE = frozenset({"AVIF", "HEIF", "JXL", "WEBP"})  # files that Pillow holds in memory, twice for a moment


def decode_bytes(picture: Image.Image, file_bytes: int, is_moving: bool) -> int:
    """The most bytes that decoding a picture, or one frame of an animation, holds; `file_bytes`: of its file."""
    pixels, format_ = picture.width * picture.height, picture.format or ""
    stored = _STORED.get(picture.mode, 4)
    each = stored + _CODEC.get(format_, 0) + (_MOVING if is_moving else 0)
    if picture.info.get("progressive"):
        each += _PROGRESSIVE
    band = min(pixels, BAND_PIXELS + picture.width) * (_BAND + (_BAND_DEEP if is_deep(picture) else 0))
    held = 2 * file_bytes if format_ in _READ_WHOLE else 0
    if isinstance(picture, TiffImageFile):
        held += _tiff_bytes(picture, stored)
    return each * pixels + band + _RESIZED + held


def _tiff_bytes(picture: TiffImageFile, stored: int) -> int:
    """What a TIFF takes beside its picture: the copy that Pillow turns, and the largest strip."""
    tags = picture.tag_v2
    copy = stored * picture.width * picture.height if tags.get(_ORIENTATION, 1) != 1 else 0
    if not picture.tile or picture.tile[0][0] == "raw":
        return copy
    rows = tags.get(_TILE_LENGTH) or tags.get(_ROWS_PER_STRIP) or picture.height
    return copy + _STRIP * picture.width * min(int(rows), picture.height)
