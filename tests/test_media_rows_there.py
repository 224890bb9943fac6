"""What is missing of a picture is said, also where its decoder says nothing."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.open import open_clip

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)).resize((300, 200))
SHORT = "the picture is cut short: {} of 200 rows are there; what is missing was made up"
JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "444": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True, "quality": 30},
}


def saved(kind: str, picture: Image.Image = NOISE, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def said(path: Path, data: bytes, **options: Any) -> list[str]:
    path.write_bytes(data)
    with open_clip(path, SamplingOptions(**options)) as clip:
        list(clip)
    return clip.warnings


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, mode: str = "RGB", passes: int = 0) -> bytes:
    """A PNG whose data ends properly after some rows, or, interlaced, after some passes (which are black)."""
    picture = NOISE.convert(mode)
    kind, depth = {"L": (0, 1), "RGB": (2, 3), "RGBA": (6, 4)}[mode]
    header = struct.pack(">IIBBBBB", 300, 200, 8, kind, 0, 0, int(passes > 0))
    data = b"".join(b"\0" + picture.crop((0, y, 300, y + 1)).tobytes() for y in range(rows))
    for left, top, across, down in ADAM7[:passes]:
        data += len(range(top, 200, down)) * (b"\0" + len(range(left, 300, across)) * bytes(depth))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@pytest.mark.parametrize("how", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_jpeg_that_ends_early_with_a_proper_end(tmp_path: Path, how: dict[str, Any], share: float) -> None:
    whole = saved("JPEG", **how)
    (warning,) = said(tmp_path / "a.jpg", whole[: int(share * len(whole))].rstrip(b"\xff") + b"\xff\xd9")
    rows = int(warning.split(":")[1].split()[0])
    assert warning == SHORT.format(rows)
    assert abs(rows - 200 * share) < 30


@pytest.mark.parametrize("how", [*JPEGS.values(), {"progressive": True}], ids=[*JPEGS, "progressive"])
@pytest.mark.parametrize("plain", ["none", "bottom", "all"])
def test_a_whole_jpeg_is_not_suspected(tmp_path: Path, how: dict[str, Any], plain: str) -> None:
    picture = NOISE.copy()
    if plain != "none":
        picture.paste(
            (255, 255, 255) if plain == "bottom" else (9, 90, 30), (0, 120 if plain == "bottom" else 0, 300, 200)
        )
    assert said(tmp_path / "a.jpg", saved("JPEG", picture, **how)) == []


def test_a_jpeg_of_a_few_bytes_that_claims_to_be_large(tmp_path: Path) -> None:
    data = saved("JPEG", Image.new("RGB", (16, 16)))
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(MediaError) as caught:
        said(tmp_path / "a.jpg", data[:at] + struct.pack(">HH", 13000, 13000) + data[at + 4 :])
    assert len(data) < 700
    assert caught.value.kind == "truncated"
    assert str(caught.value) == "the picture is cut short: none of its 13000 rows is there"


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_progressive_jpeg_without_its_later_scans(tmp_path: Path, share: float) -> None:
    whole = saved("JPEG", progressive=True)
    data = whole[: int(share * len(whole))].rstrip(b"\xff") + b"\xff\xd9"
    assert said(tmp_path / "a.jpg", data) == ["the picture is cut short: the scans that hold its details are missing"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("rows", [1, 150, 199, 200])
def test_a_png_whose_data_ends_early_with_a_proper_end(tmp_path: Path, mode: str, rows: int) -> None:
    assert said(tmp_path / "a.png", png(rows, mode=mode)) == ([] if rows == 200 else [SHORT.format(rows)])
    with open_clip(tmp_path / "a.png", SamplingOptions()) as clip:
        pixels = next(iter(clip)).pixels[0]
    np.testing.assert_array_equal(pixels[:rows], np.asarray(NOISE.convert(mode).convert("RGB"))[:rows])
    assert not pixels[rows:].any()


@pytest.mark.parametrize("passes", [5, 6, 7])
def test_an_interlaced_png_without_its_last_pass(tmp_path: Path, passes: int) -> None:
    warning = "the picture is cut short: not all of it is there; what is missing was made up"
    assert said(tmp_path / "a.png", png(0, passes=passes)) == ([] if passes == 7 else [warning])


@pytest.mark.parametrize("colour", [0, 93, 255])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_plain_png_is_whole(tmp_path: Path, mode: str, colour: int) -> None:
    ink = colour if mode in ("1", "L", "P", "I;16") else (colour,) * len(mode)
    assert said(tmp_path / "a.png", saved("PNG", Image.new(mode, (30, 20), ink))) == []


def test_a_gif_that_stops_at_some_row(tmp_path: Path) -> None:
    data = saved("GIF", NOISE.quantize(256), optimize=False)
    assert said(tmp_path / "a.gif", data) == []
    end = data.index(b",\0\0\0\0" + struct.pack("<HH", 300, 200)) + 11  # where its pixels begin, in pieces
    for _ in range(60):
        end += 1 + data[end]
    with pytest.raises(MediaError) as caught:
        said(tmp_path / "a.gif", data[:end] + b"\0;")
    assert caught.value.kind in ("truncated", "corrupt")


@pytest.mark.parametrize(("kind", "make"), [("JPEG", lambda: saved("JPEG")), ("PNG", lambda: saved("PNG"))])
def test_what_there_is_of_a_cut_picture_is_counted(tmp_path: Path, kind: str, make: Callable[[], bytes]) -> None:
    data = make()
    (warning,) = said(tmp_path / "a", data[: int(0.6 * len(data))], allow_truncated=True)
    rows = int(warning.rpartition(": ")[2].split()[0])
    assert abs(rows - 120) < 25
    assert warning.startswith("the picture is cut short (image file is truncated")
    assert warning.endswith(f": {rows} of 200 rows are there; what is missing was made up")
