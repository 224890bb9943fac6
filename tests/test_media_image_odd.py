"""Odd EXIF makes no picture a bad one, damage is told however a picture is looked at, and there is room to decode."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pillow_heif
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
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "closed.png").write_bytes(b"?")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "closed.png")
    assert (caught.value.kind, str(caught.value)) == ("unreadable", "permission denied")


# Room


WIDTH, HEIGHT = 1500, 1000
PEAK = """
import sys
from pathlib import Path
from PIL import Image
from llava_mini_cli.media.image import PictureClip, open_picture, picture_bytes

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

Image.init()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
picture = open_picture(Path(sys.argv[1]))
room = picture_bytes(picture)
clip = PictureClip(Path(sys.argv[1]), picture)
print(resident("VmHWM") - before, room)
"""


def heavy(mode: str) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    if mode == "P":
        return Image.fromarray(noise[..., :3].copy()).quantize(256)
    if mode == "I;16":
        return Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    if mode == "F":
        return Image.fromarray(noise[..., 0].astype(np.float32))
    return Image.fromarray(noise).convert(mode)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a part of a process's life")
@pytest.mark.parametrize(
    ("suffix", "mode", "settings"),
    [
        ("jpg", "RGB", {}),
        ("jpg", "RGB", {"progressive": True, "subsampling": 0, "quality": 30}),
        ("jpg", "CMYK", {}),
        ("png", "RGBA", {"compress_level": 1}),
        ("png", "P", {"compress_level": 1, "transparency": bytes(range(256))}),
        ("png", "I;16", {"compress_level": 1}),
        ("tiff", "F", {}),
        ("webp", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
        ("avif", "RGBA", {"speed": 10, "quality": 90, "subsampling": "4:4:4"}),
        ("jp2", "RGBA", {}),
        ("heic", "RGBA", {"quality": 50}),
        ("heic", "RGB", {"quality": 90, "chroma": 444}),
        ("jxl", "RGBA", {"lossless": True, "effort": 1}),
        ("jxl", "RGB", {"quality": 90, "effort": 1}),
        ("jxl", "F", {"lossless": True, "effort": 1}),
    ],
)
def test_the_room_kept_for_a_picture_is_what_decoding_takes(
    tmp_path: Path, suffix: str, mode: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / f"heavy.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix == "heic":
        pillow_heif.from_pillow(heavy(mode)).save(path, **settings, exif=exif.tobytes())
    else:
        heavy(mode).save(path, **settings, **({} if suffix in ("jp2", "jxl") else {"exif": exif}))
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    peak, room = map(int, done.stdout.split())
    assert room / 2.5 < peak <= room
