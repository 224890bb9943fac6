"""ffmpeg's own words become a header, packets a timeline, and what it refuses the right error: no film is decoded."""

import math
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from shlex import quote
from typing import Any

import imageio_ffmpeg
import pytest

from llava_mini_cli.errors import LlavaMiniError, MediaError
from llava_mini_cli.media.child import NOTES, Child
from llava_mini_cli.media.containers import WHITELIST
from llava_mini_cli.media.ffmpeg_program import _found_ffmpeg, ffmpeg_binary  # pyright: ignore[reportPrivateUsage]
from llava_mini_cli.media.probe import Header, VideoStream, display_size, read_header
from llava_mini_cli.media.scan import (
    because,
    clean,
    ffmpeg_command,
    header_of,
    scan,
    timestamps_as_notes,
)

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
INPUT = f"[info] Input #0, {MP4}, from 'file:/films/a.mp4':"
DURATION = "[info]   Duration: 01:02:03.50, start: 0.000000, bitrate: 42 kb/s"
VIDEO = "[info]   Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p, 256x144, 30 fps"
SOUND = "[info]   Stream #0:1[0x2](und): Audio: aac (LC), 44100 Hz, mono"
OUTPUT = "[info] Output #0, framecrc, to 'pipe:1':"
PLAIN = VideoStream(0, "h264", 256, 144)


# The banner


def test_a_whole_banner() -> None:
    mapping = ("[info] Stream mapping:", "[info]   Stream #0:0 -> #0:0 (copy)")
    lines = (INPUT, DURATION, VIDEO, SOUND, *mapping, OUTPUT, VIDEO, "[error] [mov @ 0x55] bad atom. ")
    assert read_header(lines) == Header(MP4, 3723.5, (PLAIN,), 2, 0, ("[mov @ 0x55] bad atom.",))


def test_a_banner_without_levels_and_without_a_duration() -> None:
    lines = [line.removeprefix("[info] ") for line in (INPUT, "  Duration: N/A, bitrate: N/A", VIDEO)]
    assert read_header(lines) == Header(MP4, None, (PLAIN,), 1, None, ())


def test_nothing_said() -> None:
    assert read_header([]) == Header("", None, (), 0, None, ())


@pytest.mark.parametrize(("level", "counts"), [("error", 1), ("fatal", 1), ("panic", 1), ("warning", 0), ("info", 0)])
def test_complaints_are_errors_and_worse(level: str, counts: int) -> None:
    assert read_header([f"[{level}] moov atom not found"]).complaints == ("moov atom not found",) * counts


@pytest.mark.parametrize(
    ("degrees", "rotation"), [("-90.00", -90.0), ("90", 90.0), ("nan", 0.0), ("-nan", 0.0), ("180.00", 180.0)]
)
def test_a_rotation_belongs_to_the_video_before_it(degrees: str, rotation: float) -> None:
    matrix = f"[info]       displaymatrix: rotation of {degrees} degrees"
    assert read_header([INPUT, VIDEO, matrix]).videos == (replace(PLAIN, rotation=rotation),)
    assert read_header([INPUT, VIDEO, SOUND, matrix]).videos == (PLAIN,)
    assert read_header([INPUT, VIDEO, OUTPUT, matrix]).videos == (PLAIN,)


@pytest.mark.parametrize(
    ("pixels", "deep"), [("yuv420p", False), ("yuv420p10le", True), ("gray9be", True), ("yuv444p16le", True)]
)
def test_more_than_8_bits_a_channel(pixels: str, deep: bool) -> None:
    (stream,) = read_header([INPUT, VIDEO.replace("yuv420p", pixels)]).videos
    assert stream == replace(PLAIN, is_deep=deep)


def test_a_cover_an_unknown_codec_and_no_size() -> None:
    cover = "Stream #0:1: Video: mjpeg (Baseline), yuvj420p(pc), 100x50 [SAR 1:1 DAR 2:1], 90k tbr (attached pic)"
    unknown = "Stream #0:2: Video: none, 90k tbr"
    header = read_header([INPUT, VIDEO, cover, unknown])
    assert header.videos[1:] == (VideoStream(1, "mjpeg", 100, 50, is_cover=True), VideoStream(2, "none", 0, 0))


def header(*videos: VideoStream, count: int = 1, mapped: int | None = None) -> Header:
    return Header(MP4, None, videos, count, mapped, ())


def test_the_stream_is_the_one_that_ffmpeg_chose_or_the_largest() -> None:
    small, large = PLAIN, VideoStream(1, "h264", 1920, 1080)
    assert header(small, large).stream() is large
    assert header(small, large, mapped=0).stream() is small
    assert header(small, large, mapped=2).stream() is large
    assert header(replace(large, is_cover=True), small).stream() is small


def test_streams_that_nobody_can_look_at() -> None:
    for count, text in ((0, "no video stream"), (1, "no video stream, only sound")):
        with pytest.raises(MediaError) as none:
            header(replace(PLAIN, is_cover=True), count=count).stream()
        assert (none.value.kind, str(none.value)) == ("no_video", text)
    assert header(replace(PLAIN, width=8192, height=8192)).stream().width == 8192
    with pytest.raises(MediaError) as huge:
        header(replace(PLAIN, width=8193, height=8192)).stream()
    assert (huge.value.kind, str(huge.value)) == ("too_large", "frames of 8193x8192 pixels are too large to decode")


@pytest.mark.parametrize(
    ("rotation", "turned"),
    [
        (None, False),
        (0, False),
        (45, False),
        (46, True),
        (-90, True),
        (134, True),
        (135, False),
        (180, False),
        (270, True),
    ],
)
def test_a_quarter_turn_swaps_width_and_height(rotation: float | None, turned: bool) -> None:
    assert display_size(replace(PLAIN, rotation=rotation)) == ((144, 256) if turned else (256, 144))


# How ffmpeg is run


def test_the_command_of_a_run() -> None:
    command = ffmpeg_command(Path("/films/a.mp4"), {"an": None, "f": "null"}, seek=7, level="error", stdin=b"words")
    quiet = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+error"]
    alone = ["-format_whitelist", WHITELIST, "-protocol_whitelist", "file"]
    opened = [*alone, "-ss", "7", "-i", "file:/films/a.mp4"]
    assert command.argv == [ffmpeg_binary(), *opened, "-f", "null", "-an", "pipe:1", *quiet]
    assert command.stdin == b"words"
    plain = ffmpeg_command(Path("a.mp4"), {})
    assert "-ss" not in plain.argv
    assert f"file:{Path('a.mp4').absolute()}" in plain.argv
    assert plain.argv[-1] == "repeat+level+info"


def test_where_ffmpeg_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is run: the programs here could not be."""
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setattr(imageio_ffmpeg, "__file__", str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(LlavaMiniError, match=r"^there is no ffmpeg to decode videos with: python -m pip install"):
        ffmpeg_binary()
    for name in ("path/ffmpeg", "prefix/bin/ffmpeg", "package/binaries/ffmpeg-linux-v9"):  # the last one first
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.touch(0o644)
        _found_ffmpeg.cache_clear()
        if name != "path/ffmpeg":
            assert ffmpeg_binary() != str(program)  # it cannot be executed
        program.chmod(0o755)
        _found_ffmpeg.cache_clear()
        assert ffmpeg_binary() == str(program)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/my/ffmpeg")
    assert ffmpeg_binary() == "/my/ffmpeg"


def test_timestamps_are_noted_in_ticks() -> None:
    options = timestamps_as_notes(Fraction(1, 90_000))
    assert options["enc_time_base"] == "1/90000"
    assert options["stats_enc_pre"] == NOTES
    assert options["stats_enc_pre_fmt"] == "{pts}"
    assert options["fps_mode"] == "passthrough"


@pytest.mark.parametrize(
    ("complaint", "text"),
    [
        ("[mov @ 0x1] [x] it broke. . ", "it broke"),
        ("it broke", "it broke"),
        ("[mov @ 0x1] ", "no reason given"),
        ("[no end", "[no end"),
        ("", "no reason given"),
    ],
)
def test_a_complaint_without_its_addresses(complaint: str, text: str) -> None:
    assert clean(complaint) == text
    assert because((complaint, "another")) == f" ({text})"
    assert because(()) == ""


# What it finds, by an ffmpeg that says what the test wants


class ScriptedFfmpeg:
    """A program in ffmpeg's place: `said` on stderr, `packets` on stdout, `times` as notes of the run that decodes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.program = folder / "ffmpeg"
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(self.program))

    def say(self, *said: str, packets: str = "", times: str = "", before: str = "") -> Path:
        tell, words = (
            "printf %s ",
            "\n".join(said),
        )  # confined as it is, it can open no file
        lines = [
            "#!/bin/sh",
            before,
            "for word; do case $word in pipe:1) ;; pipe:*) notes=${word#pipe:} ;; esac; done",
            f"{tell}{quote(words)} >&2",
            'case "$*" in',
            f"*wrapped_avframe*) {tell}{quote(times)} > /dev/fd/$notes ;;",
            f"*) {tell}{quote(packets)} ;;",
            "esac",
        ]
        self.program.write_text("\n".join(lines))
        self.program.chmod(0o755)
        return self.folder / "a.mp4"


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFfmpeg:
    return ScriptedFfmpeg(tmp_path, monkeypatch)


def packets(*rows: tuple[int, int, int], base: str = "1/10") -> str:
    """Packets of (pts, duration, flags) in decoding order, as framecrc writes them."""
    head = f"#software: Lavf\n#tb 0: {base}\n"
    return head + "".join(f"0, {n}, {pts:4d}, {d}, 99, 0xabc, F=0x{f:x}\n" for n, (pts, d, f) in enumerate(rows))


def trouble(path: Path, timeout: float = 20) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        scan(path, timeout)
    return caught.value.kind, str(caught.value)


def test_packets_become_a_timeline_in_order_of_display(ffmpeg: ScriptedFfmpeg) -> None:
    path = ffmpeg.say(INPUT, DURATION, VIDEO, packets=packets((0, 1, 1), (3, 4, 0), (1, 1, 0), (7, 2, 1)))
    found = scan(path, 20)
    assert found.header.duration_s == 3723.5
    assert found.stream == PLAIN
    assert found.timeline.pts.tolist() == [0, 1, 3, 7]
    assert found.timeline.time_base == Fraction(1, 10)
    assert found.timeline.last_duration == 2
    assert found.keys.tolist() == [0, 7]
    assert found.oddities == ()


def test_a_packet_without_flags_is_a_key_frame(ffmpeg: ScriptedFfmpeg) -> None:
    lines = "#tb 0: 1/25\n0, 0, 5, -1, 99, 0xabc\n1, 0, 0, 1, 99, 0xabc\n0, 1, 2, 1, 99, 0xabc\n"
    found = scan(ffmpeg.say(INPUT, VIDEO, packets=lines), 20)
    assert found.timeline.pts.tolist() == [2, 5]  # the packet of stream 1 is not this video's
    assert found.keys.tolist() == [2, 5]
    assert found.timeline.last_duration == 0
    assert found.timeline.time_base == Fraction(1, 25)


@pytest.mark.parametrize(
    ("rows", "codec", "oddities", "shown"),
    [
        ([(0, 1, 1), (1, 1, 5), (2, 1, 0)], "h264", ("edit list",), [0, 2]),
        ([(-1, 1, 1), (0, 1, 0)], "h264", ("negative timestamps",), [-1, 0]),
        ([(5, 1, 1), (4, 1, 0), (6, 1, 0)], "h264", ("open groups of pictures",), [4, 5, 6]),
        ([(4, 1, 0), (5, 1, 1), (6, 1, 0)], "h264", (), [4, 5, 6]),
        ([(0, 1, 1), (0, 1, 0)], "h264", ("packets without timestamps of their own",), [10, 20, 40]),
        ([(0, 1, 1), (1, 1, 0)], "vp8", ("packets without timestamps of their own",), [10, 20, 40]),
    ],
)
def test_what_makes_counting_packets_unsafe(
    ffmpeg: ScriptedFfmpeg, rows: list[tuple[int, int, int]], codec: str, oddities: tuple[str, ...], shown: list[int]
) -> None:
    path = ffmpeg.say(INPUT, VIDEO.replace("h264", codec), packets=packets(*rows), times="20\n10\n40\n40\n")
    found = scan(path, 20)
    assert found.oddities == oddities
    assert found.timeline.pts.tolist() == shown


def test_packets_without_any_time_are_decoded_for_theirs(ffmpeg: ScriptedFfmpeg) -> None:
    unset = -(1 << 63)
    path = ffmpeg.say(INPUT, VIDEO, packets=packets((unset, 1, 1), (unset, 1, 0)), times="0\n10\n20\n40\n")
    found = scan(path, 20)
    assert found.timeline.pts.tolist() == [0, 10, 20, 40]
    assert found.timeline.last_duration == 10  # the usual step
    assert found.keys.tolist() == []
    one = scan(ffmpeg.say(INPUT, VIDEO, packets=packets((unset, 1, 1)), times="7\n"), 20).timeline
    assert (one.pts.tolist(), one.last_duration) == ([7], 0)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ("[error] moov atom not found", "truncated", "the file is cut short: its index (moov) is missing"),
        ("[fatal] a.mp4: Permission denied", "unreadable", "permission denied"),
        ("[fatal] a.mp4: Input/output error", "unreachable", "input/output error while reading"),
        ("[fatal] a.mp4: Stale file handle", "unreachable", "stale file handle while reading"),
        ("[fatal] a.mp4: Too many open files", "no_resources", "too many open files while reading"),
        ("[fatal] a.mp4: Cannot allocate memory", "unreadable", "cannot be opened (a.mp4: Cannot allocate memory)"),
        ("[fatal] a.mp4: Invalid data found", "unreadable", "neither a picture nor a video in any known format"),
        ("[warning] misdetection possible!", "unreadable", "neither a picture nor a video in any known format"),
        ("[error] [x @ 0x1] odd.", "unreadable", "cannot be opened (odd)"),
        ("[info] nothing", "unreadable", "cannot be opened"),
    ],
)
def test_why_a_file_cannot_be_opened(ffmpeg: ScriptedFfmpeg, said: str, kind: str, text: str) -> None:
    path = ffmpeg.say(said)
    assert trouble(path) == (kind, text)
    with pytest.raises(MediaError) as caught:
        header_of(path, 20)
    assert (caught.value.kind, str(caught.value)) == (kind, text)


def test_a_guess_from_the_name_alone_is_no_cut_video(ffmpeg: ScriptedFfmpeg) -> None:
    said = ("[warning] Format mov detected only with low score of 1, misdetection possible!", "moov atom not found")
    assert trouble(ffmpeg.say(*said)) == ("unreadable", "neither a picture nor a video in any known format")


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (["[error] Format not on whitelist 'mov'"], "unreadable", "not a picture or video of a kind that is opened"),
        ([INPUT, VIDEO.replace("256x144", "256x0")], "unreadable", "neither a picture nor a video in any known format"),
        (
            [INPUT, VIDEO.replace("h264 (High)", "none")],
            "unsupported_codec",
            "the video's codec is not known to ffmpeg",
        ),
        ([INPUT, SOUND], "no_video", "no video stream, only sound"),
        ([INPUT, VIDEO], "empty", "the video stream holds no frame"),
        ([INPUT, VIDEO, "[error] cut."], "truncated", "the video ends before its first frame (cut)"),
    ],
)
def test_a_file_without_a_frame_to_look_at(ffmpeg: ScriptedFfmpeg, said: list[str], kind: str, text: str) -> None:
    assert trouble(ffmpeg.say(*said)) == (kind, text)


def test_packets_of_which_nothing_can_be_decoded(ffmpeg: ScriptedFfmpeg) -> None:
    path = ffmpeg.say(INPUT, VIDEO, "[error] bad.", packets=packets((0, 1, 1), (0, 1, 0)))
    assert trouble(path) == ("corrupt", "no frame could be decoded (bad)")


ENDS_ITSELF = "trap 'exit 183' EXIT"  # with this status, after all that it tells


def test_a_run_that_is_given_up_after_a_part(ffmpeg: ScriptedFfmpeg) -> None:
    one = packets((0, 1, 1))
    found = scan(ffmpeg.say(INPUT, VIDEO, packets=one, before=ENDS_ITSELF), 20)
    assert (len(found.timeline), found.failure) == (1, "ffmpeg gave up with status 183")
    said = (INPUT, VIDEO, "[error] first.", "[error] [mov @ 0x1] no more.")
    assert scan(ffmpeg.say(*said, packets=one, before=ENDS_ITSELF), 20).failure == (
        "ffmpeg gave up with status 183 (no more)"
    )
    vp8 = VIDEO.replace("h264", "vp8")
    found = scan(ffmpeg.say(INPUT, vp8, packets=one, times="0\n1\n", before=ENDS_ITSELF), 20)
    assert (len(found.timeline), found.failure) == (2, "ffmpeg gave up with status 183")
    assert trouble(ffmpeg.say(INPUT, VIDEO, before=ENDS_ITSELF)) == ("corrupt", "ffmpeg gave up with status 183")
    assert scan(ffmpeg.say(INPUT, VIDEO, packets=one), 20).failure is None


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_an_ffmpeg_that_never_stops_telling(ffmpeg: ScriptedFfmpeg, codec: str) -> None:
    said = f"printf %s {quote(chr(10).join((INPUT, VIDEO.replace('h264', codec))))} >&2"
    endless = "while :; do echo '0, 0, 0, 1, 99, 0xabc'; done"
    notes = "for word; do case $word in pipe:1) ;; pipe:*) notes=${word#pipe:} ;; esac; done"
    path = ffmpeg.say(before=f"{notes}; {said}; {endless}")
    path.write_bytes(bytes(100))
    kind, text = trouble(path)
    assert kind == "corrupt"
    assert text.startswith("the video has no end: ")
    assert text.endswith(" frames in 100 bytes")
    listed = f"printf %s {quote(packets((0, 1, 1), (0, 1, 0)))}"  # two frames at once, so they are decoded
    decoded = 'case "$*" in *wrapped_avframe*) while :; do echo 7; done > /dev/fd/$notes ;; esac'
    path = ffmpeg.say(before=f"{notes}; {said}; {decoded}; {listed}; exit 0")
    assert trouble(path) == ("corrupt", "the video has no end: 1,101 frames in 100 bytes")


@pytest.mark.parametrize("read", [scan, header_of])
def test_an_ffmpeg_that_says_nothing_is_given_up(ffmpeg: ScriptedFfmpeg, read: Any) -> None:
    path = ffmpeg.say(before="exec sleep 60")
    with pytest.raises(MediaError) as caught:
        read(path, 0.2)
    waited = "the file gave nothing for 0.2 s while its frames were being counted"
    assert (caught.value.kind, str(caught.value)) == ("timeout", waited)


def test_each_sign_of_life_begins_the_deadline_anew(ffmpeg: ScriptedFfmpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Child, "expect", lambda _: begun.append("anew"))
    scan(ffmpeg.say(INPUT, VIDEO, packets=packets((0, 1, 1)), times="0\n"), 20)
    plain = len(begun)
    assert plain >= 1
    scan(ffmpeg.say(INPUT, VIDEO.replace("h264", "vp8"), packets=packets((0, 1, 1)), times="0\n1\n2\n"), 20)
    assert len(begun) >= 2 * plain + 3


def test_the_header_alone(ffmpeg: ScriptedFfmpeg) -> None:
    found = header_of(ffmpeg.say(INPUT, DURATION, VIDEO), 20)
    assert math.isclose(found.duration_s or 0, 3723.5)
    assert found.stream() == PLAIN
