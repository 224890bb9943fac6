"""Pictures of every mode become upright RGB; animations become videos; damaged ones the right error."""

import struct
import zlib
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pytest
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.media.picture_pool import POOL


def pixels(path: Path) -> np.ndarray:
    with open_clip(path, SamplingOptions()) as clip:
        assert clip.ready()
        chunks = list(clip)
    assert clip.info.kind == "image"
    assert clip.info.frame_count == 1
    assert len(chunks) == 1
    assert chunks[0].times.tolist() == [0.0]
    assert chunks[0].pixels.shape == (1, clip.info.height, clip.info.width, 3)
    assert chunks[0].pixels.dtype == np.uint8
    return chunks[0].pixels[0]


def failure(path: Path) -> MediaError:
    with pytest.raises(MediaError) as caught, open_clip(path, SamplingOptions()) as clip:
        list(clip)
    assert "\n" not in str(caught.value)
    return caught.value


def picture(width: int = 60, height: int = 40) -> np.ndarray:
    return films.numbered(341, width, height)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jp2", "ppm", "avif"])
def test_lossless_pictures_keep_their_pixels_and_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    lossless: dict[str, Any] = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    Image.fromarray(picture()).save(path, **lossless.get(suffix, {}))
    difference = np.abs(pixels(path).astype(int) - picture())
    assert difference.max() <= (8 if suffix == "avif" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.fromarray(picture())
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{suffix}"
    turned.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95}))
    shown = pixels(path)
    assert shown.shape == (40, 60, 3)
    assert np.abs(shown.astype(int) - picture()).mean() < 12
    assert films.number_in(shown) == 341
    assert (probe(path).width, probe(path).height) == (60, 40)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_common_modes_are_converted_as_the_reference_does(tmp_path: Path, mode: str) -> None:
    original = Image.fromarray(picture()).convert(mode)
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    original.save(path)
    with Image.open(path) as reopened:
        np.testing.assert_array_equal(pixels(path), np.asarray(reopened.convert("RGB")))


def test_transparency_shows_the_colours_beneath(tmp_path: Path) -> None:
    """As the reference does; laying over white would change every picture with a soft edge."""
    alpha = np.full((40, 60, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([picture(), alpha], -1)).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(pixels(tmp_path / "picture.png"), picture())


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(picture()).convert("P")
    palette.info["transparency"] = bytes([0, 128, 255])
    palette.save(tmp_path / "picture.png", transparency=bytes([0, 128, 255]))
    assert pixels(tmp_path / "picture.png").shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"deep.{suffix}")[..., 1], ramp >> 8)


def test_float_tiff(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 60 * 40).astype(np.float32).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / "deep.tiff")
    assert np.abs(pixels(tmp_path / "deep.tiff")[..., 0] - ramp * 255).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff"])
def test_a_truncated_picture_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    error = failure(films.cut(tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}", 0.5))
    assert error.kind in ("truncated", "corrupt", "unreadable")
    if suffix in ("jpg", "png"):
        assert error.kind == "truncated"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_there_is_of_a_truncated_picture_may_be_taken(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    cut = films.cut(tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}", 0.6)
    options = SamplingOptions(allow_truncated=True)
    with open_clip(cut, options) as part, open_clip(tmp_path / f"whole.{suffix}", options) as whole:
        (kept,), (all_of_it,) = list(part), list(whole)
        assert "cut short" in part.warnings[0]
        assert whole.warnings == []
    assert kept.pixels.shape == all_of_it.pixels.shape
    assert (kept.pixels[0, :80] == all_of_it.pixels[0, :80]).all()
    assert (kept.pixels[0, -40:] != all_of_it.pixels[0, -40:]).any()
    assert failure(cut).kind == "truncated"  # and nothing of it stays on


def test_what_lies_in_the_current_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "whole.jpg")
    cut = films.cut(tmp_path / "whole.jpg", tmp_path / "cut.jpg", 0.8)
    for name in ("numpy", "struct", "llava_mini_cli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)
    POOL.close()  # another process starts here
    with open_clip(cut, SamplingOptions(allow_truncated=True)) as clip:
        assert next(iter(clip)).pixels.shape == (1, 40, 60, 3)


def test_a_damaged_png_is_corrupt(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    error = failure(films.scramble(tmp_path / "whole.png", tmp_path / "bad.png", 0.3, 0.6))
    assert error.kind in ("corrupt", "truncated")


def test_a_decompression_bomb_is_too_large(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for edge in (14_000, 60_000):
        header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b"")
        )
        (tmp_path / "bomb.png").write_bytes(bomb)
        assert failure(tmp_path / "bomb.png").kind == "too_large"


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_video_with_its_own_timestamps(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(films.numbered(n, 96, 64)) for n in range(12)]
    lossless = {"webp": {"lossless": True}}.get(suffix, {})
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[500, 250] * 6, loop=0, **lossless)
    with open_clip(path, SamplingOptions(), chunk_frames=3) as clip:
        chunks = list(clip)
    shown = np.concatenate([chunk.pixels for chunk in chunks])
    times = np.concatenate([chunk.times for chunk in chunks])
    starts = np.cumsum([0, *([0.5, 0.25] * 6)])[:-1]
    assert clip.info.kind == "video"
    assert clip.info.duration_s == pytest.approx(4.5)
    assert shown.shape == (4, 336, 336, 3)
    assert times == pytest.approx(starts[[films.number_in(frame) for frame in shown]])
    assert probe(path).kind == "video"


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_span_of_an_animation_shows_the_frame_that_is_on_display(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(films.numbered(n, 96, 64)) for n in range(3)]
    path = tmp_path / f"slow.{suffix}"
    lossless = {"webp": {"lossless": True}}.get(suffix, {})
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[1000, 60_000, 2000], **lossless)
    spans = {(None, None): [0, 1, 2], (20, 30): [1], (59.9, 62): [1, 2], (62, 63): [2]}
    for (start, end), numbers in spans.items():
        with open_clip(path, SamplingOptions(start=start, end=end)) as clip:
            assert [films.number_in(frame) for chunk in clip for frame in chunk.pixels] == numbers


def test_a_cut_animation_gives_its_beginning_and_a_warning(tmp_path: Path) -> None:
    frames = [Image.fromarray(films.numbered(n, 96, 64)) for n in range(20)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:], duration=500)
    with open_clip(films.cut(tmp_path / "whole.gif", tmp_path / "cut.gif", 0.6), SamplingOptions()) as clip:
        count = sum(len(chunk.times) for chunk in clip)
    assert 3 <= count <= 7
    assert len(clip.warnings) == 1
    assert "damaged after" in clip.warnings[0]


def test_pages_are_not_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(films.numbered(n, 60, 40)) for n in range(3)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    assert films.number_in(pixels(tmp_path / "pages.tiff")) == 0


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "picture.png")
    renamed = (tmp_path / "picture.png").rename(tmp_path / "picture.mp4")
    np.testing.assert_array_equal(pixels(renamed), picture())
