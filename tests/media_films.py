"""Small films made for the media tests: each frame carries its own number, so that a test can read which one it got."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.media.open import open_clip

BITS = 10
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-pix_fmt", "yuv420p", "-g", "30", "-keyint_min", "30")
B_FRAMES = (*H264, "-bf", "3", "-b_strategy", "0", "-sc_threshold", "0")


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> None:
    command = [FFMPEG, "-v", "error", "-y", *("" if stdin is not None else "-nostdin").split(), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def numbered(number: int, width: int = 256, height: int = 144) -> NDArray[np.uint8]:
    """A frame whose upper half shows `number` in binary, most significant bit left, over a lower half in colour."""
    frame = np.zeros((height, width, 3), np.uint8)
    bits = [(number >> shift) & 1 for shift in reversed(range(BITS))]
    columns = (np.arange(width) * BITS) // width
    frame[: height // 2] = (np.array(bits, np.uint8)[columns] * 255)[None, :, None]
    frame[height // 2 :, :, 0] = np.linspace(0, 255, width)
    frame[height // 2 :, :, 1] = (number * 7) % 256
    frame[height // 2 :, :, 2] = np.linspace(255, 0, height - height // 2)[:, None]
    return frame


def number_in(frame: NDArray[np.uint8]) -> int:
    """Reads what `numbered` wrote, from a frame of any size that is upright."""
    height, width = frame.shape[:2]
    columns = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = frame[height // 4, columns].mean(-1) > 128
    return int("".join("1" if bit else "0" for bit in bits), 2)


def film(
    path: Path,
    count: int,
    *arguments: str,
    fps: str = "30",
    size: tuple[int, int] = (256, 144),
    turns: int = 0,
    opening: Sequence[str] = (),
) -> Path:
    """Encodes frames numbered from 0; `turns` quarter turns against the clock are made before encoding."""
    frames = b"".join(_raw(count, size, turns))
    width, height = size if turns % 2 == 0 else size[::-1]
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps, "-i", "-")
    ffmpeg(*opening, *source, *arguments, path, stdin=frames)
    return path


def _raw(count: int, size: tuple[int, int], turns: int) -> Iterator[bytes]:
    for number in range(count):
        yield np.rot90(numbered(number, *size), turns).tobytes()


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def scramble(source: Path, target: Path, begin: float, end: float) -> Path:
    """Replaces a span of the file, given as shares of its length, by noise."""
    data = bytearray(source.read_bytes())
    span = range(int(len(data) * begin), int(len(data) * end))
    data[span.start : span.stop] = np.random.default_rng(0).integers(0, 256, len(span), np.uint8).tobytes()
    target.write_bytes(data)
    return target


def read(path: Path, **options: Any) -> tuple[np.ndarray, np.ndarray, ClipInfo]:
    """All frames, their times and what was said of them; no warning may be given."""
    with open_clip(path, SamplingOptions(decode_timeout=20, **options), chunk_frames=4) as clip:
        chunks = list(clip)
        assert clip.warnings == []
        assert all(1 <= len(chunk.pixels) <= 4 for chunk in chunks)
    pixels, times = np.concatenate([c.pixels for c in chunks]), np.concatenate([c.times for c in chunks])
    assert pixels.shape == (len(times), 336, 336, 3)
    assert clip.info.frame_count == len(times)
    return pixels, times, clip.info


def numbers(pixels: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    return [number_in(frame) for frame in pixels]
