"""A still picture decoded as far as its file goes, and one line about what is missing of it.

Decoders differ in what they do with a picture that is cut short: some raise, some fill it with grey or black and say
nothing. Knows nothing of the process that asks.
"""

from collections.abc import Callable
from typing import IO

from PIL import Image, ImageFile

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.image import BROKEN, broken, open_picture
from llava_mini_cli.media.rows_there import Marks, jpeg_missing, jpeg_rows

_JPEG = frozenset({"JPEG", "MPO"})
_NOT_IN_PART = frozenset({"HEIF"})  # what is cut short comes out black, all of it
_MADE_UP = "what is missing was made up"

OpenFile = Callable[[], IO[bytes]]  # the picture's file, opened once more


def decode(
    picture: Image.Image, open_file: OpenFile, suffix: str, allow_truncated: bool
) -> tuple[Image.Image, str | None]:
    """Decodes a picture, perhaps after opening it anew, and tells what of it is missing.

    Raises:
        MediaError: it is damaged; or cut short, unless that is allowed and some of it is there. MemoryError.
    """
    marks = Marks(picture, whole=False)
    try:
        picture.load()
    except BROKEN as error:
        failure = broken(error)
        if not allow_truncated or failure.kind != "truncated" or picture.format in _NOT_IN_PART:
            raise failure from None
        return _salvaged(picture, open_file, suffix, failure)
    if marks.is_missing():
        again, marks = _decoded_again(picture, open_file, suffix)
        return again, _short(marks.rows_written(), again.height) if marks.is_missing() else None
    if picture.format in _JPEG:
        with open_file() as file:
            missing = jpeg_missing(file, picture)
        if isinstance(missing, int):
            return picture, _short(missing, picture.height)
        return picture, missing and f"the picture is cut short: {missing}"
    return picture, None


def _short(rows: int | None, height: int) -> str:
    """The warning about a picture whose decoder did not notice its early end. Raises `MediaError` if none is there."""
    if rows == 0:
        raise MediaError("truncated", f"the picture is cut short: none of its {height} rows is there")
    there = "not all of it is there" if rows is None else f"{rows} of {height} rows are there"
    return f"the picture is cut short: {there}; {_MADE_UP}"


def _salvaged(
    picture: Image.Image, open_file: OpenFile, suffix: str, failure: MediaError
) -> tuple[Image.Image, str | None]:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        again, marks = _decoded_again(picture, open_file, suffix)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    rows = marks.rows_written()
    if again.format in _JPEG:
        with open_file() as file:
            rows = jpeg_rows(file, again)
    there = "" if rows is None else f": {rows} of {again.height} rows are there"
    return again, f"{failure}{there}; {_MADE_UP}"


def _decoded_again(picture: Image.Image, open_file: OpenFile, suffix: str) -> tuple[Image.Image, Marks]:
    """The picture decoded once more, with marks where nothing was written."""
    picture.close()  # before another one takes as much
    try:
        again = open_picture(open_file(), suffix)
        assert again is not None
        marks = Marks(again, whole=True)
        again.load()
    except BROKEN as error:
        raise broken(error) from None
    return again, marks
