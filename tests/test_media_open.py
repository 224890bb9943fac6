"""What is settled when a medium is opened: decoders and their order, what is doubted, the room that is asked for."""

import stat
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from media_doubles import MP4, STREAM, Decoders, found
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import open as module
from llava_mini_cli.media.bounds import most_bytes
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.media.decoders import Plan
from llava_mini_cli.media.open import Opening, is_media_path, open_clip, probe
from llava_mini_cli.media.picture import Still, open_picture_file
from llava_mini_cli.media.probe import Header
from llava_mini_cli.media.scan import VideoScan
from llava_mini_cli.media.thumbnail import thumbnail
from llava_mini_cli.media.timeline import Timeline
from llava_mini_cli.pieces import PieceLayout

FAILED = ["no frame came from decord", "no frame came from ffmpeg"]


class Room(Opening):
    """An opening that notes what it is told."""

    def __init__(self, refused: bool = False) -> None:
        self.said: list[tuple[str, int]] = []
        self.refused = refused

    def reserve(self, size: int) -> None:
        self.said.append(("reserve", size))
        if self.refused:
            raise MemoryError("no room")

    def keep(self, size: int) -> None:
        self.said.append(("keep", size))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no picture")
    return path


def opened(
    monkeypatch: pytest.MonkeyPatch, film: Path, scanned: VideoScan, decoders: Decoders | None = None, **options: Any
) -> Clip:
    monkeypatch.setattr(module, "scan", lambda path, timeout: scanned if (path, timeout) == (film, 9.0) else None)
    decoders = decoders or Decoders(decord=99, ffmpeg=99)
    return open_clip(film, SamplingOptions(decode_timeout=9, **options), decoders=decoders.mapping)


def tried(monkeypatch: pytest.MonkeyPatch, film: Path, scanned: VideoScan, **options: Any) -> list[str]:
    """The decoders that are asked, in order, where none gives a frame."""
    decoders = Decoders()
    with opened(monkeypatch, film, scanned, decoders, **options) as clip, pytest.raises(MediaError) as caught:
        list(clip)
    assert str(caught.value) in FAILED
    assert caught.value.kind == "corrupt"
    return [name for name, _ in decoders.asked]


@pytest.mark.parametrize(
    ("scanned", "order"),
    [
        (found(), ["decord", "ffmpeg"]),
        (found(300), ["decord", "ffmpeg"]),
        (found(300.1), ["ffmpeg", "decord"]),
        (found(container="matroska,webm", codec="vp9"), ["decord", "ffmpeg"]),
        (found(codec="hevc"), ["decord", "ffmpeg"]),
        (found(container="avi"), ["ffmpeg"]),
        (found(codec="av1"), ["ffmpeg"]),
        (found(is_deep=True), ["ffmpeg"]),
        (found(oddities=("edit list",)), ["ffmpeg"]),
        (found(rotation=0.0), ["ffmpeg"]),
        (found(complaints=("odd",)), ["ffmpeg"]),
    ],
)
def test_the_order_of_decoders(
    monkeypatch: pytest.MonkeyPatch, film: Path, scanned: VideoScan, order: list[str]
) -> None:
    monkeypatch.setattr(module, "decord_installed", lambda: True)
    assert tried(monkeypatch, film, scanned) == order
    assert tried(monkeypatch, film, scanned, decoder="decord") == ["decord"]
    assert tried(monkeypatch, film, scanned, decoder="ffmpeg") == ["ffmpeg"]
    monkeypatch.setattr(module, "decord_installed", lambda: False)
    assert tried(monkeypatch, film, scanned) == ["ffmpeg"]


@pytest.mark.parametrize(
    ("scanned", "doubt"),
    [
        (found(), None),
        (found(container="avi"), "container avi"),
        (found(codec="av1"), "codec av1"),
        (found(is_deep=True), "more than 8 bits a channel"),
        (found(oddities=("edit list", "negative timestamps")), "edit list"),
    ],
)
def test_a_decoder_that_was_asked_for_may_be_doubted(
    monkeypatch: pytest.MonkeyPatch, film: Path, scanned: VideoScan, doubt: str | None
) -> None:
    text = f"decord may have given the wrong frames ({doubt}); --decoder auto avoids it"
    for decoder, warnings in (("decord", [text] if doubt else []), ("ffmpeg", []), ("auto", [])):
        with opened(monkeypatch, film, scanned, decoder=decoder) as clip:
            assert sum(len(chunk.times) for chunk in clip) == 8
        assert clip.warnings == warnings


@pytest.mark.parametrize(
    ("seconds", "scanned", "warning"),
    [
        (8.0, {}, None),
        (20.0, {}, "read 8.0 of 20.0 s"),
        (10.0, {}, None),  # 0.9 of it, less a second
        (10.1, {}, "read 8.0 of 10.1 s"),
        (20.0, {"stream_count": 2}, None),  # the sound may be longer
        (8.6, {"complaints": ("[x @ 0x1] it is cut.",)}, None),  # 0.98 of it, less half a second
        (8.7, {"complaints": ("[x @ 0x1] it is cut.",)}, "read 8.0 of 8.7 s: the file is cut or damaged (it is cut)"),
        (None, {"complaints": ("odd",)}, None),
    ],
)
def test_what_the_header_promises_and_the_file_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, film: Path, seconds: float | None, scanned: dict[str, Any], warning: str | None
) -> None:
    with opened(monkeypatch, film, found(promised=seconds, **scanned)) as clip:
        list(clip)
    assert clip.warnings == ([] if warning is None else [warning])


def test_the_plan_of_a_video(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    decoders = Decoders(ffmpeg=99)
    scanned = found(rotation=-90.0)
    with opened(monkeypatch, film, scanned, decoders, start=1, end=3.05, fps=1) as clip:
        chunks = list(clip)
    ((_, plan),) = decoders.asked
    assert plan == Plan(
        path=film,
        stream=1,
        width=48,
        height=64,
        frame_size=336,
        time_base=Fraction(1, 10),
        pts=(15, 25),
        indices=(15, 25),
        total=80,
        timeline=plan.timeline,
        keys=plan.keys,
        memory=most_bytes(48 * 64, deep=False, toned=False),
        until=31,
    )
    assert plan.timeline is scanned.timeline.pts
    assert plan.keys.tolist() == scanned.keys.tolist()
    assert np.concatenate([chunk.times for chunk in chunks]).tolist() == [1.5, 2.5]
    assert clip.info == ClipInfo(str(film), "video", 48, 64, 8.0, 2, 0.975609756, "h264")


@pytest.mark.parametrize("scanned", [found(container="avi"), found(oddities=("open groups of pictures",))])
def test_where_seeking_is_not_exact_no_key_frame_is_named(
    monkeypatch: pytest.MonkeyPatch, film: Path, scanned: VideoScan
) -> None:
    decoders = Decoders(ffmpeg=99)
    with opened(monkeypatch, film, scanned, decoders) as clip:
        list(clip)
    assert decoders.asked[0][1].keys.tolist() == []


def test_frames_that_are_sampled_twice_are_asked_for_once(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    decoders = Decoders(decord=99)
    with opened(monkeypatch, film, found(0.3), decoders, fps=40) as clip:
        (chunk,) = clip
    assert decoders.asked[0][1].pts == (0, 1)
    assert chunk.times.tolist() == [0.0, 0.1, 0.1]
    assert clip.info.frame_count == 3


def test_a_video_without_a_length_has_no_rate(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    scanned = replace(found(0.1), timeline=Timeline(np.array([7]), Fraction(1, 10), 0))
    with opened(monkeypatch, film, scanned) as clip:
        assert [chunk.times.tolist() for chunk in clip] == [[0.0]]
    assert clip.info == ClipInfo(str(film), "video", 64, 48, 0.0, 1, None, "h264")


def test_a_first_look_that_was_given_up_is_a_warning(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    scanned = replace(found(), failure="ffmpeg gave up with status 183")
    with opened(monkeypatch, film, scanned) as clip:
        assert len(list(clip)) > 0
    assert clip.warnings == ["read 8.0 s of it: ffmpeg gave up with status 183"]


def test_no_frame_in_a_span(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    for span, text in (({"start": 9}, "from 9 s"), ({"start": 8.5, "end": 9}, "from 8.5 s to 9 s")):
        with pytest.raises(MediaError) as caught:
            opened(monkeypatch, film, found(), **span)
        assert (caught.value.kind, str(caught.value)) == ("empty", f"no frame {text}: the video lasts 8.0 s")


@pytest.mark.parametrize(("seconds", "frames"), [(8, 8), (100, 12)])
def test_the_room_of_a_video(monkeypatch: pytest.MonkeyPatch, film: Path, seconds: float, frames: int) -> None:
    """Its decoder's, and that of the frames that may wait: four chunks of 3, or all of them."""
    monkeypatch.setattr(module, "scan", lambda *_: found(seconds))
    room = Room()
    decoders = Decoders(decord=999).mapping
    open_clip(film, SamplingOptions(), frame_size=10, chunk_frames=3, opening=room, decoders=decoders).close()
    pixels = 24 * 64 * 48 * 3 // 2  # of a decoder's frames, in planes of 12 bits
    assert room.said == [("reserve", frames * 300 + (64 << 20) + pixels)]


def opened_bytes(path: Path) -> int:
    """The memory that decoding a picture takes, as its process tells it."""
    picture = open_picture_file(path, 60)
    assert picture is not None
    with closing(picture):
        return picture.decode_bytes


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    ("still", "shared", "kept"),
    [(None, 60 * 40 * 3, 60 * 40 * 3), (30, 0, 30 * 20 * 3), (PieceLayout(9, (8, 7), 2), 0, 5 * 8 * 7 * 3)],
)
def test_the_room_of_a_picture(tmp_path: Path, truncated: bool, still: Still, shared: int, kept: int) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 40)).save(path)
    room = Room()
    room.still = still
    open_clip(path, SamplingOptions(allow_truncated=truncated), opening=room).close()
    assert room.said == [("reserve", opened_bytes(path) + shared), ("keep", kept)]


def test_the_room_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000)
    room = Room()
    with open_clip(path, SamplingOptions(fps=2), opening=room, chunk_frames=2, frame_size=8) as clip:
        assert clip.ready()
        assert [chunk.pixels.shape for chunk in clip] == [(2, 8, 8, 3), (1, 8, 8, 3)]
    assert clip.warnings == []
    assert room.said == [("reserve", opened_bytes(path) + (40 << 20))]
    assert clip.info == ClipInfo(str(path), "video", 60, 40, 3.0, 3, 1.0, "gif")


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_file_is_closed_where_there_is_no_room(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(MemoryError):
        open_clip(tmp_path / f"a.{suffix}", SamplingOptions(), opening=Room(refused=True))
    opened = {item.readlink() for item in Path("/proc/self/fd").iterdir() if item.is_symlink()}
    assert tmp_path / f"a.{suffix}" not in opened


def test_what_a_header_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    assert probe(tmp_path / "a.png") == ClipInfo(str(tmp_path / "a.png"), "image", 60, 40, None, 1, None, "png")
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert probe(tmp_path / "a.gif") == ClipInfo(str(tmp_path / "a.gif"), "video", 60, 40, None, None, None, "gif")
    header = Header(MP4, 5.5, (replace(STREAM, rotation=90.0),), 1, None, ())
    monkeypatch.setattr(module, "header_of", lambda path, timeout: header if timeout == 10.0 else None)
    assert probe(film) == ClipInfo(str(film), "video", 48, 64, 5.5, None, None, "h264")


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (FileNotFoundError(), "not_found", "no such file"),
        (PermissionError(), "unreadable", "permission denied"),
        (ValueError("embedded null byte"), "not_found", "no file can have this name"),
        (OSError(5, "Input/output error"), "unreachable", "input/output error"),
        (OSError("Odd"), "unreadable", "odd"),
        (SimpleNamespace(st_mode=stat.S_IFDIR, st_size=9), "unreadable", "is a directory"),
    ],
)
def test_what_the_file_system_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: object, kind: str, text: str
) -> None:
    path = tmp_path / "a.png"

    def told(_: Path, **__: object) -> object:
        if isinstance(status, BaseException):
            raise status
        return status

    with monkeypatch.context() as patch, pytest.raises(MediaError) as caught:
        patch.setattr(Path, "stat", told)
        probe(path)
    assert (caught.value.kind, str(caught.value)) == (kind, text)


def test_a_file_without_a_byte(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "a.png")
    assert (caught.value.kind, str(caught.value)) == ("empty", "the file is empty")


def test_suffixes_of_media() -> None:
    assert all(is_media_path(f"a{suffix}") for suffix in (".jpg", ".PNG", ".webp", ".mp4", ".mkv", ".webm", ".y4m"))
    assert not any(is_media_path(name) for name in ("a.txt", "jpg", "mp4", "a.parquet", "a"))


def test_a_thumbnail_of_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (640, 200), (200, 30, 30)).save(tmp_path / "wide.png")
    data = thumbnail(str(tmp_path / "wide.png"), None)
    (tmp_path / "small.jpg").write_bytes(data)
    with Image.open(tmp_path / "small.jpg") as small:
        assert (small.format, small.size, small.mode) == ("JPEG", (256, 80), "RGB")
        assert np.abs(np.asarray(small).astype(int) - (200, 30, 30)).max() < 8
    Image.new("RGB", (2000, 2)).save(tmp_path / "line.png")
    (tmp_path / "small.jpg").write_bytes(thumbnail(str(tmp_path / "line.png"), None))
    with Image.open(tmp_path / "small.jpg") as small:
        assert small.size == (256, 1)


def test_a_thumbnail_of_a_moment(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (60, 40), (60 * number, 0, 0)) for number in range(4)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=1000)
    for time in (0.0, 2.0):
        (tmp_path / "small.jpg").write_bytes(thumbnail(str(tmp_path / "a.png"), time))
        with Image.open(tmp_path / "small.jpg") as small:
            assert small.size == (60, 40)
            assert abs(np.asarray(small)[..., 0].mean() - 60 * time) < 3
