"""There is room to decode: what is reserved for a picture is what decoding it takes in its process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 - registers itself
import pytest
from PIL import Image

WIDTH, HEIGHT = 1800, 1400
PEAK = """
import sys
from pathlib import Path
from PIL import Image
from llava_mini_cli.media.image import Upright, open_picture
from llava_mini_cli.media.picture_bytes import decode_bytes
from llava_mini_cli.media.still import decode
from llava_mini_cli.pieces import PieceLayout, pieces

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

Image.init()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
path = Path(sys.argv[1])
picture = open_picture(path.open("rb"))
room = decode_bytes(picture, path.stat().st_size, False)
picture, _ = decode(picture, lambda: path.open("rb"), "", False)
pieces(Upright(picture), PieceLayout(336, (336, 336), 2, True))
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
        ("tiff", "RGB", {"compression": "tiff_lzw"}),
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
        quick = {"preset": "ultrafast"}
        pillow_heif.from_pillow(heavy(mode)).save(path, **settings, exif=exif.tobytes(), enc_params=quick)
    else:
        heavy(mode).save(path, **settings, **({} if suffix in ("jp2", "jxl") else {"exif": exif}))
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    peak, room = map(int, done.stdout.split())
    assert room / 4 < peak <= room
