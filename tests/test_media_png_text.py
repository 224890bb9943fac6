"""PNGs are sound whatever their texts and colour profiles are; those that are large are not unpacked."""

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import media_films as films
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.image import open_picture, to_rgb
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.media.png_text import MAX_TEXT_BYTES, MAX_TEXTS_BYTES, Excerpt, without_bulk

PICTURE = films.numbered(341, 60, 40)
LARGE = 1_200_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed_text(folder: Path) -> Path:
    info = PngInfo()
    info.add_text("w", "x" * LARGE, zip=True)
    return saved(folder, pnginfo=info)


def packed_unicode(folder: Path) -> Path:
    info = PngInfo()
    info.add_itxt("w", "x" * LARGE, zip=True)
    return saved(folder, pnginfo=info)


def plain_text_beyond_every_bound(folder: Path) -> Path:
    info = PngInfo()
    for number in range(5):
        info.add_text(f"w{number}", "x" * (MAX_TEXTS_BYTES - 100))
    return saved(folder, pnginfo=info)


def colour_profile(folder: Path) -> Path:
    return saved(folder, icc_profile=bytes(LARGE))


def text_behind_the_pixels(folder: Path) -> Path:
    path = saved(folder)
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk(b"zTXt", b"w\0\0" + zlib.compress(b"x" * LARGE)) + data[-12:])
    return path


def text_packed_by_a_method_of_the_future(folder: Path) -> Path:
    path = saved(folder)
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk(b"zTXt", b"w\0\1whatever") + chunk(b"iCCP", b"w\0\1whatever") + data[33:])
    return path


def rest_of(path: Path) -> io.BufferedReader | None:
    with path.open("rb") as file:
        return without_bulk(file)


def saved(folder: Path, **how: object) -> Path:
    path = folder / "a.png"
    Image.fromarray(PICTURE).save(path, **how)  # pyright: ignore[reportArgumentType]
    return path


@pytest.mark.parametrize(
    "make",
    [
        packed_text,
        packed_unicode,
        plain_text_beyond_every_bound,
        colour_profile,
        text_behind_the_pixels,
        text_packed_by_a_method_of_the_future,
    ],
)
@pytest.mark.parametrize("allow_truncated", [False, True])
def test_a_picture_is_read_whatever_is_written_beside_it(
    tmp_path: Path, make: Callable[[Path], Path], allow_truncated: bool
) -> None:
    path = make(tmp_path)
    assert (probe(path).width, probe(path).height) == (60, 40)
    with open_clip(path, SamplingOptions(allow_truncated=allow_truncated)) as clip:
        np.testing.assert_array_equal(next(iter(clip)).pixels[0], PICTURE)
    assert clip.warnings == []


def test_what_turns_a_picture_is_kept(tmp_path: Path) -> None:
    exif, info = Image.Exif(), PngInfo()
    exif[0x0112] = 6
    info.add_text("w", "x" * LARGE, zip=True)
    path = saved(tmp_path, pnginfo=info, exif=exif)
    assert (probe(path).width, probe(path).height) == (40, 60)
    with open_clip(path, SamplingOptions()) as clip:
        np.testing.assert_array_equal(next(iter(clip)).pixels[0], np.rot90(PICTURE, -1))


def test_an_animation_with_a_large_text_moves(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("w", "x" * LARGE, zip=True)
    frames = [Image.fromarray(films.numbered(number, 60, 40)) for number in range(6)]
    frames[0].save(tmp_path / "a.apng", "PNG", save_all=True, append_images=frames[1:], duration=500, pnginfo=info)
    with open_clip(tmp_path / "a.apng", SamplingOptions()) as clip:
        assert [films.number_in(frame) for frame in next(iter(clip)).pixels] == [1, 2, 4]


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = saved(tmp_path)
    packer = zlib.compressobj()
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(200)), packer.flush()])
    data = path.read_bytes()
    for kind, head in ((b"zTXt", b"w\0\0"), (b"iTXt", b"w\0\1\0\0\0"), (b"iCCP", b"w\0\0")):
        path.write_bytes(data[:33] + chunk(kind, head + bomb) + data[33:])
        tracemalloc.start()
        with path.open("rb") as file:
            picture = open_picture(file)
            assert picture is not None
            np.testing.assert_array_equal(to_rgb(picture), PICTURE)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * MAX_TEXT_BYTES


def test_small_texts_stay_where_they_are(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("w", "x" * (MAX_TEXT_BYTES - 1), zip=True)
    info.add_text("v", "x" * LARGE)
    path = saved(tmp_path, pnginfo=info, icc_profile=bytes(1000))
    assert rest_of(path) is None
    path.write_bytes(b"x" * 1000)
    assert rest_of(path) is None


@pytest.mark.parametrize("more", [0, 1])
def test_all_texts_together_have_a_bound(tmp_path: Path, more: int) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    halves = [chunk(b"tEXt", b"w\0".ljust(MAX_TEXTS_BYTES // 2 + extra, b"x")) for extra in (0, more)]
    path.write_bytes(data[:33] + b"".join(halves) + data[33:])
    rest = rest_of(path)
    assert (rest is None) == (more == 0)
    if rest is not None:
        with rest:
            assert rest.read() == data[:33] + halves[0] + data[33:]


def test_what_is_left_can_be_read_from_anywhere(tmp_path: Path) -> None:
    plain = saved(tmp_path).read_bytes()
    path = packed_text(tmp_path)
    rest = rest_of(path)
    assert rest is not None
    with rest:
        assert rest.read() == plain
        for at, whence in ((40, 0), (-12, 2)):
            assert rest.seek(at, whence) == at % len(plain)
            assert rest.read(10) == plain[at:][:10]
            assert rest.tell() == at % len(plain) + 10
        assert rest.fileno() > 2
        assert isinstance(rest.raw, Excerpt)
        assert rest.raw.seek(10) == 10
        assert rest.raw.read(60) == plain[10:33]  # the text came here
        assert rest.raw.read(60) == plain[33:93]
        assert rest.raw.seek(-3, os.SEEK_CUR) == 90


def test_a_picture_that_is_cut_short_is_still_one(tmp_path: Path) -> None:
    path = films.cut(packed_text(tmp_path), tmp_path / "cut.png", 0.97)
    with pytest.raises(MediaError) as caught:
        open_clip(path, SamplingOptions())
    assert caught.value.kind == "truncated"
