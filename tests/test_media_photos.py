"""Photos of phones and cameras: all of a HEIF or JPEG XL picture, upright, and never the thumbnail of a raw file."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pillow_heif
import pytest
from cli_doubles import EchoEngine
from picture_doubles import changed_worker, decoded_by
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.camera_raw import raw_kind
from llava_mini_cli.media.jxl_header import read_jxl_header
from llava_mini_cli.media.open import is_media_path, open_clip, probe

PICTURE = films.numbered(341, 120, 80)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to the right
EXACT = {"quality": -1, "chroma": 444}


def heif(path: Path, pixels: np.ndarray = PICTURE, **how: Any) -> Path:
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, **{**EXACT, **how})
    return path


def jxl(path: Path, picture: Image.Image | None = None, **how: Any) -> Path:
    import pillow_jxl  # noqa: F401  # pyright: ignore - registers itself

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (picture or Image.fromarray(PICTURE)).save(path, "JXL", **{"lossless": True, "effort": 1, **how})
    return path


def seen(path: Path) -> np.ndarray:
    """The pixels of a still picture, whose size its header says, too."""
    info = probe(path)
    with open_clip(path, SamplingOptions()) as clip:
        (chunk,) = clip
    assert clip.info.kind == info.kind == "image"
    height, width = chunk.pixels.shape[1:3]
    assert (info.width, info.height) == (clip.info.width, clip.info.height) == (width, height)
    return chunk.pixels[0]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other).mean())


# HEIF


def test_a_heic_picture_is_seen_whole(tmp_path: Path) -> None:
    assert apart(seen(heif(tmp_path / "a.heic")), PICTURE) < 1
    assert apart(seen(heif(tmp_path / "photo.jpg")), PICTURE) < 1  # content decides


def test_all_tiles_are_seen(tmp_path: Path) -> None:
    large = films.numbered(599, 320, 256)
    path = heif(tmp_path / "a.heic", large, tile_size=64)
    assert path.read_bytes().count(b"grid") > 0
    assert apart(seen(path), large) < 1


def test_the_picture_is_seen_not_its_thumbnail(tmp_path: Path) -> None:
    assert apart(seen(heif(tmp_path / "a.heic", thumbnails=[32])), PICTURE) < 1


def test_a_turned_heic_picture_is_upright(tmp_path: Path) -> None:
    assert apart(seen(heif(tmp_path / "a.heic", exif=TURNED.tobytes())), np.rot90(PICTURE, -1)) < 1


def test_the_first_picture_is_the_one_that_the_file_says(tmp_path: Path) -> None:
    file = pillow_heif.from_pillow(Image.fromarray(films.numbered(5, 120, 80)))
    file.add_from_pillow(Image.fromarray(PICTURE))
    file.save(tmp_path / "a.heic", primary_index=1, **EXACT)
    assert films.number_in(seen(tmp_path / "a.heic")) == 341


@pytest.mark.parametrize(
    ("brand", "compatible"),
    [(b"mif1", b"mif1heix"), (b"heic", b"mif1heic"), (b"mif1", b"mif1miaf"), (b"heix", b"avifheix")],
)
def test_other_names_of_heif(tmp_path: Path, brand: bytes, compatible: bytes) -> None:
    path = heif(tmp_path / "a.hif")
    data = path.read_bytes()
    assert data[4:12] == b"ftypheix"
    length = int.from_bytes(data[:4], "big")
    others = (compatible * 9)[: length - 16]
    path.write_bytes(data[:8] + brand + data[12:16] + others + data[length:])
    assert apart(seen(path), PICTURE) < 1


def test_a_sequence_of_pictures_is_a_video(tmp_path: Path) -> None:
    films.film(tmp_path / "a.mp4", 30, "-c:v", "libx265", "-x265-params", "log-level=none", fps="10")
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.heics").write_bytes(data[:8] + b"hevc" + data[12:])
    with open_clip(tmp_path / "a.heics", SamplingOptions()) as clip:
        assert (clip.info.kind, clip.info.frame_count) == ("video", 3)


def test_avif_is_pillows_own_whatever_it_calls_itself(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.avif", quality=100)
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "b.avif").write_bytes(data[:8] + b"mif1" + data[12:])
    with without("pillow_heif"):
        assert apart(seen(tmp_path / "b.avif"), PICTURE) < 2


# JPEG XL


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_jpeg_xl_picture_is_seen_whole(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(PICTURE).convert(mode)
    np.testing.assert_array_equal(seen(jxl(tmp_path / "a.jxl", picture)), np.array(picture.convert("RGB")))


def test_deep_jpeg_xl_pictures_become_8_bits(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (80, 1))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(seen(jxl(tmp_path / "a.jxl", deep))[..., 0], grey)
    floats = Image.fromarray(grey.astype(np.float32) / 255)
    assert apart(seen(jxl(tmp_path / "b.jxl", floats))[..., 0], grey) < 1


def of_jpeg(folder: Path) -> tuple[Path, np.ndarray]:
    """A JPEG that is turned, as JPEG XL in a container, and how the JPEG looks upright."""
    Image.fromarray(PICTURE).save(folder / "a.jpg", exif=TURNED, quality=95, subsampling=0)
    with Image.open(folder / "a.jpg") as picture:
        return jxl(folder / "a.jxl", picture, use_container=True), seen(folder / "a.jpg")


def test_a_jpeg_that_became_jpeg_xl_is_the_same_and_upright(tmp_path: Path) -> None:
    path, upright = of_jpeg(tmp_path)
    np.testing.assert_array_equal(seen(path), upright)


def test_jpeg_xl_turns_itself(tmp_path: Path) -> None:
    """The orientation of its own header is applied; the box that makes it a JPEG again is taken away here."""
    path, upright = of_jpeg(tmp_path)
    data = path.read_bytes()
    at = data.index(b"jbrd") - 4
    path.write_bytes(data[:at] + data[at + struct.unpack(">I", data[at : at + 4])[0] :])
    assert apart(seen(path), upright) < 2


def test_exif_does_not_turn_jpeg_xl(tmp_path: Path) -> None:
    np.testing.assert_array_equal(seen(jxl(tmp_path / "a.jxl", exif=TURNED.tobytes())), PICTURE)


def test_a_moving_jpeg_xl_picture_is_a_video(tmp_path: Path) -> None:
    frames = b"".join(films.numbered(number, 120, 80).tobytes() for number in range(6))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "120x80", "-r", "2", "-i", "-")
    films.ffmpeg(*raw, "-c:v", "libjxl_anim", "-distance", "0", "-f", "image2pipe", tmp_path / "a.jxl", stdin=frames)
    with without("pillow_jxl"), open_clip(tmp_path / "a.jxl", SamplingOptions()) as clip:
        assert (clip.info.kind, clip.info.frame_count) == ("video", 3)
        assert [films.number_in(frame) for frame in next(iter(clip)).pixels] == [1, 2, 4]


@pytest.mark.parametrize(
    ("width", "height"),
    [
        *[(1, 1), (8, 8), (64, 8), (256, 256), (17, 9), (400, 300), (300, 400), (640, 360), (600, 500), (60, 50)],
        *[(450, 300), (500, 400), (9, 300), (520, 8), (600, 300), (20000, 3), (3, 20000)],
    ],
)
def test_the_size_of_jpeg_xl_is_read_from_its_first_bytes(tmp_path: Path, width: int, height: int) -> None:
    path = jxl(tmp_path / "a.jxl", Image.new("RGB", (width, height)))
    with path.open("rb") as file:
        assert read_jxl_header(file) == (width, height, False)


def codestream(*numbers: tuple[int, int]) -> io.BytesIO:
    """The beginning of a codestream that holds these numbers, each in so many bits."""
    value = at = 0
    for number, bits in numbers:
        value, at = value | number << at, at + bits
    return io.BytesIO(b"\xff\x0a" + value.to_bytes(40, "little"))


HALF = ((1, 1), (4, 5), (0, 3), (9, 5))  # 40 high, 80 wide, in eighths
SQUARE = ((0, 1), (3, 2), (99_999, 30), (1, 3))


@pytest.mark.parametrize(
    ("numbers", "header"),
    [
        ((*HALF, (1, 1)), (80, 40, False)),
        (((0, 1), (0, 2), (511, 9), (1, 3), (1, 1)), (512, 512, False)),
        (((0, 1), (1, 2), (8191, 13), (3, 3), (1, 1)), (10922, 8192, False)),
        (((0, 1), (2, 2), (262_143, 18), (1, 3), (1, 1)), (262_144, 262_144, False)),
        (((0, 1), (0, 2), (6, 9), (0, 3), (1, 2), (4095, 13), (0, 1), (1, 1), (4, 3), (0, 2), (1, 1)), (7, 4096, True)),
        ((*HALF, (0, 1), (0, 1), (1, 1)), (80, 40, False)),  # no more fields
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 2), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (3, 3), (0, 2), (0, 1)), (80, 40, False)),
        ((*HALF, (0, 1), (1, 1), (4, 3), (0, 2), (1, 1)), (40, 80, True)),
        ((*SQUARE, (0, 1), (1, 1), (7, 3), (1, 1), *HALF, (0, 1), (1, 1)), (100_000, 100_000, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (1, 1), (0, 2), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (1, 1), (2, 2), (31, 5), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (1, 1), (3, 2), (0, 9), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (1, 1), (1, 2), (0, 3), (0, 2), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (0, 1), (0, 2), (0, 6), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (0, 1), (1, 2), (0, 8), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (0, 1), (2, 2), (0, 10), (1, 3), (1, 1)), (80, 40, True)),
        ((*HALF, (0, 1), (1, 1), (0, 3), (0, 1), (1, 1), (0, 1), (3, 2), (0, 12), (1, 3), (1, 1)), (80, 40, True)),
    ],
)
def test_orientation_previews_and_animation_are_read_bit_by_bit(
    numbers: Sequence[tuple[int, int]], header: tuple[int, int, bool]
) -> None:
    file = codestream(*numbers)
    assert read_jxl_header(file) == read_jxl_header(file) == header


def test_a_header_may_be_all_there_is() -> None:
    whole = codestream(*HALF, (0, 1), (0, 1)).getvalue()[:4]  # to the last bit
    assert read_jxl_header(io.BytesIO(whole)) == (80, 40, False)
    with pytest.raises(EOFError):
        read_jxl_header(io.BytesIO(whole[:3]))


def test_a_large_jpeg_xl_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jxl"
    path.write_bytes(codestream(*SQUARE, (1, 1)).getvalue())
    for look in (probe, lambda path: open_clip(path, SamplingOptions())):
        with pytest.raises(MediaError) as caught:
            look(path)
        assert (caught.value.kind, str(caught.value)[:32]) == ("too_large", "a picture of 100000x100000 pixel")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\x0a", "truncated"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "corrupt"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x04Exif" * 3, "corrupt"),
    ],
)
def test_jpeg_xl_that_ends_in_its_header(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.jxl").write_bytes(data)
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "a.jxl")
    assert caught.value.kind == kind


def test_the_codestream_may_come_in_parts(tmp_path: Path) -> None:
    data = jxl(tmp_path / "a.jxl").read_bytes()
    box = struct.Struct(">I4s")
    large = struct.pack(">I4sQ", 1, b"Exif", 16 + 8) + bytes(8)
    parts = [data[:3], data[3:5], data[5:]]
    boxes = [box.pack(12 + len(part), b"jxlp") + struct.pack(">I", at) + part for at, part in enumerate(parts)]
    container = b"\0\0\0\x0cJXL \r\n\x87\n" + box.pack(20, b"ftyp") + b"jxl \0\0\0\0jxl " + large
    container += box.pack(8, b"free")
    assert read_jxl_header(io.BytesIO(container + b"".join(boxes))) == (120, 80, False)
    whole = box.pack(0, b"jxlc") + data
    assert read_jxl_header(io.BytesIO(container + whole)) == (120, 80, False)


# Both


@pytest.mark.parametrize("make", [heif, jxl])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_photos_that_are_cut_short_are_errors(tmp_path: Path, make: Any, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    path = make(tmp_path / "a", noise if make is heif else Image.fromarray(noise))
    path = films.cut(path, tmp_path / "cut", share)
    for allowed in (False, True):
        with pytest.raises(MediaError) as caught:
            open_clip(path, SamplingOptions(allow_truncated=allowed))
        assert caught.value.kind == ("truncated" if make is heif else "corrupt")


@pytest.mark.parametrize(
    ("make", "package", "words"),
    [
        (heif, "pillow_heif", "HEIC and HEIF need pillow-heif: pip install 'llava-mini-cli[photos]'"),
        (jxl, "pillow_jxl", "JPEG XL needs pillow-jxl-plugin: pip install 'llava-mini-cli[photos]'"),
    ],
)
def test_without_its_package_the_error_says_what_to_install(
    tmp_path: Path, make: Any, package: str, words: str
) -> None:
    path = make(tmp_path / "a")
    with without(package):
        for look in (probe, lambda path: open_clip(path, SamplingOptions())):
            with pytest.raises(MediaError) as caught:
                look(path)
            assert (caught.value.kind, str(caught.value)) == ("unsupported_codec", words)


def without(*packages: str) -> AbstractContextManager[None]:
    """Pictures are decoded by processes in which some packages are not installed."""
    return decoded_by(changed_worker(f"import sys; sys.modules.update(dict.fromkeys({packages!r}))"))


def test_the_packages_are_imported_when_a_photo_needs_them(tmp_path: Path) -> None:
    heif(tmp_path / "a.heic")
    jxl(tmp_path / "a.jxl")
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    script = """
import sys
from pathlib import Path
from PIL import Image
from llava_mini_cli.media.image import Upright, open_picture
for name in ("a.png", "a.heic", "a.jxl"):
    with (Path(sys.argv[1]) / name).open("rb") as file:
        Upright(open_picture(file))
    print(name, sorted({"pillow_heif", "pillow_jxl", "torch"} & set(sys.modules)), "HEIF" in Image.OPEN)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "a.png [] False",
        "a.heic ['pillow_heif'] False",
        "a.jxl ['pillow_heif', 'pillow_jxl'] False",
    ]
    assert done.stderr == ""


# Camera raw


def tiff(path: Path, interpretation: int, order: str = "<", kind: int = 4) -> Path:
    """A TIFF of a small RGB picture with `interpretation` in its second sub-image, far behind."""
    Image.fromarray(PICTURE).save(path, "TIFF")
    size = path.stat().st_size

    def directory(*tags: tuple[int, int, int, int]) -> bytes:
        return (
            struct.pack(f"{order}H", len(tags)) + b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags) + bytes(4)
        )

    short = interpretation if order == "<" else interpretation << 16
    first, second = directory((254, 4, 1, 0)), directory((262, 3, 1, short))
    subs = struct.pack(f"{order}II", size, size + len(first))
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(first + second + subs)
        place = file.tell()
        width, height = (v if order == "<" else v << 16 for v in (40, 20))
        file.write(directory((256, 3, 1, width), (257, 3, 1, height), (330, kind, 2, place - 8)))
        file.seek(0)
        file.write((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place))
    return path


def kind_of(path: Path) -> str | None:
    with path.open("rb") as file:
        return raw_kind(file, file.read(64), path.suffix)


@pytest.mark.parametrize("interpretation", [32803, 34892])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_with_a_mosaic_inside_is_raw_whatever_its_name(tmp_path: Path, interpretation: int, order: str) -> None:
    path = tiff(tmp_path / "a.tif", interpretation, order)
    with pytest.raises(MediaError) as caught:
        open_clip(path, SamplingOptions())
    assert caught.value.kind == "unsupported_codec"
    assert str(caught.value).startswith("a camera raw file (DNG): it is not developed here, and the preview that is")
    assert kind_of(tiff(tmp_path / "b.tif", 2, order)) is None
    assert kind_of(tiff(tmp_path / "c.tif", interpretation, order, 13)) == "DNG"


@pytest.mark.parametrize("suffix", ["DNG", "CR2", "NEF", "ARW", "PEF", "SRW", "3FR", "NRW", "SR2", "RWL", "IIQ"])
def test_a_tiff_named_as_raw_is_raw(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PICTURE).save(tmp_path / f"a.{suffix}", "TIFF")
    assert is_media_path(tmp_path / f"a.{suffix}")
    with pytest.raises(MediaError, match=rf"a camera raw file \({suffix}\)") as caught:
        probe(tmp_path / f"a.{suffix}")
    assert caught.value.kind == "unsupported_codec"


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("CR2", b"II*\0\x10\0\0\0CR\x02\0"), ("CR3", b"\0\0\0\x18ftypcrx \0\0\0\x01"), ("CRW", b"II\x1a\0\0\0HEAPCCDR"),
        ("RAF", b"FUJIFILMCCD-RAW 0201"), ("ORF", b"IIRO\x08\0\0\0"), ("ORF", b"MMOR\0\0\0\x08"), ("RW2", b"IIU\0\x18"),
        ("X3F", b"FOVb\0\0\x03\0"), ("MRW", b"\0MRM\0\0\0\0"), ("IIQ", b"IIII\0\0\0\0"),
    ],
)  # fmt: skip
def test_raw_files_that_are_no_tiff_are_told_by_their_first_bytes(tmp_path: Path, kind: str, head: bytes) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(PICTURE).save(jpeg, "JPEG")  # the preview that would be found
    (tmp_path / "a").write_bytes(head.ljust(64, b"\0") + jpeg.getvalue())
    with pytest.raises(MediaError, match=rf"a camera raw file \({kind}\)") as caught:
        open_clip(tmp_path / "a", SamplingOptions())
    assert caught.value.kind == "unsupported_codec"


def test_a_picture_that_is_only_named_as_raw_is_seen(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.dng", "PNG")
    np.testing.assert_array_equal(seen(tmp_path / "a.dng"), PICTURE)


def test_images_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, 1, 8, 8))
    assert kind_of(path) is None
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 9, 330, 4, 1 << 31, 8))
    assert kind_of(path) is None


def test_a_tiff_whose_first_page_is_a_thumbnail_shows_the_whole_picture(tmp_path: Path) -> None:
    small, page = Image.fromarray(PICTURE).resize((12, 8)), ImageFileDirectory_v2()
    page[254] = 1
    small.save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(PICTURE)], tiffinfo=page)
    data = (tmp_path / "a.tif").read_bytes()
    at = data.rindex(struct.pack("<HHII", 254, 4, 1, 1))  # of the second page
    (tmp_path / "a.tif").write_bytes(data[: at + 8] + bytes(4) + data[at + 12 :])
    np.testing.assert_array_equal(seen(tmp_path / "a.tif"), PICTURE)
    small.save(tmp_path / "b.tif", tiffinfo=page)  # there is no other
    np.testing.assert_array_equal(seen(tmp_path / "b.tif"), np.array(small))


def test_photos_count_in_folders_and_their_rows_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif(tmp_path / "a.heic")
    jxl(tmp_path / "b.jxl")
    Image.fromarray(PICTURE).save(tmp_path / "c.dng", "TIFF")
    Image.fromarray(PICTURE).save(tmp_path / "d.png")
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)

    def rows() -> list[tuple[str, str | None, str | None]]:
        done = CliRunner().invoke(app, ["ask", str(tmp_path), "-p", "What?", "-q"])
        assert done.exit_code == 3
        lines = map(json.loads, done.stdout.splitlines())
        return sorted((row["file_name"], row["text"], row["error_type"]) for row in lines)

    seen_all = [(name, "What? [1]", None) for name in ("a.heic", "b.jxl", "d.png")]
    assert rows() == [*seen_all[:2], ("c.dng", None, "unsupported_codec"), seen_all[2]]
    with without("pillow_heif", "pillow_jxl"):
        assert rows() == [*((name, None, "unsupported_codec") for name in ("a.heic", "b.jxl", "c.dng")), seen_all[2]]
