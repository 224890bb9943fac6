"""High dynamic range looks as it would on an ordinary display; ordinary range, also of 10 bits, is left alone."""

from pathlib import Path

import media_films as films
import numpy as np
import pytest

from llava_mini_cli.config import DecoderName, SamplingOptions
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.decoders import decord_installed
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.media.probe import VideoStream, read_header
from llava_mini_cli.media.tone import doubt_of_colours, doubt_of_picture, tone_mapping

# Squares of a white sheet's light, and what is to be seen of them: as SDR, but a little darker where it is bright.
COLOURS = {
    (255, 0, 0): (228, 0, 0),
    (0, 255, 0): (0, 228, 0),
    (0, 0, 255): (0, 0, 228),
    (255, 255, 255): (228, 228, 228),
    (128, 128, 128): (132, 132, 132),
    (0, 0, 0): (0, 0, 0),
}
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-crf", "4", "-x265-params", "log-level=none")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-crf", "4", "-b:v", "0")
EDGE = 32


def squares(path: Path, filters: str, *arguments: str, odd: int = 0) -> Path:
    """A film of one frame of the squares side by side; `odd` more pixels at its right and lower edges."""
    frame = np.repeat(np.array(list(COLOURS), np.uint8), EDGE, axis=0)[None].repeat(EDGE * 2, axis=0)
    frame = np.pad(frame, ((0, odd), (0, odd), (0, 0)), mode="edge")
    size = f"{frame.shape[1]}x{frame.shape[0]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "1", "-i", "-", "-vf", filters)
    films.ffmpeg(*source, *arguments, path, stdin=frame.tobytes())
    return path


def in_hdr(transfer: str, pixels: str = "yuv420p10le") -> str:
    target = f"t={transfer}:p=bt2020:m=bt2020nc:r=tv:npl=203"
    return f"format=gbrp,zscale=tin=iec61966-2-1:pin=bt709:{target},format=yuv444p10le,format={pixels}"


def seen(path: Path, decoder: DecoderName = "auto") -> tuple[np.ndarray, list[str]]:
    """The colours in the middles of the squares, `[6, 3]`, and what was warned of."""
    with open_clip(path, SamplingOptions(decoder=decoder)) as clip:
        (chunk,) = clip
    middles = ((np.arange(len(COLOURS)) + 0.5) * 336 / len(COLOURS)).astype(int)
    return chunk.pixels[0, 168, middles].astype(int), clip.warnings


@pytest.mark.parametrize(
    ("name", "filters", "arguments", "odd"),
    [
        ("pq.mp4", in_hdr("smpte2084"), X265, 0),
        ("hlg.mp4", in_hdr("arib-std-b67"), X265, 0),
        ("hlg.webm", in_hdr("arib-std-b67"), VP9, 0),
        ("pq.mov", in_hdr("smpte2084", "yuv422p10le"), ("-c:v", "prores_ks"), 0),
        ("pq8.mp4", in_hdr("smpte2084", "yuv420p"), X265, 0),
        ("odd.mkv", in_hdr("smpte2084"), VP9, 1),
    ],
)
def test_colours_of_high_dynamic_range(
    tmp_path: Path, name: str, filters: str, arguments: tuple[str, ...], odd: int
) -> None:
    colours, warnings = seen(squares(tmp_path / name, filters, *arguments, odd=odd))
    assert warnings == []
    expected = np.array(list(COLOURS.values()))
    assert (abs(colours - expected) < np.where(expected, 12, 45)).all(), colours  # black: a step of the curve shows


@pytest.mark.parametrize("tags", ["bt709:bt709:bt709", "bt2020-10:bt2020:bt2020nc"])
def test_ten_bits_of_ordinary_range_stay_bit_identical(tmp_path: Path, tags: str) -> None:
    transfer, primaries, matrix = tags.split(":")
    tagged = ("-color_trc", transfer, "-color_primaries", primaries, "-colorspace", matrix)
    path = squares(tmp_path / "sdr.mp4", "format=yuv420p10le", *X265, *tagged)
    films.ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", tmp_path / "sdr.raw")
    full = np.fromfile(tmp_path / "sdr.raw", np.uint8).reshape(EDGE * 2, -1, 3)
    with open_clip(path, SamplingOptions()) as clip:
        (chunk,) = clip
    assert clip.warnings == []
    rows, columns = (nearest_index(edge, 336) for edge in full.shape[:2])
    np.testing.assert_array_equal(chunk.pixels[0], full[rows][:, columns])


def test_an_ffmpeg_without_the_filters_says_that_colours_are_pale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = squares(tmp_path / "pq.mp4", in_hdr("smpte2084"), *X265)
    poor = tmp_path / "ffmpeg"
    poor.write_text(
        f'#!/bin/sh\ncase "$*" in *-filters*) echo " .. scale V->V Scale.";; *) exec {films.FFMPEG} "$@";; esac\n'
    )
    poor.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(poor))
    colours, warnings = seen(path)
    assert warnings == [
        "PQ shown as if it were of ordinary range: the colours are pale, since this ffmpeg has no zscale and tonemap "
        "filters"
    ]
    np.testing.assert_allclose(colours[0], (134, 82, 55), atol=6)


@pytest.mark.skipif(not decord_installed(), reason="decord is not installed")
def test_decord_is_not_asked_unless_named(tmp_path: Path) -> None:
    path = squares(tmp_path / "pq8.mp4", in_hdr("smpte2084", "yuv420p"), *X265)
    _, warnings = seen(path, decoder="decord")
    assert [warning.split(",")[0] for warning in warnings] == [
        "decord may have given the wrong frames (high dynamic range"
    ]


AV1 = ("-frames:v", "1", "-c:v", "libaom-av1", "-cpu-used", "8", "-still-picture", "1")
HDR_RGB = "format=gbrp,zscale=tin=iec61966-2-1:pin=bt709:t=arib-std-b67:p=bt2020:m=gbr:npl=203,format=rgb48be"


@pytest.mark.parametrize(
    ("name", "filters", "arguments", "curve"),
    [
        ("pq.avif", in_hdr("smpte2084"), AV1, "PQ"),
        ("hlg.png", HDR_RGB, ("-frames:v", "1"), "HLG"),
        ("sdr.avif", "format=yuv420p10le", (*AV1, "-color_trc", "bt709"), None),
        ("sdr.png", "format=rgb48be", ("-frames:v", "1", "-color_trc", "iec61966-2-1"), None),
    ],
)
def test_pictures_of_high_dynamic_range_have_a_warning(
    tmp_path: Path, name: str, filters: str, arguments: tuple[str, ...], curve: str | None
) -> None:
    with open_clip(squares(tmp_path / name, filters, *arguments), SamplingOptions()) as clip:
        assert clip.info.kind == "image"
        expected = f"{curve} shown as if it were of ordinary range: the colours are pale"
        assert clip.warnings == ([] if curve is None else [expected])


def test_a_picture_with_a_gain_map_is_an_ordinary_one(tmp_path: Path) -> None:
    box = b"colrnclx" + bytes([0, 9, 0, 16])
    (tmp_path / "one").write_bytes(box)
    (tmp_path / "both").write_bytes(box + b"colrnclx" + bytes([0, 1, 0, 13]))
    (tmp_path / "mapped").write_bytes(b"tmap" + box)
    assert [doubt_of_picture(tmp_path / name) is None for name in ("one", "both", "mapped", "gone")] == [
        False,
        True,
        True,
        True,
    ]


BANNER = (
    "Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'a.mp4':\n"
    "  Stream #0:0[0x1](und): Video: hevc (Main 10) (dvh1 / 0x31687664), yuv420p10le({colours}), 1920x1080, 30 fps\n"
    "      DOVI configuration record: version: 1.0, profile: {profile}, level: 4, rpu flag: 1, el flag: 0, bl flag: 1, "
    "compatibility id: {compatible}, compression: 0"
)


def told(colours: str, profile: int = 8, compatible: int = 1) -> VideoStream:
    text = BANNER.format(colours=colours, profile=profile, compatible=compatible)
    return read_header(text.splitlines()).stream()


def test_dolby_vision_without_a_common_layer_is_told() -> None:
    assert doubt_of_colours(told("tv", 5, 0)) == (
        "the colours are wrong: Dolby Vision without a layer that others can read"
    )
    assert doubt_of_colours(told("tv, bt2020nc/bt2020/smpte2084", 8, 1)) is None
    assert doubt_of_colours(told("tv, bt2020nc/bt2020/arib-std-b67", 8, 4)) is None
    assert doubt_of_colours(told("tv, bt709", 10, 0)) is not None


@pytest.mark.parametrize(
    ("colours", "first"),
    [
        (
            "tv, bt2020nc/bt2020/smpte2084, progressive",
            "color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc",
        ),
        ("pc, ictcp/smpte432/arib-std-b67", "color_trc=arib-std-b67:color_primaries=smpte432:colorspace=ictcp"),
        ("unknown/unknown/smpte2084", "color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"),
        ("10 bpc, tv, bt2020c/film/smpte2084", "color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"),
    ],
)
def test_what_a_file_leaves_open_is_taken_as_bt2020(colours: str, first: str) -> None:
    assert tone_mapping(told(colours))[0] == f"setparams={first}"


@pytest.mark.parametrize("colours", ["tv", "tv, bt709", "bt2020nc/bt2020/bt2020-10", "bt470bg/bt470bg/smpte170m"])
def test_ordinary_range_needs_no_filters(colours: str) -> None:
    assert tone_mapping(told(colours)) == ()
