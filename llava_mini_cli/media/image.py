"""Pictures and animations as clips, through Pillow, in this process: upright RGB with 8 bits a channel.

A still picture is given at its own size. An animated GIF, WebP, PNG or AVIF is a short video whose frames are decoded
as they are read. Knows nothing of video containers.
"""

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from llava_mini_cli.errors import MediaError
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.phone_photos import HEAD, open_photo
from llava_mini_cli.media.png_text import without_bulk
from llava_mini_cli.media.timeline import Selection, Timeline

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # with a signature
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 537 MB as RGB

_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # TIFF and MPO have pages, not frames: the first one is taken
_MILLISECOND = Fraction(1, 1000)
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
# The most memory that decoding took, in bytes a pixel: the peak of a process of its own for each of 60 files of 6 and
# 12 megapixels, of all formats, modes and depths, noise among them, with and without EXIF's rotation. Up to three
# pictures of Pillow's (4 bytes a pixel), or two and an array, are there at once, and some codecs hold whole ones, too.
_MOST_BYTES = 16
_MOST_BYTES_DEEP = 20  # grey of more than 8 bits a channel, which passes through float64
_MOST_BYTES_OF = {"AVIF": 24, "HEIF": 24, "JPEG2000": 26, "JXL": 22, "WEBP": 24}
_MOST_BYTES_MOVING = 28  # with the canvas and the frame before
_NOT_IN_PART = frozenset({"HEIF"})  # what is cut short comes out black, all of it
_CODEC_BYTES = 1 << 20  # whatever the size
_READ_WHOLE = frozenset({"AVIF", "HEIF", "JXL", "WEBP"})  # files that Pillow holds in memory, twice for a moment
_BROKEN = (  # what Pillow raises about pictures; `_broken` says what is meant
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Salvage = Callable[[Path, MediaError], NDArray[np.uint8]]


def open_picture(path: Path) -> Image.Image | None:
    """The picture's header, or None where the content is no picture.

    Raises:
        MediaError: the picture is damaged, too large, or of a kind that is not read.
        OSError: the file cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            picture = open_photo(path, _head(path)) or Image.open(without_bulk(path) or path, formats=FORMATS)
    except UnidentifiedImageError:
        return None
    except _BROKEN as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the file itself, not of what it holds
        raise _broken(error) from None
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
    except _BROKEN:
        picture.seek(0)  # all are, or what follows cannot be read


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb", buffering=0) as file:
        return file.read(HEAD)


def is_animation(picture: Image.Image) -> bool:
    """True if the picture has several frames that are shown one after the other."""
    try:
        return picture.format in _ANIMATED and bool(getattr(picture, "is_animated", False))
    except _BROKEN:
        return False  # the file ends within its first frame; reading that one tells how


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as displayed. Raises `MediaError`: a PNG is decoded, since EXIF may stand behind its pixels."""
    try:
        orientation = _orientation(picture)
    except _BROKEN as error:
        raise _broken(error) from None
    turned = orientation in (5, 6, 7, 8) and picture.format != "TIFF"  # whose size Pillow has swapped already
    return (picture.height, picture.width) if turned else (picture.width, picture.height)


def picture_bytes(picture: Image.Image) -> int:
    """The most bytes that decoding a still picture holds, told from its header; 30 MB more if the file is a text."""
    most = max(_MOST_BYTES_OF.get(picture.format or "", _MOST_BYTES), _MOST_BYTES_DEEP if _is_deep(picture) else 0)
    return most * picture.width * picture.height + _file_bytes(picture) + _CODEC_BYTES


def animation_bytes(picture: Image.Image) -> int:
    """The most bytes that decoding one frame of an animation holds, told from its header."""
    return _MOST_BYTES_MOVING * picture.width * picture.height + _file_bytes(picture) + _CODEC_BYTES


def _file_bytes(picture: Image.Image) -> int:
    """The bytes that Pillow holds of the file itself."""
    if picture.format not in _READ_WHOLE:
        return 0
    assert isinstance(picture, ImageFile)
    assert picture.fp is not None
    return 2 * os.fstat(picture.fp.fileno()).st_size


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Upright RGB `[height, width, 3]`.

    The result of Pillow's `convert("RGB")`, which the reference uses (transparency is dropped, not laid over white),
    except where that clips: grey of 16 or 32 bits and floats are scaled to 8 bits.
    """
    picture.load()
    orientation = _orientation(picture)  # after loading, since Pillow turns TIFF by itself
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours as directly, without Pillow's complaint
    plain = Image.fromarray(_eight_bits(picture)) if _is_deep(picture) else picture
    rgb = plain if plain.mode == "RGB" else plain.convert("RGB")
    if orientation in _TURN:
        rgb = rgb.transpose(_TURN[orientation])
    return np.array(rgb)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode.startswith(("I", "F"))


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Deep grey as 8 bits: 16-bit values (and 32-bit ones in that range) lose their low byte, floats up to 1 are
    multiplied by 255."""
    values = np.asarray(picture).astype(np.float64)
    # In place from here on: each copy of these numbers is eight times the grey picture.
    if picture.mode == "F":
        values *= 255.0 if np.nanmax(values, initial=0.0) <= 1.0 else 1.0
        np.nan_to_num(values, copy=False)
    else:
        high = values.max(initial=0.0)
        if picture.mode != "I" or high > 0xFF:
            values //= 256.0 if high <= 0xFFFF else (high + 1) / 256.0
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where EXIF is absent or cannot be read, which makes no picture a bad one."""
    if picture.format == "PNG" and "exif" not in picture.info:
        picture.load()  # as `getexif` would: a PNG that is cut short must not pass for one with odd EXIF
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - Pillow's reader of EXIF raises whatever it stumbles over
        return 1


class PictureClip(Clip):
    """One still picture; a `Clip` whose only chunk is `[1, height, width, 3]`."""

    def __init__(self, path: Path, picture: Image.Image, salvage: Salvage | None = None) -> None:
        """`salvage` reads the part that is there of a picture that is cut short; None: such a picture is an error."""
        warning = None
        with picture:
            try:
                pixels = to_rgb(picture)
            except _BROKEN as error:
                broken = _broken(error)
                if salvage is None or broken.kind != "truncated" or picture.format in _NOT_IN_PART:
                    raise broken from None
                pixels, warning = salvage(path, broken), f"{broken}; what is missing was made up"
        height, width = pixels.shape[:2]
        self._pixels: NDArray[np.uint8] | None = pixels
        self.info = ClipInfo(str(path), "image", width, height, None, 1, None, (picture.format or "").lower())
        self.warnings: list[str] = [] if warning is None else [warning]

    def __iter__(self) -> Iterator[FrameChunk]:
        if self._pixels is not None:
            yield FrameChunk(self._pixels[None], np.zeros(1))

    def close(self) -> None:
        """Lets go of the pixels."""
        self._pixels = None


def animation_timeline(picture: Image.Image, alive: Callable[[], None]) -> tuple[Timeline, str | None]:
    """The times at which frames are shown, and the reason why later frames cannot be had, if there is one.

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
        except _BROKEN as error:
            if not starts:
                raise _broken(error) from None
            trouble = f"the animation is damaged after {index} frames, which are all that was read ({_line(error)})"
            break
        alive()
        starts.append(now)
        duration = round(float(picture.info.get("duration") or 0)) or _DEFAULT_MS
        now += duration
    if not starts:
        raise MediaError("empty", "the animation holds no frame")
    return Timeline(np.array(starts, np.int64), _MILLISECOND, duration), trouble


class AnimationClip(Clip):
    """The sampled frames of an animation, squashed like those of a video; a `Clip`."""

    def __init__(
        self, info: ClipInfo, picture: Image.Image, selection: Selection, frame_size: int, chunk_frames: int
    ) -> None:
        self.info = info
        self.warnings: list[str] = []
        self._picture = picture
        self._selection = selection
        self._frame_size = frame_size
        self._chunk_frames = chunk_frames

    def __iter__(self) -> Iterator[FrameChunk]:
        for begin in range(0, len(self._selection), self._chunk_frames):
            part = slice(begin, begin + self._chunk_frames)
            pixels = [self._frame(int(index)) for index in self._selection.indices[part]]
            yield FrameChunk(np.stack(pixels), self._selection.times[part])
        self.close()

    def _frame(self, index: int) -> NDArray[np.uint8]:
        try:
            self._picture.seek(index)
            frame = to_rgb(self._picture)
        except _BROKEN as error:
            raise _broken(error) from None
        rows, columns = (nearest_index(edge, self._frame_size) for edge in frame.shape[:2])
        return frame[rows][:, columns]

    def close(self) -> None:
        """Closes the file."""
        self._picture.close()


def _too_large(what: str) -> MediaError:
    return MediaError("too_large", f"{what} is larger than {MAX_PIXELS // 10**6} megapixels")


def _broken(error: Exception) -> MediaError:
    """An exception of Pillow's, of a kind in `_BROKEN`, as an item's error."""
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return _too_large("the picture")
    text = _line(error)
    cut = any(word in text.lower() for word in ("truncated", "premature", "end of", "unexpected eof", "not enough"))
    if isinstance(error, EOFError) or cut:
        return MediaError("truncated", f"the picture is cut short ({text})")
    return MediaError("corrupt", f"the picture is damaged ({text})")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
