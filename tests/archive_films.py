"""Rendered videos of which tests make archives, and the commands as a user runs them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import Scene, Thing

EDGE, FPS = 192, 4

FILMS = {  # what is seen in each second
    "red.mp4": ["red circle"] * 2 + ["blue square"] * 3,
    "green.mp4": ["green triangle"] * 4,
    "yellow.mp4": ["purple cross"] * 2 + ["yellow circle"] * 2 + ["purple cross"] * 2,
}


def picture(name: str) -> np.ndarray:
    colour, shape = name.split()
    rng = np.random.default_rng(1)
    scene = Scene((Thing(shape, colour, "large", 0.5, 0.5),), "black")
    return render(scene, random_look(rng, "black"), EDGE, rng)


def film(path: Path, seconds: list[str]) -> None:
    write_film(path, [picture(name) for name in seconds])


def write_film(path: Path, seconds: list[np.ndarray]) -> None:
    """A film of which every second shows one picture."""
    frames = b"".join(shown.tobytes() * FPS for shown in seconds)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{EDGE}x{EDGE}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=frames, check=True)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]
