"""Media broken in ten ways, each with the error type that it must give, and whole ones to put them between."""

import ctypes
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *arguments]
    subprocess.run(command, check=True)


def make_video(path: Path, seconds: int = 2) -> None:
    source = f"testsrc2=duration={seconds}:size=64x48:rate=5"
    ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-g", "5", str(path))


def make_picture(path: Path, seed: int) -> None:
    """A small JPEG, each another."""
    colours = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(colours).resize((160, 120)).save(path, quality=85)


def truncated(path: Path) -> None:
    make_picture(path.with_suffix(".jpg"), 1)
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.with_suffix(".png").touch()


def wrong_type(path: Path) -> None:
    path.with_suffix(".jpg").write_text("<html>404: no such picture</html>\n" * 20)


def zero_frames(path: Path) -> None:
    """A video whose header is all there is."""
    path.with_suffix(".y4m").write_text("YUV4MPEG2 W64 H48 F5:1 Ip A1:1 C420jpeg\n")


def no_permission(path: Path) -> None:
    """See `without_privilege` for root, who may read everything."""
    make_picture(path.with_suffix(".jpg"), 2)
    path.with_suffix(".jpg").chmod(0)


def hanging_decoder(path: Path) -> None:
    """A pipe to which nobody writes: whatever reads it waits for ever."""
    os.mkfifo(path.with_suffix(".mp4"))


def absurd_dimensions(path: Path) -> None:
    """A PNG of 100,000 by 100,000 pixels, says its header."""
    path.with_suffix(".png").write_bytes(png(100_000, 100_000, b""))


def decompression_bomb(path: Path) -> None:
    """A PNG of 14,000 by 14,000 pixels in some kilobytes."""
    path.with_suffix(".png").write_bytes(png(14_000, 14_000, zlib.compress(bytes(14_000 * 1000), 9)))


def audio_only(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(path.with_suffix(".m4a")))
    path.with_suffix(".m4a").rename(path.with_suffix(".mp4"))


def moov_missing(path: Path) -> None:
    """The first half of an MP4, whose index is at its end."""
    make_video(path.with_suffix(".mp4"))
    data = path.with_suffix(".mp4").read_bytes()
    path.with_suffix(".mp4").write_bytes(data[: data.index(b"moov") - 4])


BROKEN: dict[Callable[[Path], None], str] = {
    truncated: "truncated",
    empty: "empty",
    wrong_type: "unreadable",
    zero_frames: "empty",
    no_permission: "unreadable",
    hanging_decoder: "timeout",
    absurd_dimensions: "too_large",
    decompression_bomb: "too_large",
    audio_only: "no_video",
    moov_missing: "truncated",
}


def make_batch(folder: Path, pictures: int, videos: int) -> dict[str, str | None]:
    """Whole media, and three broken in each way scattered among them; the error type of each, by file name."""
    expected: dict[str, str | None] = {}
    every = max(1, pictures // (3 * len(BROKEN)))
    for number in range(pictures):
        make_picture(folder / f"{number:05}.jpg", number)
        expected[f"{number:05}.jpg"] = None
    for number in range(videos):
        make_video(folder / f"{number * pictures // videos:05}-video.mp4")
        expected[f"{number * pictures // videos:05}-video.mp4"] = None
    for number in range(3 * len(BROKEN)):
        make = list(BROKEN)[number % len(BROKEN)]
        stem = f"{number * every:05}-{make.__name__}"
        make(folder / stem)
        (made,) = folder.glob(f"{stem}.*")
        expected[made.name] = BROKEN[make]
    return expected


def without_privilege() -> None:
    """Takes root's privilege to read everything from this process and those that it starts. For `preexec_fn`."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG with a header that may promise more than there is."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
