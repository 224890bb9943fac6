"""Odd EXIF makes no picture a bad one, damage is told however a picture is looked at."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import media_films as films
import numpy as np
import pillow_jxl  # noqa: F401 - registers itself
import pytest
from PIL import Image

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.job import Job
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.pipelines.forecast import forecast
from llava_mini_cli.pipelines.settings import RunOptions

PICTURE = films.numbered(341, 60, 40)


def orientation(kind: int, count: int, value: bytes) -> bytes:
    """An EXIF block whose only tag is an orientation of some TIFF type."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, kind, count) + value + bytes(4)


ODD_EXIF = {
    "words": orientation(2, 4, b"abc\0"),
    "undefined bytes": orientation(7, 3, b"\xff\xfe\xfd\0"),
    "no tiff": b"Exif\0\0" + b"not a TIFF header, nor anything else",
    "two bytes": b"Exif\0\0II",
    "over zero": orientation(5, 1, struct.pack("<I", 26)) + struct.pack("<II", 6, 0),
    "nine": orientation(3, 1, b"\x09\0\0\0"),
}


@pytest.mark.parametrize("exif", ODD_EXIF.values(), ids=ODD_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about EXIF, which the command line does not show
def test_odd_exif_makes_no_picture_a_bad_one(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = tmp_path / f"odd.{suffix}"
    Image.fromarray(PICTURE).save(path, exif=exif)
    assert (probe(path).width, probe(path).height) == (60, 40)
    with open_clip(path, SamplingOptions()) as clip:
        (chunk,) = clip
    assert films.number_in(chunk.pixels[0]) == 341


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_text_in_which_old_pngs_keep_exif_may_be_anything(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    text = b"tEXtRaw profile type exif\0\nexif\n8\nno hexadecimal number"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "odd.png").write_bytes(data[:33] + chunk + data[33:])
    assert probe(tmp_path / "odd.png").width == 60
    with open_clip(tmp_path / "odd.png", SamplingOptions()) as clip:
        np.testing.assert_array_equal(next(iter(clip)).pixels[0], PICTURE)


def truncated_png(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    return films.cut(folder / "whole.png", folder / "cut.png", 0.5)


def avif_without_its_picture(folder: Path) -> Path:
    path = folder / "odd.avif"
    Image.fromarray(PICTURE).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"pitm") + 8  # version and flags, then which item is the picture
    data[at : at + 2] = b"\0\x63"
    path.write_bytes(data)
    return path


def name_with_a_nul(folder: Path) -> Path:
    return folder / "a\0b.png"


@pytest.mark.parametrize(
    ("make", "kind"),
    [(truncated_png, "truncated"), (avif_without_its_picture, "corrupt"), (name_with_a_nul, "not_found")],
)
def test_what_is_wrong_is_told_however_a_picture_is_looked_at(
    tmp_path: Path, make: Callable[[Path], Path], kind: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(MediaError) as probed:
        probe(path)
    with pytest.raises(MediaError) as opened:
        open_clip(path, SamplingOptions())
    assert probed.value.kind == opened.value.kind == kind
    assert str(probed.value) == str(opened.value)
    options = RunOptions(ModelOptions("demo"), SamplingOptions(), GenerationOptions())
    assert dict(forecast(iter([Job(str(path), path.name, ())]), options, probe, None).unreadable) == {kind: 1}


def test_a_file_that_may_be_seen_and_not_opened_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "closed.png").write_bytes(b"?")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "closed.png")
    assert (caught.value.kind, str(caught.value)) == ("unreadable", "permission denied")
