"""How fast frames come, beside ffmpeg alone sampling the same frames of the same video."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import torch

from llava_mini_cli.bench.report import Column, Record, Table
from llava_mini_cli.bench.timing import alternate
from llava_mini_cli.config import DecoderName, SamplingOptions
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.needs import is_installed

FPS, SCENE_S, COPIES = 30, 10, 3  # one scene is encoded, and repeated without encoding again
SIZE = 336  # of the frames that are handed on
DECODERS: tuple[DecoderName, ...] = ("ffmpeg", "decord")


def _ffmpeg(*arguments: str) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments]


def _video(folder: Path) -> Path:
    """A 720p H.264 video with motion and noise, COPIES times SCENE_S long."""
    scene, whole, listing = folder / "scene.mp4", folder / "video.mp4", folder / "list.txt"
    source = f"testsrc2=s=1280x720:r={FPS}:d={SCENE_S},noise=alls=6:allf=t"
    encoding = ["-c:v", "libx264", "-preset", "veryfast", "-g", "250", "-pix_fmt", "yuv420p"]
    subprocess.run(_ffmpeg("-f", "lavfi", "-i", source, *encoding, str(scene)), check=True)
    listing.write_text(f"file {scene.name}\n" * COPIES)
    subprocess.run(_ffmpeg("-f", "concat", "-i", str(listing), "-c", "copy", str(whole)), check=True)
    return whole


def _alone(video: Path) -> None:
    """Samples the middle frame of each second, then scales it."""
    chain = f"select='eq(mod(n,{FPS}),{FPS // 2})',scale={SIZE}:{SIZE}"
    options = f"-fps_mode passthrough -f rawvideo -pix_fmt rgb24 -vf {chain} pipe:1".split()
    subprocess.run(_ffmpeg("-i", str(video), *options), check=True, stdout=subprocess.DEVNULL)


def _opened(video: Path, decoder: DecoderName) -> None:
    with open_clip(str(video), SamplingOptions(decoder=decoder)) as clip:
        for _ in clip:
            pass


def decode_table(rounds: int) -> Table:
    """Seconds of video a second through each decoder, in turn with ffmpeg alone.

    Raises:
        OSError, subprocess.CalledProcessError: ffmpeg cannot be run, or makes no video.
    """
    names: list[DecoderName] = [name for name in DECODERS if name == "ffmpeg" or is_installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        video = _video(Path(folder))
        works: dict[str, Callable[[], Any]] = {"alone": lambda: _alone(video)}
        for name in names:
            works[name] = lambda name=name: _opened(video, name)
        taken = alternate(rounds, torch.device("cpu"), works)
    length = SCENE_S * COPIES
    records: list[Record] = [
        {
            "decoder": {"alone": "ffmpeg alone"}.get(name, f"{name}, as in a run"),
            "times_real": round(length / seconds, 2),
            "of_ffmpeg": round(taken["alone"] / seconds, 4),
        }
        for name, seconds in taken.items()
    ]
    columns = [
        Column("decoder", "decoder"),
        Column("times_real", "seconds of video a second", 1),
        Column("of_ffmpeg", "speed in units of ffmpeg's"),
    ]
    note = f"A made {length}-second 720p H.264 video at {FPS} frames a second, one frame of each second handed on."
    return Table("decode", "Decoding", columns, records, [note])
