"""Writes a rendered demo video as H.264: `python -m llava_mini_cli.demo VIDEO.mp4 [SEED]`. Prints what it shows."""

import subprocess
import sys
from collections.abc import Iterator

import imageio_ffmpeg
import numpy as np

from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import generator
from llava_mini_cli.demo.video_questions import kind_name
from llava_mini_cli.demo.videos import Video, random_video

EDGE = 336  # pixels
FPS = 8


def frames(video: Video, seed: int, fps: int = FPS) -> Iterator[bytes]:
    """Raw RGB frames of a video, all in one look."""
    look = random_look(np.random.default_rng(seed), video.background)
    for number in range(video.seconds * fps):
        # The same noise in every frame, so that nothing moves but the shapes.
        yield render(video.scene((number + 0.5) / fps), look, EDGE, np.random.default_rng(seed)).tobytes()


def write_video(path: str, video: Video, seed: int, fps: int = FPS) -> None:
    """A file with a video as H.264."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{EDGE}x{EDGE}", "-r", str(fps), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", path]
    subprocess.run(command, input=b"".join(frames(video, seed, fps)), check=True)


def main() -> None:
    path, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    video = random_video(generator("heldout", seed), "heldout", "move")
    write_video(path, video, seed)
    print(f"{path}: {video.seconds} s, {kind_name(video.main[0].thing)} moves {video.direction}, {video.background}")


if __name__ == "__main__":
    main()
