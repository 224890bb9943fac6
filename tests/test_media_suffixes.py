"""Files that count in folders by their names are files that can be read."""

from pathlib import Path

import media_films as films
import numpy as np
import pytest
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.open import is_media_path, open_clip

HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none")
DV = ("-c:v", "dvvideo", "-s", "720x576", "-pix_fmt", "yuv420p", "-r", "25")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.dv", (*DV, "-f", "dv")),
        ("a.qt", (*films.H264, "-f", "mov")),
        ("a.f4v", films.H264),
        ("a.264", (*films.H264, "-f", "h264")),
        ("a.265", (*HEVC, "-f", "hevc")),
        ("a.3gpp", (*films.H264, "-f", "3gp")),
        ("a.m2t", (*films.H264, "-f", "mpegts")),
        ("A.M1V", ("-c:v", "mpeg1video", "-q:v", "2", "-f", "mpeg1video")),
    ],
)
def test_videos(tmp_path: Path, name: str, how: tuple[str, ...]) -> None:
    films.film(tmp_path / name, 50, *how, fps="25")
    assert is_media_path(tmp_path / name)
    with open_clip(tmp_path / name, SamplingOptions()) as clip:
        assert clip.info.kind == "video"
        assert [films.number_in(frame) for chunk in clip for frame in chunk.pixels] == [12, 36]


@pytest.mark.parametrize("name", ["a.j2k", "a.j2c", "a.jpx", "a.apng", "a.pnm"])
def test_pictures(tmp_path: Path, name: str) -> None:
    picture = films.numbered(341, 60, 40)
    form = {"apng": "PNG", "pnm": "PPM"}.get(name[2:], "JPEG2000")
    Image.fromarray(picture).save(tmp_path / name, form, **({"no_jp2": True} if name in ("a.j2k", "a.j2c") else {}))
    assert is_media_path(tmp_path / name)
    with open_clip(tmp_path / name, SamplingOptions()) as clip:
        assert clip.info.kind == "image"
        np.testing.assert_array_equal(next(iter(clip)).pixels[0], picture)


@pytest.mark.parametrize("name", ["a.txt", "mp4", ".mp4", "a.", "a.mp4.part", "a.mp3", "a.psd"])
def test_other_files(name: str) -> None:
    assert not is_media_path(name)
