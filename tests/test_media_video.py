"""Films of every kind give the frames that their timestamps promise, by both decoders, upright."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import media_films as films
import numpy as np
import pytest
from media_films import B_FRAMES, H264, numbers, read
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media.decoders import decord_installed
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.media.thumbnail import thumbnail

EXACT = ["auto", "ffmpeg"] + (["decord"] if decord_installed() else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


def even(folder: Path) -> Path:
    return folder / "even.mp4" if (folder / "even.mp4").exists() else films.film(folder / "even.mp4", 150, *B_FRAMES)


def as_mkv(folder: Path) -> Path:
    films.ffmpeg("-i", even(folder), "-c", "copy", folder / "even.mkv")
    return folder / "even.mkv"


def uneven(folder: Path) -> Path:
    kept = "select=not(mod(n\\,7))+lt(mod(n\\,60)\\,20)"
    return films.film(folder / "uneven.mp4", 150, *B_FRAMES, "-vf", kept, "-fps_mode", "vfr")


def hevc(folder: Path) -> Path:
    closed = ("-x265-params", "log-level=none:open-gop=0:keyint=30:bframes=3")
    return films.film(folder / "hevc.mp4", 150, "-c:v", "libx265", "-preset", "ultrafast", *closed)


def vp9(folder: Path) -> Path:
    speed = ("-deadline", "realtime", "-cpu-used", "8", "-g", "30")
    return films.film(folder / "vp9.webm", 150, "-c:v", "libvpx-vp9", *speed)


def odd_size(folder: Path) -> Path:
    return films.film(folder / "odd.mp4", 150, *H264, size=(322, 182))


def ntsc(folder: Path) -> Path:
    return films.film(folder / "ntsc.mp4", 150, *B_FRAMES, fps="30000/1001")


@pytest.mark.parametrize("decoder", EXACT)
@pytest.mark.parametrize("make", [even, as_mkv, uneven, hevc, vp9, odd_size, ntsc])
def test_each_frame_is_the_one_of_its_timestamp(folder: Path, make: Callable[[Path], Path], decoder: str) -> None:
    pixels, times, info = read(make(folder), decoder=decoder, fps=3)
    rate = 30000 / 1001 if make is ntsc else 30
    assert numbers(pixels) == np.rint(times * rate).astype(int).tolist()
    assert len(times) >= 12
    assert info.duration_s == pytest.approx(150 / rate, abs=0.2)


@pytest.mark.skipif(not decord_installed(), reason="decord is not installed")
@pytest.mark.parametrize("make", [even, as_mkv, uneven, hevc, vp9, odd_size, ntsc])
def test_both_decoders_give_the_same_pixels_and_times(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder)
    one, two = read(path, decoder="ffmpeg"), read(path, decoder="decord")
    assert one[1].tolist() == two[1].tolist()
    np.testing.assert_array_equal(one[0], two[0])
    assert "decord" not in sys.modules  # it stays in its own process


@pytest.mark.parametrize("decoder", EXACT)
def test_even_frames_follow_the_references_indices(folder: Path, decoder: str) -> None:
    assert numbers(read(even(folder), decoder=decoder)[0]) == [15, 45, 74, 104, 134]


def test_frames_are_the_nearest_pixels_of_the_full_picture(folder: Path, tmp_path: Path) -> None:
    films.ffmpeg("-i", even(folder), "-vf", "select=eq(n\\,74)", "-frames:v", "1", tmp_path / "74.ppm")
    full = np.frombuffer((tmp_path / "74.ppm").read_bytes()[-256 * 144 * 3 :], np.uint8).reshape(144, 256, 3)
    expected = full[nearest_index(144, 336)[:, None], nearest_index(256, 336)]
    np.testing.assert_array_equal(read(even(folder))[0][2], expected)


def test_the_size_of_the_square_can_be_asked(folder: Path) -> None:
    with open_clip(even(folder), SamplingOptions(), frame_size=64) as clip:
        chunks = list(clip)
    assert [chunk.pixels.shape for chunk in chunks] == [(5, 64, 64, 3)]


@pytest.mark.parametrize("decoder", EXACT)
@pytest.mark.parametrize(("turns", "matrix"), [(1, -90), (2, 180), (3, 90)])
def test_rotation_metadata_gives_upright_frames(folder: Path, decoder: str, turns: int, matrix: int) -> None:
    """Coded on its side, with a display matrix that says so."""
    coded = films.film(folder / f"turned{turns}.mov", 60, *H264, turns=turns)
    path = folder / f"upright{turns}.mov"
    films.ffmpeg("-display_rotation", str(matrix), "-i", coded, "-c", "copy", path)
    pixels, times, info = read(path, decoder=decoder)
    assert (info.width, info.height) == (256, 144)
    assert probe(path).width == 256
    assert numbers(pixels) == np.rint(times * 30).astype(int).tolist() == [15, 44]
    assert pixels[0, 300, 300, 0] > 150 > pixels[0, 300, 30, 0]  # the red of the lower half grows to the right


@pytest.mark.parametrize("flip", ["-display_hflip", "-display_vflip"])
def test_mirrored_metadata_is_undone(folder: Path, flip: str) -> None:
    path = folder / f"{flip}.mp4"
    mirror = {"-display_hflip": "hflip", "-display_vflip": "vflip"}[flip]
    films.film(folder / f"coded{flip}.mp4", 60, *H264, "-vf", mirror)
    films.ffmpeg(flip, "-i", folder / f"coded{flip}.mp4", "-c", "copy", path)
    assert numbers(read(path)[0]) == [15, 44]


def test_an_edit_list_hides_the_frames_before_the_cut(folder: Path) -> None:
    path = folder / "edit.mp4"
    films.ffmpeg("-ss", "1.4", "-i", even(folder), "-c", "copy", path)  # 42 frames in, between two key frames
    pixels, times, _ = read(path)
    assert numbers(pixels) == (42 + np.rint(times * 30)).astype(int).tolist()
    assert times[0] == pytest.approx(0.5, abs=0.1)
    assert len(times) == 3


def test_a_transport_stream_with_b_frames(folder: Path) -> None:
    path = folder / "even.ts"
    films.ffmpeg("-i", even(folder), "-c", "copy", path)
    pixels, times, _ = read(path)
    assert numbers(pixels) == np.rint(times * 30).astype(int).tolist() == [15, 45, 74, 104, 134]


def test_a_transport_stream_whose_clock_jumps_back(folder: Path) -> None:
    once = folder / "even.ts"
    films.ffmpeg("-i", even(folder), "-c", "copy", once)
    path = folder / "twice.ts"
    path.write_bytes(once.read_bytes() * 2)
    pixels, times, _ = read(path)
    assert numbers(pixels) == (np.rint(times * 30).astype(int) % 150).tolist()
    assert len(times) == 10


def test_a_delayed_start_counts_from_the_first_frame(folder: Path) -> None:
    path = folder / "late.mkv"
    sound = ("-f", "lavfi", "-i", "sine=d=7")
    films.ffmpeg(*sound, "-itsoffset", "2", "-i", even(folder), "-map", "0", "-map", "1", "-c:v", "copy", path)
    pixels, times, _ = read(path)
    assert numbers(pixels) == np.rint(times * 30).astype(int).tolist() == [15, 45, 74, 104, 134]


def test_open_groups_of_pictures_go_to_ffmpeg(folder: Path) -> None:
    """decord gives the wrong frames of these after seeking."""
    opened = ("-x265-params", "log-level=none:open-gop=1:keyint=20:min-keyint=20:bframes=4:b-adapt=0:scenecut=0")
    path = films.film(folder / "open.mp4", 150, "-c:v", "libx265", "-preset", "ultrafast", *opened)
    pixels, times, _ = read(path, fps=3)
    assert numbers(pixels) == np.rint(times * 30).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("av1.mkv", ["-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1"]),
        ("asp.avi", ["-c:v", "mpeg4", "-bf", "2", "-q:v", "3"]),
        ("raw.h264", [*B_FRAMES]),
        ("vp8.webm", ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-auto-alt-ref", "1"]),
        ("old.mpg", ["-c:v", "mpeg2video", "-bf", "2", "-q:v", "3"]),
        ("old.wmv", ["-c:v", "wmv2", "-q:v", "3"]),
        ("high.mp4", ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv422p10le"]),
    ],
)
def test_what_decord_cannot_read_exactly_is_read_by_ffmpeg(folder: Path, name: str, arguments: list[str]) -> None:
    rate = "25" if name == "raw.h264" else "30"  # a raw stream has no clock; ffmpeg assumes 25
    pixels, times, _ = read(films.film(folder / name, 150, *arguments, fps=rate))
    assert numbers(pixels) == np.rint(times * int(rate)).astype(int).tolist()
    assert len(times) in (5, 6)


@pytest.mark.skipif(not decord_installed(), reason="decord is not installed")
@pytest.mark.parametrize("depth", ["yuv420p", "yuv420p10le"])
def test_deep_colour_goes_to_ffmpeg(folder: Path, depth: str) -> None:
    arguments = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:open-gop=0")
    path = films.film(folder / f"{depth}.mp4", 30, *arguments, "-pix_fmt", depth)
    with open_clip(path, SamplingOptions(decoder="decord")) as clip:
        assert list(clip)
    assert [("more than 8 bits" in warning) for warning in clip.warnings] == ([True] if "10" in depth else [])
    np.testing.assert_array_equal(read(path)[0], read(path, decoder="ffmpeg")[0])


def test_a_single_frame_is_enough(folder: Path) -> None:
    pixels, times, info = read(films.film(folder / "one.mp4", 1, *H264))
    assert numbers(pixels) == [0]
    assert times.tolist() == [0.0]
    assert info.kind == "video"


def test_repeated_indices_give_repeated_frames(folder: Path) -> None:
    path = films.film(folder / "slow.mp4", 3, *H264, fps="1")
    for decoder in EXACT:
        pixels, times, _ = read(path, fps=10, decoder=decoder)
        assert numbers(pixels) == [0, 1, 1]
        assert times.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("decoder", EXACT)
def test_frames_far_apart_are_sought(folder: Path, decoder: str) -> None:
    """100 s in which ffmpeg begins anew for each frame, and decord seeks."""
    path = films.film(folder / "long.mp4", 1000, *B_FRAMES, fps="10")
    unsought, _, _ = read(path, decoder="ffmpeg", start=50, end=60)
    far = folder / "far.mp4"
    films.ffmpeg("-stream_loop", "2", "-i", path, "-c", "copy", far)
    pixels, times, _ = read(far, decoder=decoder, max_frames=3)
    assert numbers(pixels) == (np.rint(times * 10).astype(int) % 1000).tolist()
    assert times == pytest.approx([50, 150, 250], abs=0.2)
    late, times, _ = read(far, decoder=decoder, start=250, end=260)
    np.testing.assert_array_equal(late, unsought)
    assert 250 <= times[0] < times[-1] < 260


@pytest.mark.parametrize("make", [even, uneven, ntsc, odd_size])
def test_a_thumbnail_is_the_frame_of_its_time(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder)
    pixels, times, info = read(path, fps=0.7)
    for frame, time in zip(pixels, times, strict=True):
        with Image.open(BytesIO(thumbnail(str(path), float(time)))) as picture:
            assert films.number_in(np.asarray(picture)) == films.number_in(frame)
            assert picture.size == (256, round(info.height * 256 / info.width))


def test_probe_reads_the_header_only(folder: Path) -> None:
    info = probe(even(folder))
    assert (info.kind, info.width, info.height, info.codec) == ("video", 256, 144, "h264")
    assert info.duration_s == pytest.approx(5.0, abs=0.1)
    assert info.frame_count is None
