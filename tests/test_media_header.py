"""When a file's streams begin, how long they last and how large they are shown, from ffmpeg's banner alone."""

import pytest

from llava_mini_cli.media.probe import Header, display_size, length, read_header, stored_size


def header(duration: str, container: str = "mov,mp4,m4a", video: str = "320x240", below: str = "") -> Header:
    lines = (
        f"Input #0, {container}, from 'a':",
        f"  Duration: {duration}, bitrate: 1 kb/s",
        "  Stream #0:0: Audio: aac, 44100 Hz, start 0.500000",
        f"  Stream #0:1: Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, progressive), {video}, 10 fps",
        below,
    )
    return read_header(lines)


@pytest.mark.parametrize(
    ("container", "duration", "stream", "seconds"),
    [
        ("mov,mp4,m4a", "00:00:12.00, start: 3600.000000", ", start 3600.000000", 12),
        ("matroska,webm", "01:00:12.00, start: 3600.000000", ", start 3600.000000", 12),
        ("matroska,webm", "01:00:12.00, start: 3600.000000", "", 12),
        ("matroska,webm", "00:00:12.00, start: 3600.000000", "", 12),  # of those who write how long it lasts
        ("matroska,webm", "00:00:12.00, start: -0.021000", "", 12),
        ("mov,mp4,m4a", "00:00:40.00, start: 0.000000", ", start 30.500000", 9.5),
        ("mov,mp4,m4a", "00:00:40.00, start: 1.000000", ", start 0.500000", 40),
        ("mov,mp4,m4a", "00:00:40.00, start: 0.000000", ", start 50.000000", 0),
        ("avi", "00:01:02.50", "", 62.5),
        ("avi", "N/A, start: 0.000000", ", start 3.000000", None),
    ],
)
def test_how_long_a_stream_is_shown(container: str, duration: str, stream: str, seconds: float | None) -> None:
    found = header(duration, container, f"320x240{stream}")
    assert length(found, found.stream()) == seconds


@pytest.mark.parametrize(
    ("video", "shown"),
    [
        ("720x576 [SAR 64:45 DAR 16:9]", (1024, 576)),
        ("720x576, SAR 16:15 DAR 4:3", (768, 576)),
        ("720x576 [SAR 16:15 DAR 4:3], SAR 64:45 DAR 16:9", (1024, 576)),  # the container's counts
        ("720x480 [SAR 32:27 DAR 16:9]", (853, 480)),
        ("720x480 [SAR 0:1 DAR 0:1]", (720, 480)),
        ("720x480 [SAR 1:0 DAR 0:1]", (720, 480)),
        ("720x480 [SAR 19:1 DAR 57:2]", (13680, 480)),
        ("720x480 [SAR 20:1 DAR 30:1]", (720, 480)),
        ("720x480 [SAR 1:19 DAR 3:38]", (38, 480)),
        ("720x480 [SAR 1:20 DAR 3:40]", (720, 480)),
        ("8x480 [SAR 1:19 DAR 3:38]", (1, 480)),
        ("320x240", (320, 240)),
    ],
)
def test_the_size_that_players_show(video: str, shown: tuple[int, int]) -> None:
    width, height = map(int, video.replace(",", " ").split()[0].split("x"))
    upright = header("N/A", video=video).stream()
    assert (display_size(upright), stored_size(upright)) == (shown, (width, height))
    turned = header("N/A", video=video, below="displaymatrix: rotation of -90.00 degrees").stream()
    assert (display_size(turned), stored_size(turned)) == (shown[::-1], (height, width))


def test_the_colours_of_a_stream() -> None:
    named = header("N/A", video="320x240").stream()
    assert (named.matrix, named.primaries, named.transfer) == ("unknown", "unknown", "unknown")
    assert not named.is_dolby_only
