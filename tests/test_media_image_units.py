"""The room that decoding a picture takes, deep grey, animations frame by frame, and Pillow's errors: exact values."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, UnidentifiedImageError

from llava_mini_cli import pieces
from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import image as module
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.media.image import Upright, animation_times, is_animation, open_picture, to_rgb
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.media.picture_bytes import decode_bytes
from llava_mini_cli.media.still import decode
from llava_mini_cli.media.timeline import Timeline

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _palette(noise: Any) -> Image.Image:
    picture = Image.fromarray(noise[..., :3].copy()).quantize(16)
    picture.info["transparency"] = bytes(range(0, 256, 16))
    return picture


MODES: dict[str, Callable[[Any], Image.Image]] = {
    "RGB": lambda noise: Image.fromarray(noise[..., :3].copy()),
    "RGBA": Image.fromarray,
    "L": lambda noise: Image.fromarray(noise[..., 0].copy()),
    "1": lambda noise: Image.fromarray(noise[..., 0].copy()).convert("1"),
    "LA": lambda noise: Image.fromarray(noise).convert("LA"),
    "CMYK": lambda noise: Image.fromarray(noise, "CMYK"),
    "P": lambda noise: Image.fromarray(noise[..., :3].copy()).quantize(16),
    "transparent P": _palette,
    "I;16": lambda noise: Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
    "I": lambda noise: Image.fromarray(noise[..., 0].astype(np.int32) * 300),
    "F": lambda noise: Image.fromarray(noise[..., 0].astype(np.float32) / 255),
}


def blank(kind: str, mode: str = "RGB") -> Image.Image:
    picture = Image.new(mode, (10, 5))
    picture.format = kind
    return picture


@pytest.mark.parametrize(
    ("kind", "mode", "each", "band"),
    [("PNG", "RGB", 4, 24), ("PNG", "L", 1, 24), ("PNG", "I;16", 2, 40), ("TIFF", "F", 4, 40), ("WEBP", "RGB", 15, 24)],
)
def test_the_room_of_a_picture_by_its_kind_and_depth(kind: str, mode: str, each: int, band: int) -> None:
    whole = 1000 if kind == "WEBP" else 0  # a file that is held whole is counted twice
    assert decode_bytes(blank(kind, mode), 500, False) == 50 * (each + band) + (8 << 20) + whole
    assert decode_bytes(blank(kind, mode), 500, True) == 50 * (each + 16 + band) + (8 << 20) + whole


def test_a_jpeg_of_several_scans_needs_more() -> None:
    picture = blank("JPEG")
    picture.info["progressive"] = 1
    assert decode_bytes(picture, 500, False) == decode_bytes(blank("JPEG"), 500, False) + 50 * 6


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
    starts, duration, trouble = animation_times(picture, lambda: signs.append("alive"))
    timeline = Timeline(np.array(starts), Fraction(1, 1000), duration)
    return starts, float(timeline.duration), trouble, len(signs)


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

    def close(self) -> None:
        self.closed = True

    def load(self) -> None:
        raise self.error


ERRORS = [
    (OSError(5, "Input/output error"), "unreachable", "input/output error"),
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
        decode(picture, no_file, "", False)
    assert caught.value.kind == kind
    whole = kind in ("too_large", "unreachable")
    assert str(caught.value) == (text if whole else f"the picture {text}")

    def refuse(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "a.png").write_bytes(b"?")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MediaError) as opened:
        opened_in(tmp_path / "a.png")
    assert opened.value.kind == kind


def no_file() -> IO[bytes]:
    raise AssertionError("the file is not needed")


def opened_in(path: Path) -> Image.Image | None:
    with path.open("rb") as file:
        return open_picture(file)


def test_what_is_no_picture_and_what_has_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"?")
    for error in (UnidentifiedImageError("?"), MemoryError()):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", refuse)
        if isinstance(error, UnidentifiedImageError):
            assert opened_in(tmp_path / "a.png") is None
        else:
            with pytest.raises(MemoryError):
                opened_in(tmp_path / "a.png")


@pytest.mark.parametrize(("width", "fits"), [(100, True), (101, False)])
def test_the_largest_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, fits: bool) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 1_000_000)
    Image.new("1", (width * 100, 100)).save(tmp_path / "a.png")
    if fits:
        assert opened_in(tmp_path / "a.png") is not None
    else:
        with pytest.raises(MediaError) as caught:
            opened_in(tmp_path / "a.png")
        assert str(caught.value) == "a picture of 10100x100 pixels is larger than 1 megapixels"


def test_what_is_left_of_a_picture_is_taken_with_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "a.bmp")
    cut: Any = Broken(OSError("truncated"))
    with (tmp_path / "a.bmp").open("rb") as file:
        picture, warning = decode(cut, lambda: file, "", True)
    assert to_rgb(picture)[3, 5].tolist() == [1, 2, 3]
    assert warning == "the picture is cut short (truncated); what is missing was made up"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert cut.closed
    bad: Any = Broken(OSError("odd"))
    with pytest.raises(MediaError, match="damaged"):
        decode(bad, no_file, "", True)


def test_a_picture_is_one_chunk_until_it_is_closed(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "a.bmp")
    with open_clip(tmp_path / "a.bmp", SamplingOptions()) as clip:
        assert clip.ready() is True
        (chunk,) = clip
        assert chunk.pixels.tolist() == [[[[1, 2, 3]] * 6] * 4]
        assert chunk.times.tolist() == [0.0]
    assert list(clip) == []
    assert clip.warnings == []
    assert clip.info == ClipInfo(str(tmp_path / "a.bmp"), "image", 6, 4, None, 1, None, "bmp")


edges = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(edges, edges, st.integers(1, 8), st.sampled_from(sorted(MODES)), st.sampled_from([7, 1 << 20]))
def test_bands_are_what_pillow_makes_of_the_whole(height: int, width: int, turn: int, mode: str, band: int) -> None:
    """Whatever the mode and EXIF's orientation, and wherever the picture is cut into bands."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 4), np.uint8)
    picture = MODES[mode](noise)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.getexif = lambda: exif  # type: ignore[method-assign]
    plain = picture.convert("RGBA") if "transparency" in picture.info else picture
    if mode not in ("I", "I;16", "F"):
        turned = plain.convert("RGB")
        whole = np.asarray(turned.transpose(_TURN[turn]) if turn > 1 else turned)
    else:
        grey = to_rgb(MODES[mode](noise))
        whole = np.asarray(Image.fromarray(grey).transpose(_TURN[turn])) if turn > 1 else grey
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BAND_PIXELS", band)
        np.testing.assert_array_equal(to_rgb(picture), whole)
        upright = Upright(picture)
        rows, columns = range(upright.height // 3, upright.height), range(upright.width // 2, upright.width)
        np.testing.assert_array_equal(
            np.asarray(upright.band(rows, columns)), whole[rows.start : rows.stop, columns.start : columns.stop]
        )
