"""Photos of phones and cameras: HEIF and JPEG XL through packages of their own, raw files not at all.

The packages are imported when a photo needs them, and only then. Content decides, not the name.
"""

import io
import warnings
from collections.abc import Callable
from typing import IO, Any, cast

from PIL import Image
from PIL.ImageFile import ImageFile

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.camera_raw import raw_kind
from llava_mini_cli.media.jxl_header import CODESTREAM, CONTAINER, read_jxl_header
from llava_mini_cli.needs import PHOTOS

HEAD = 64  # bytes of a file that tell what it is

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2"})  # of still pictures
_AVIF_BRANDS = frozenset({b"avif", b"avis"})  # Pillow's own; AVIF may call itself mif1 first


def open_photo(file: IO[bytes], head: bytes, suffix: str) -> ImageFile | None:
    """The picture's header; None for a file of another kind, and for a moving JPEG XL picture, which is a video.

    Args:
        head: the file's first `HEAD` bytes. suffix: of its name, such as .nef.

    Raises:
        MediaError: of kind unsupported_codec: the package is not installed, or it is a raw file. What Pillow raises
            about pictures that are damaged.
    """
    raw = raw_kind(file, head, suffix)
    if raw is not None:
        raise MediaError(
            "unsupported_codec",
            f"a camera raw file ({raw}): it is not developed here, and the preview that is embedded in it is not used; "
            "convert it to JPEG, PNG or TIFF first",
        )
    if _is_heif(head):
        file.seek(0)
        return _heif_opener()(file)
    if head.startswith((CODESTREAM, CONTAINER)):
        if read_jxl_header(file).is_animated:
            return None
        _jxl_opener()
        file.seek(0)
        return JxlPicture(file)
    return None


def _is_heif(head: bytes) -> bool:
    """True of a still picture in a HEIF container, AVIF aside; sequences of pictures are videos."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[at : at + 4] for at in range(16, length - 3, 4)}
    return head[8:12] in _HEIF_BRANDS and not (brands & _AVIF_BRANDS and not brands & {b"heic", b"heix"})


def _heif_opener() -> Callable[[IO[bytes]], ImageFile]:
    """Raises `MediaError` where its package is not installed."""
    try:
        from pillow_heif import HeifImageFile  # pyright: ignore[reportUnknownVariableType]
    except ImportError:
        raise MediaError("unsupported_codec", f"HEIC and HEIF need pillow-heif: {PHOTOS.install}") from None
    return cast("Callable[[IO[bytes]], ImageFile]", HeifImageFile)


def _jxl_opener() -> Callable[[IO[bytes]], Any]:
    """Raises `MediaError` where its package is not installed."""
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile  # pyright: ignore
    except ImportError:
        raise MediaError("unsupported_codec", f"JPEG XL needs pillow-jxl-plugin: {PHOTOS.install}") from None
    return cast("Callable[[IO[bytes]], Any]", JXLImageFile)


class JxlPicture(ImageFile):
    """A still JPEG XL picture that is decoded when it is loaded; the package's own class decodes when it is opened."""

    format = "JXL"
    format_description = "JPEG XL"

    def _open(self) -> None:
        assert self.fp is not None
        header = read_jxl_header(self.fp)
        self._size = (header.width, header.height)
        self._mode = "RGB"  # until it is loaded

    def load(self) -> "Image.core.PixelAccess | None":
        if self.fp is not None:
            self.fp.seek(0)
            data = io.BytesIO(self.fp.read())
            self.fp = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # floats of 16 bits become floats of 32
                try:
                    decoded = _jxl_opener()(data)
                except RuntimeError:  # all that its decoder ever says, at length
                    raise ValueError("cut short or broken") from None
                decoded.load()
            self.im, self._mode, self._size = decoded.im, decoded.mode, decoded.size
            if decoded.jpeg:  # made of a JPEG, as which it was given back; otherwise it is upright already
                self.info.update(decoded.info)
        return super().load()
