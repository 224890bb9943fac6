"""WebP pictures: their decoder sets canvases aside as soon as it is made, which is reserved by the size in the head."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.media.picture_head import HEAD, webp_size
from llava_mini_cli.media.picture_pool import POOL


def webp(width: int, height: int, *, lossless: bool = False, frames: int = 1) -> bytes:
    file, picture = io.BytesIO(), Image.new("RGB", (width, height), (9, 9, 9))
    more = [Image.new("RGB", (width, height), (200, 99, 10 * place)) for place in range(1, frames)]
    picture.save(file, "WEBP", method=0, lossless=lossless, save_all=frames > 1, append_images=more)
    return file.getvalue()


def seen(path: Path) -> list[int]:
    with open_clip(path, SamplingOptions()) as clip:
        return next(iter(clip)).pixels[0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (webp(300, 70), (300, 70)),
        (webp(300, 70, lossless=True), (300, 70)),
        (webp(300, 70, frames=2), (300, 70)),
        (webp(300, 70)[:18], (0, 0)),
        (webp(300, 70).replace(b"VP8 ", b"VP8Q"), (0, 0)),
        (b"GIF89a" + webp(300, 70), (0, 0)),
    ],
)
def test_size_in_the_head_of_a_webp(content: bytes, size: tuple[int, int]) -> None:
    assert webp_size(content[:HEAD]) == size


@pytest.mark.parametrize("frames", [1, 2])
def test_a_photo_of_25_megapixels_is_opened_by_a_process_that_opened_nothing_before(
    tmp_path: Path, frames: int
) -> None:
    POOL.close()
    path = tmp_path / "photo.webp"
    path.write_bytes(webp(5000, 5000, lossless=True, frames=frames))
    assert seen(path) == [9, 9, 9]


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        (9000, "decoding a WEBP picture of 9000x9000 pixels takes 2.4 GiB; one picture may take 1 GiB"),
        (12000, "opening a WEBP picture of 12000x12000 pixels takes 1.2 GiB; one picture may take 1 GiB"),
        (1 << 24, "opening a WEBP picture of 16777216x16777216 pixels takes 2097152.1 GiB; one picture may take 1 GiB"),
    ],
)
def test_a_webp_that_takes_too_much_says_so(tmp_path: Path, edge: int, words: str) -> None:
    content = bytearray(webp(40, 40, frames=2))
    content[24:30] = 2 * struct.pack("<I", edge - 1)[:3]
    (tmp_path / "bomb.webp").write_bytes(content)
    with pytest.raises(MediaError) as caught:
        seen(tmp_path / "bomb.webp")
    assert (caught.value.kind, str(caught.value)) == ("too_large", words)
