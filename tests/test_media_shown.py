"""What of a film is shown, for how long and how large: still stretches, late streams, pixels that are not square."""

from pathlib import Path

import media_films as films
import numpy as np
import pytest
from media_films import B_FRAMES, H264, numbers, read

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.decoders import decord_installed
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.pipelines.forecast import expected_frames

EXACT = ["auto", "ffmpeg"] + (["decord"] if decord_installed() else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


def still(folder: Path) -> Path:
    """10 frames a second for 5 s, the last of which stays for 600 s more; then 5 s again."""
    path = folder / "still.mp4"
    late = ("-vf", "setpts='PTS+gte(N,50)*600/TB'", "-fps_mode", "passthrough")
    return path if path.exists() else films.film(path, 100, *B_FRAMES, *late, fps="10")


@pytest.mark.parametrize("decoder", EXACT)
def test_a_frame_that_stays_for_minutes_takes_no_other_frames_place(folder: Path, decoder: str) -> None:
    pixels, times, info = read(still(folder), decoder=decoder)
    assert numbers(pixels) == [5, 15, 25, 35, 45, 49, 55, 65, 75, 85, 95]
    assert times == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 4.9, 605.5, 606.5, 607.5, 608.5, 609.5])
    assert info.duration_s == pytest.approx(610)


@pytest.mark.parametrize("decoder", EXACT)
@pytest.mark.parametrize(("start", "end", "shown"), [(100, 200, [49]), (4.85, 605.05, [49]), (300, 606, [49, 55])])
def test_a_span_shows_the_frame_that_is_on_display(
    folder: Path, decoder: str, start: float, end: float, shown: list[int]
) -> None:
    pixels, times, _ = read(still(folder), decoder=decoder, start=start, end=end)
    assert numbers(pixels) == shown
    assert times[0] == pytest.approx(4.9)


def test_a_span_of_one_frame_that_never_ends(folder: Path) -> None:
    """A picture of 100 s, as one frame."""
    path = films.film(folder / "picture.mp4", 1, *H264, fps="0.01")
    pixels, times, info = read(path, start=50, end=60)
    assert (numbers(pixels), times.tolist()) == ([0], [0.0])
    assert info.duration_s == pytest.approx(100)


@pytest.mark.parametrize("name", ["late.mkv", "late.webm", "late.mp4", "late.flv"])
def test_a_stream_that_begins_an_hour_late_lacks_nothing(folder: Path, name: str) -> None:
    codec = {"webm": ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8"]}.get(name[-4:], H264)
    path = films.film(folder / name, 48, *codec, "-output_ts_offset", "3600", fps="4", size=(64, 48))
    pixels, _, info = read(path)
    assert (len(pixels), info.duration_s) == (12, pytest.approx(12, abs=0.3))
    assert probe(path).duration_s == pytest.approx(12, abs=0.3)
    assert expected_frames(probe(path), SamplingOptions()) == 12


def test_a_late_stream_that_was_cut_says_what_is_missing(folder: Path) -> None:
    path = films.film(folder / "late.mkv", 300, *H264, "-output_ts_offset", "3600")
    with open_clip(films.cut(path, folder / "cut.mkv", 0.6), SamplingOptions()) as clip:
        assert 4 <= sum(len(chunk.times) for chunk in clip) <= 8
    assert clip.warnings[-1].startswith(f"read {clip.info.duration_s:.1f} of 10.0 s: the file is cut")


def test_a_stream_that_begins_after_the_sound_is_as_long_as_its_frames(folder: Path) -> None:
    film = films.film(folder / "even.mp4", 150, *B_FRAMES)
    sound = ("-f", "lavfi", "-i", "sine=d=60", "-itsoffset", "50")
    films.ffmpeg(*sound, "-i", film, "-map", "1", "-map", "0", "-c:v", "copy", folder / "s.mp4")
    pixels, _, info = read(folder / "s.mp4")
    assert numbers(pixels) == [15, 45, 74, 104, 134]
    assert info.duration_s == pytest.approx(5)
    assert probe(folder / "s.mp4").duration_s == pytest.approx(10)  # from the first frame to the end of the file


def test_packets_that_last_longer_than_the_next_one_comes_promise_nothing(folder: Path) -> None:
    """What ffmpeg makes of long still stretches and B-frames in Matroska."""
    films.ffmpeg("-i", still(folder), "-c", "copy", folder / "still.mkv")
    pixels, _, info = read(folder / "still.mkv")
    assert numbers(pixels) == [5, 15, 25, 35, 45, 49, 55, 65, 75, 85, 95]
    assert info.duration_s == pytest.approx(610)


@pytest.mark.parametrize(
    ("name", "coded", "aspect", "shown"),
    [
        ("pal.mp4", (720, 576), "64/45", (1024, 576)),
        ("pal.mkv", (720, 576), "16/15", (768, 576)),
        ("ntsc.mpg", (720, 480), "8/9", (640, 480)),
        ("hdv.ts", (1440, 1080), "4/3", (1920, 1080)),
        ("square.mp4", (320, 240), "1/1", (320, 240)),
        ("absurd.mp4", (320, 240), "1000/1", (320, 240)),
    ],
)
def test_anamorphic_video_has_the_size_that_players_show(
    folder: Path, name: str, coded: tuple[int, int], aspect: str, shown: tuple[int, int]
) -> None:
    path = films.film(folder / f"wide-{name}", 2, *H264, "-vf", f"setsar={aspect}", fps="2", size=coded)
    square = films.film(folder / f"square-{name}", 2, *H264, fps="2", size=coded)
    pixels, _, info = read(path)
    assert (info.width, info.height) == (probe(path).width, probe(path).height) == shown
    np.testing.assert_array_equal(pixels, read(square)[0])  # the model's frames are the stored ones


def test_anamorphic_video_on_its_side(folder: Path) -> None:
    films.film(folder / "coded-side.mp4", 30, *H264, "-vf", "setsar=4/3", turns=1, size=(144, 192))
    path = folder / "side.mp4"
    films.ffmpeg("-display_rotation", "-90", "-i", folder / "coded-side.mp4", "-c", "copy", path)
    pixels, _, info = read(path)
    assert (info.width, info.height) == (probe(path).width, probe(path).height) == (144, 256)
    assert numbers(pixels) == [14]


def test_a_containers_aspect_counts_more_than_the_streams(folder: Path) -> None:
    films.film(folder / "stream.mp4", 2, *H264, "-vf", "setsar=16/15", fps="2", size=(720, 576))
    films.ffmpeg("-i", folder / "stream.mp4", "-c", "copy", "-aspect", "16:9", folder / "container.mkv")
    info = probe(folder / "container.mkv")
    assert (info.width, info.height) == (1024, 576)
