"""Pictures and animations through Pillow, for the process that decodes them: upright RGB with 8 bits a channel.

Reads from an open file and opens none, so that it works where no file can be opened. Knows nothing of video containers,
nor of the process that asks.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from llava_mini_cli.errors import MediaError, kind_of
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.phone_photos import HEAD, open_photo
from llava_mini_cli.media.png_text import without_bulk
from llava_mini_cli.pieces import bands

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # with a signature
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 537 MB as RGB

_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # TIFF and MPO have pages, not frames: the first one is taken
_DEFAULT_MS = 100  # on display for a frame that says 0, as browsers do
_ORIENTATION_TAG = 0x0112
_PAGE_TAG, _IS_SMALLER_COPY = 254, 1  # NewSubfileType of TIFF
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS, _FROM_RIGHT, _FROM_BELOW = (5, 6, 7, 8), (2, 3, 7, 8), (3, 4, 6, 7)  # of these orientations, as stored
BROKEN = (  # what Pillow raises about pictures; `broken` says what is meant
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_picture(file: IO[bytes], suffix: str = "") -> Image.Image | None:
    """The picture's header, or None where the content is no picture.

    Args:
        file: opened for reading, at any position; stays open. suffix: of the file's name, which tells raw files apart.

    Raises:
        MediaError: the picture is damaged, too large, or of a kind that is not read. MemoryError.
    """
    file.seek(0)
    head = file.read(HEAD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            picture = open_photo(file, head, suffix)
            if picture is None:
                file.seek(0)
                picture = Image.open(without_bulk(file) or file, formats=FORMATS)
    except UnidentifiedImageError:
        return None
    except BROKEN as error:
        raise broken(error) from None
    if isinstance(picture, TiffImageFile):
        _seek_whole_page(picture)
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise _too_large(f"a picture of {picture.width}x{picture.height} pixels")
    return picture


def _seek_whole_page(picture: TiffImageFile) -> None:
    """Leaves a first page that says it is a smaller copy of another one for the first that does not."""
    try:
        for index in count() if picture.tag_v2.get(_PAGE_TAG, 0) & _IS_SMALLER_COPY else ():
            picture.seek(index)
            if not picture.tag_v2.get(_PAGE_TAG, 0) & _IS_SMALLER_COPY:
                return
    except BROKEN:
        picture.seek(0)  # all are, or what follows cannot be read


def is_animation(picture: Image.Image) -> bool:
    """True if the picture has several frames that are shown one after the other."""
    try:
        return picture.format in _ANIMATED and bool(getattr(picture, "is_animated", False))
    except BROKEN:
        return False  # the file ends within its first frame; reading that one tells how


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as displayed. Raises `MediaError`: a PNG is decoded, since EXIF may stand behind its pixels."""
    try:
        turned = orientation_of(picture) in _SWAPS and picture.format != "TIFF"  # whose size Pillow has swapped already
    except BROKEN as error:
        raise broken(error) from None
    return (picture.height, picture.width) if turned else (picture.width, picture.height)


class Upright:
    """A decoded picture, upright, of which RGB bands are made when they are asked for; a `pieces.Raster`.

    Their pixels are the result of Pillow's `convert("RGB")`, which the reference uses (transparency is dropped, not
    laid over white), except where that clips: grey of 16 or 32 bits and floats are scaled to 8 bits.
    """

    def __init__(self, picture: Image.Image) -> None:
        """Decodes the picture, if that was not done. Raises what Pillow raises about pictures."""
        picture.load()
        self._orientation = orientation_of(picture)  # after loading, since Pillow turns TIFF by itself
        self._picture = picture
        self._turned = self._orientation in _SWAPS
        self.width, self.height = picture.size[::-1] if self._turned else picture.size
        self._scale = _scale(picture) if is_deep(picture) else 1.0

    def band(self, rows: range, columns: range) -> Image.Image:
        """RGB pixels of some neighbouring rows and columns."""
        part = self._picture
        across, down = (rows, columns) if self._turned else (columns, rows)
        width, height = part.size
        left, right = across.start, across.stop
        top, bottom = down.start, down.stop
        if self._orientation in _FROM_RIGHT:
            left, right = width - right, width - left
        if self._orientation in _FROM_BELOW:
            top, bottom = height - bottom, height - top
        if (left, top, right, bottom) != (0, 0, width, height):
            part = part.crop((left, top, right, bottom))
        rgb = self._rgb(part)
        return rgb.transpose(_TURN[self._orientation]) if self._orientation in _TURN else rgb

    def _rgb(self, part: Image.Image) -> Image.Image:
        if is_deep(part):
            part = Image.fromarray(_eight_bits(part, self._scale))
        if part.mode == "P" and "transparency" in part.info:
            part = part.convert("RGBA")  # the same colours as directly, without Pillow's complaint
        return part if part.mode == "RGB" else part.convert("RGB")

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Fills `pixels`, `[height, width, 3]`, with the whole picture."""
        for rows in bands(self):
            pixels[rows.start : rows.stop] = np.asarray(self.band(rows, range(self.width)))


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """The whole of a picture, `[height, width, 3]`; see `Upright`."""
    upright = Upright(picture)
    pixels = np.empty((upright.height, upright.width, 3), np.uint8)
    upright.write(pixels)
    return pixels


def is_deep(picture: Image.Image) -> bool:
    """True for grey of more than 8 bits a channel."""
    return picture.mode.startswith(("I", "F"))


def _scale(picture: Image.Image) -> float:
    """The factor that brings deep grey to 8 bits: 16-bit values (and 32-bit ones in that range) lose their low byte,
    floats up to 1 are multiplied by 255."""
    step = max(1, (1 << 20) // picture.width)
    tops = range(0, picture.height, step)
    strips = (picture.crop((0, top, picture.width, min(top + step, picture.height))) for top in tops)
    if picture.mode == "F":
        return 255.0 if max(float(np.nanmax(np.asarray(one), initial=0.0)) for one in strips) <= 1.0 else 1.0
    if picture.mode != "I":
        return 256.0
    high = max(float(np.asarray(one).max(initial=0)) for one in strips)
    if high <= 0xFF:
        return 1.0
    return 256.0 if high <= 0xFFFF else (high + 1) / 256.0


def _eight_bits(picture: Image.Image, scale: float) -> NDArray[np.uint8]:
    """Deep grey as 8 bits."""
    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        values *= scale
        np.nan_to_num(values, copy=False)
    elif scale != 1.0:
        values //= scale
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def orientation_of(picture: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where EXIF is absent or cannot be read, which makes no picture a bad one."""
    if picture.format == "PNG" and "exif" not in picture.info:
        picture.load()  # as `getexif` would: a PNG that is cut short must not pass for one with odd EXIF
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - Pillow's reader of EXIF raises whatever it stumbles over
        return 1


def animation_times(picture: Image.Image, alive: Callable[[], None]) -> tuple[list[int], int, str | None]:
    """The milliseconds at which frames are shown, for how long the last one is, and why later frames cannot be had.

    Calls `alive` after each frame. Raises `MediaError` where there is not even a first frame.
    """
    starts: list[int] = []
    now, duration, trouble = 0, 0, None
    for index in count():
        try:
            picture.seek(index)
            picture.load()
        except EOFError:
            break  # how Pillow says that there are no more
        except BROKEN as error:
            if not starts:
                raise broken(error) from None
            trouble = f"the animation is damaged after {index} frames, which are all that was read ({line(error)})"
            break
        alive()
        starts.append(now)
        duration = round(float(picture.info.get("duration") or 0)) or _DEFAULT_MS
        now += duration
    if not starts:
        raise MediaError("empty", "the animation holds no frame")
    return starts, duration, trouble


def write_frames(
    picture: Image.Image, indices: Sequence[int], pixels: NDArray[np.uint8], alive: Callable[[], None]
) -> None:
    """Fills `pixels`, `[n, size, size, 3]`, with some frames of an animation, squashed like those of a video."""
    for place, index in enumerate(indices):
        try:
            picture.seek(index)
            frame = to_rgb(picture)
        except BROKEN as error:
            raise broken(error) from None
        rows, columns = (nearest_index(edge, pixels.shape[1]) for edge in frame.shape[:2])
        pixels[place] = frame[rows][:, columns]
        alive()


def _too_large(what: str) -> MediaError:
    return MediaError("too_large", f"{what} is larger than {MAX_PIXELS // 10**6} megapixels")


def broken(error: Exception) -> MediaError:
    """An exception of Pillow's, of a kind in `BROKEN`, as an item's error."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_large("the picture")
    if isinstance(error, OSError) and error.errno is not None:  # of the file itself, not of what it holds
        return MediaError(kind_of(error), (error.strerror or str(error)).lower())
    text = line(error)
    cut = any(word in text.lower() for word in ("truncated", "premature", "end of", "unexpected eof", "not enough"))
    if isinstance(error, EOFError) or cut:
        return MediaError("truncated", f"the picture is cut short ({text})")
    return MediaError("corrupt", f"the picture is damaged ({text})")


def line(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
