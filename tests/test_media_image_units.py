"""The room that decoding a picture takes, deep grey, animations frame by frame, and Pillow's errors: exact values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import image as module
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.media.image import (
    PictureClip,
    animation_bytes,
    animation_timeline,
    is_animation,
    open_picture,
    picture_bytes,
    to_rgb,
)

CODEC = 1 << 20


def blank(kind: str, mode: str = "RGB") -> Image.Image:
    picture = Image.new(mode, (10, 5))
    picture.format = kind
    return picture


@pytest.mark.parametrize(
    ("kind", "mode", "each"),
    [("PNG", "RGB", 16), ("PNG", "I;16", 20), ("TIFF", "F", 20), ("JPEG2000", "RGB", 26), ("JPEG2000", "I;16", 26)],
)
def test_the_room_of_a_picture_by_its_kind_and_depth(kind: str, mode: str, each: int) -> None:
    assert picture_bytes(blank(kind, mode)) == 50 * each + CODEC
    assert animation_bytes(blank(kind, mode)) == 50 * 28 + CODEC


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_a_file_that_is_held_whole_is_counted_twice(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (10, 5)).save(path)
    picture = open_picture(path)
    assert picture is not None
    with picture:
        assert picture_bytes(picture) == 50 * 24 + 2 * path.stat().st_size + CODEC
        assert animation_bytes(picture) == 50 * 28 + 2 * path.stat().st_size + CODEC


@pytest.mark.parametrize(
    ("kind", "values", "grey"),
    [
        (np.uint16, [0, 255, 256, 65535], [0, 0, 1, 255]),
        (np.uint16, [0, 100, 200, 255], [0, 0, 0, 0]),
        (np.int32, [0, 100, 200, 255], [0, 100, 200, 255]),
        (np.int32, [-7, 0, 255, 256], [0, 0, 0, 1]),
        (np.int32, [0, 256, 512, 65535], [0, 1, 2, 255]),
        (np.int32, [0, 256, 512, 65536], [0, 0, 1, 255]),
        (np.int32, [0, 512, 1023, 0x1FFFF], [0, 1, 1, 255]),
        (np.float32, [0, 0.5, 1.0, -1], [0, 127, 255, 0]),
        (np.float32, [0, 0.5, 1.5, 300], [0, 0, 1, 255]),
        (np.float32, [np.nan, 0.25, 1.0, 0], [0, 63, 255, 0]),
    ],
)
def test_deep_grey_as_8_bits(kind: Any, values: list[float], grey: list[int]) -> None:
    shown = to_rgb(Image.fromarray(np.array([values], kind)))
    assert shown.dtype == np.uint8
    assert shown[0].tolist() == [[value] * 3 for value in grey]


def test_what_is_no_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green")]
    for suffix, moving in (("gif", True), ("tiff", False)):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / f"a.{suffix}") as picture:
            assert is_animation(picture) is moving
    assert is_animation(blank("GIF")) is False


class Moving:
    """An animation of frames with these durations; an exception in a duration's place is raised for its frame."""

    def __init__(self, *frames: object) -> None:
        self.frames = frames
        self.info: dict[str, object] = {}

    def seek(self, index: int) -> None:
        if index == len(self.frames):
            raise EOFError("no more")
        self.info = {} if self.frames[index] is None else {"duration": self.frames[index]}

    def load(self) -> None:
        if isinstance(self.info.get("duration"), Exception):
            raise self.info["duration"]  # type: ignore[misc]


def shown(*frames: object) -> tuple[list[int], float, str | None, int]:
    """Milliseconds at which frames are shown, seconds in all, the trouble, and how often life was shown."""
    signs: list[str] = []
    picture: Any = Moving(*frames)
    timeline, trouble = animation_timeline(picture, lambda: signs.append("alive"))
    assert timeline.time_base.denominator == 1000
    return timeline.pts.tolist(), float(timeline.duration), trouble, len(signs)


def test_when_the_frames_of_an_animation_are_shown() -> None:
    assert shown(500, 0, None, 33.4, 40) == ([0, 500, 600, 700, 733], 0.773, None, 5)
    assert shown(0) == ([0], 0.1, None, 1)


def test_a_damaged_animation_is_its_beginning() -> None:
    text = "the animation is damaged after 2 frames, which are all that was read (bad LZW code)"
    assert shown(100, 200, OSError("bad\n LZW code"), 100) == ([0, 100], 0.3, text, 2)
    with pytest.raises(MediaError, match="damaged") as caught:
        shown(OSError("bad"))
    assert caught.value.kind == "corrupt"
    with pytest.raises(MediaError) as empty:
        shown()
    assert (empty.value.kind, str(empty.value)) == ("empty", "the animation holds no frame")


class Broken:
    """A PNG that raises this when it is loaded."""

    format, info, mode = "PNG", {"exif": b""}, "RGB"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.closed = False

    def __enter__(self) -> "Broken":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def load(self) -> None:
        raise self.error


ERRORS = [
    (MemoryError(), "too_large", "the picture is larger than 178 megapixels"),
    (Image.DecompressionBombError("bomb"), "too_large", "the picture is larger than 178 megapixels"),
    (OSError("image file is truncated (3 bytes)"), "truncated", "is cut short (image file is truncated (3 bytes))"),
    (OSError("Premature end"), "truncated", "is cut short (Premature end)"),
    (ValueError("end of data"), "truncated", "is cut short (end of data)"),
    (ValueError("unexpected EOF"), "truncated", "is cut short (unexpected EOF)"),
    (ValueError("not enough image data"), "truncated", "is cut short (not enough image data)"),
    (EOFError(), "truncated", "is cut short (EOFError)"),
    (SyntaxError("broken \n PNG"), "corrupt", "is damaged (broken PNG)"),
    (KeyError(7), "corrupt", "is damaged (7)"),
    (ZeroDivisionError(), "corrupt", "is damaged (ZeroDivisionError)"),
]


@pytest.mark.parametrize(("error", "kind", "text"), ERRORS, ids=[repr(error) for error, _, _ in ERRORS])
def test_pillows_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, text: str
) -> None:
    picture: Any = Broken(error)
    with pytest.raises(MediaError) as caught:
        PictureClip(Path("a.png"), picture)
    assert caught.value.kind == kind
    assert str(caught.value) == (text if kind == "too_large" else f"the picture {text}")
    assert picture.closed

    def refuse(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "a.png").write_bytes(b"?")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MediaError) as opened:
        open_picture(tmp_path / "a.png")
    assert opened.value.kind == kind


def test_what_is_no_picture_and_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"?")
    for error in (UnidentifiedImageError("?"), OSError(5, "Input/output error", "a.png")):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", refuse)
        if isinstance(error, UnidentifiedImageError):
            assert open_picture(tmp_path / "a.png") is None
        else:
            with pytest.raises(OSError, match="Input/output"):
                open_picture(tmp_path / "a.png")


@pytest.mark.parametrize(("width", "fits"), [(100, True), (101, False)])
def test_the_largest_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, fits: bool) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 1_000_000)
    Image.new("1", (width * 100, 100)).save(tmp_path / "a.png")
    if fits:
        picture = open_picture(tmp_path / "a.png")
        assert picture is not None
        picture.close()
    else:
        with pytest.raises(MediaError) as caught:
            open_picture(tmp_path / "a.png")
        assert str(caught.value) == "a picture of 10100x100 pixels is larger than 1 megapixels"


def test_what_is_left_of_a_picture_is_taken_with_a_warning() -> None:
    part = np.full((4, 6, 3), 9, np.uint8)
    asked: list[object] = []

    def salvage(path: Path, error: MediaError) -> np.ndarray:
        asked.append((path, error.kind))
        return part

    cut: Any = Broken(OSError("truncated"))
    clip = PictureClip(Path("a.png"), cut, salvage)
    assert asked == [(Path("a.png"), "truncated")]
    assert clip.warnings == ["the picture is cut short (truncated); what is missing was made up"]
    assert clip.info == ClipInfo("a.png", "image", 6, 4, None, 1, None, "png")
    bad: Any = Broken(OSError("odd"))
    with pytest.raises(MediaError, match="damaged"):
        PictureClip(Path("a.png"), bad, salvage)
    assert len(asked) == 1


@pytest.fixture
def clip(tmp_path: Path) -> Iterator[PictureClip]:
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "a.bmp")
    picture = open_picture(tmp_path / "a.bmp")
    assert picture is not None
    yield PictureClip(tmp_path / "a.bmp", picture)
    assert picture.fp is None


def test_a_picture_is_one_chunk_until_it_is_closed(clip: PictureClip) -> None:
    with clip:
        assert clip.ready() is True
        (chunk,) = clip
        assert chunk.pixels.tolist() == [[[[1, 2, 3]] * 6] * 4]
        assert chunk.times.tolist() == [0.0]
    assert list(clip) == []
    assert clip.warnings == []
