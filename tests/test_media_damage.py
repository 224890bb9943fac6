"""Files that cannot be read, or only in part: the kind of error, the frames that are left, the warning."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.decoders import decord_installed
from llava_mini_cli.media.open import is_media_path, open_clip, probe

DECODERS = ["auto", "ffmpeg"] + (["decord"] if decord_installed() else [])


def failure(path: Path, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as caught, open_clip(path, SamplingOptions(decode_timeout=20, **options)) as clip:
        list(clip)
    assert "\n" not in str(caught.value)
    assert path.name not in str(caught.value)
    return caught.value


def what_is_left(path: Path, **options: Any) -> tuple[list[int], np.ndarray, list[str]]:
    with open_clip(path, SamplingOptions(decode_timeout=20, **options)) as clip:
        chunks = list(clip)
    times = np.concatenate([chunk.times for chunk in chunks])
    return [films.number_in(frame) for chunk in chunks for frame in chunk.pixels], times, clip.warnings


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds with sound, its index in front."""
    folder = tmp_path_factory.mktemp("films")
    silent = films.film(folder / "silent.mp4", 300, *films.B_FRAMES)
    sound = ("-f", "lavfi", "-i", "sine=d=10")
    films.ffmpeg("-i", silent, *sound, "-c:v", "copy", "-movflags", "+faststart", folder / "film.mp4")
    return folder / "film.mp4"


@pytest.mark.parametrize("decoder", DECODERS)
def test_nothing_there(tmp_path: Path, decoder: str) -> None:
    assert failure(tmp_path / "film.mp4", decoder=decoder).kind == "not_found"


def test_an_empty_file(tmp_path: Path) -> None:
    for name in ("film.mp4", "picture.jpg"):
        (tmp_path / name).touch()
        assert failure(tmp_path / name).kind == "empty"


def test_a_directory(tmp_path: Path) -> None:
    error = failure(tmp_path)
    assert (error.kind, str(error)) == ("unreadable", "is a directory")


@pytest.mark.parametrize("name", ["film.mp4", "film.txt", "picture.png", "film"])
@pytest.mark.parametrize("content", [b"just some words\n" * 50, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", bytes(5000)])
def test_no_medium_at_all(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert failure(tmp_path / name).kind == "unreadable"


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so root becomes somebody else for a while."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("name", ["film.mp4", "picture.png"])
def test_no_permission(film: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(film.read_bytes())
    path.chmod(0)
    with without_privileges():
        error = failure(path)
    assert (error.kind, str(error)) == ("unreadable", "permission denied")


@pytest.mark.parametrize("decoder", DECODERS)
def test_sound_only(film: Path, tmp_path: Path, decoder: str) -> None:
    films.ffmpeg("-i", film, "-vn", "-c", "copy", tmp_path / "sound.mp4")
    assert failure(tmp_path / "sound.mp4", decoder=decoder).kind == "no_video"
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "sound.mp4")
    assert caught.value.kind == "no_video"


def test_sound_with_a_cover_picture(film: Path, tmp_path: Path) -> None:
    cover = tmp_path / "cover.jpg"
    films.ffmpeg("-i", film, "-frames:v", "1", cover)
    attached = ("-map", "0:a", "-map", "1", "-c:a", "libmp3lame", "-c:v", "copy", "-disposition:v", "attached_pic")
    films.ffmpeg("-i", film, "-i", cover, *attached, tmp_path / "song.mp3")
    assert failure(tmp_path / "song.mp3").kind == "no_video"


def test_the_index_is_missing(film: Path, tmp_path: Path) -> None:
    films.ffmpeg("-i", film, "-c", "copy", tmp_path / "late.mp4")  # its index is at the end
    error = failure(films.cut(tmp_path / "late.mp4", tmp_path / "cut.mp4", 0.6))
    assert error.kind == "truncated"
    assert "moov" in str(error)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_file_gives_its_beginning_and_a_warning(film: Path, tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    films.ffmpeg("-i", film, "-c", "copy", "-movflags", "+faststart", whole)
    numbers, times, warnings = what_is_left(films.cut(whole, tmp_path / f"cut.{suffix}", 0.6))
    assert 4 <= len(numbers) <= 7
    assert numbers == np.rint(times * 30).astype(int).tolist()
    assert len(warnings) == 1
    assert warnings[0].startswith("read ")
    assert " of 10.0 s: " in warnings[0]


def test_a_cut_transport_stream_gives_its_beginning(film: Path, tmp_path: Path) -> None:
    films.ffmpeg("-i", film, "-c", "copy", tmp_path / "whole.ts")
    numbers, times, _ = what_is_left(films.cut(tmp_path / "whole.ts", tmp_path / "cut.ts", 0.6))
    assert 4 <= len(numbers) <= 7
    assert numbers == np.rint(times * 30).astype(int).tolist()


@pytest.mark.parametrize("decoder", ["auto", "ffmpeg"])
def test_a_damaged_middle_leaves_the_rest_in_its_place(film: Path, tmp_path: Path, decoder: str) -> None:
    damaged = films.scramble(film, tmp_path / "damaged.mp4", 0.45, 0.55)
    numbers, times, warnings = what_is_left(damaged, decoder=decoder, fps=3)
    assert len(warnings) == 1
    right = np.array(numbers) == np.rint(times * 30)
    assert right[times < 4].all()
    assert right[times > 7].all()
    assert (np.diff(times) > 0).all()
    assert (times < 4).sum() >= 10
    assert (times > 7).sum() >= 8


def test_a_stream_without_a_frame(tmp_path: Path) -> None:
    colour = ("-f", "lavfi", "-i", "color=s=64x64", "-frames:v", "0", "-c:v", "libx264", "-movflags", "empty_moov")
    films.ffmpeg(*colour, tmp_path / "none.mp4")
    assert failure(tmp_path / "none.mp4").kind == "empty"


def test_a_span_without_a_frame(film: Path) -> None:
    error = failure(film, start=20)
    assert (error.kind, str(error)) == ("empty", "no frame from 20 s: the video lasts 10.0 s")


def test_absurd_dimensions(tmp_path: Path) -> None:
    huge = ("-f", "lavfi", "-i", "color=s=16384x8192:d=0.1:r=10", "-frames:v", "1", "-c:v", "mjpeg")
    films.ffmpeg(*huge, tmp_path / "huge.avi")
    assert failure(tmp_path / "huge.avi").kind == "too_large"


@pytest.mark.skipif(not decord_installed(), reason="decord is not installed")
def test_a_forced_decoder_says_what_it_cannot(film: Path, tmp_path: Path) -> None:
    av1 = films.film(tmp_path / "av1.mkv", 60, "-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1")
    assert failure(av1, decoder="decord").kind == "unsupported_codec"
    films.ffmpeg("-ss", "1.4", "-i", film, "-an", "-c", "copy", tmp_path / "edit.mp4")
    assert "frames" in str(failure(tmp_path / "edit.mp4", decoder="decord"))


def test_a_video_under_a_pictures_name_is_still_a_video(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    path.write_bytes(film.read_bytes())
    assert len(what_is_left(path)[0]) == 10


def test_names_are_taken_literally(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "a:b.mp4", "100%d {notes}.mp4", "été 影.mp4", os.fsdecode(b"caf\xe9.mp4")):
        Path(name).write_bytes(film.read_bytes())
        for decoder in DECODERS if name.isprintable() else ("ffmpeg", "auto"):
            assert len(what_is_left(Path(name), decoder=decoder)[0]) == 10


def test_media_are_known_by_their_suffix() -> None:
    assert is_media_path("a/b.MP4")
    assert is_media_path(Path("b.webp"))
    assert not is_media_path("notes.txt")
    assert not is_media_path("mp4")
