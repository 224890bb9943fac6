"""Small films of which every cut is known: a square that moves before one plain colour in each scene."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from media_films import H264, ffmpeg
from numpy.typing import NDArray

WIDTH, HEIGHT = 128, 72
COLOURS = ((200, 30, 30), (30, 160, 40), (40, 60, 220), (220, 220, 60), (20, 20, 20), (210, 210, 210))


def cuts_of(lengths: Sequence[int]) -> list[int]:
    """Numbers of the frames at which scenes of these lengths begin, without the first."""
    return list(accumulate(lengths))[:-1]


def picture(scene: int, number: int) -> NDArray[np.uint8]:
    """Frame `number` of a scene."""
    frame = np.full((HEIGHT, WIDTH, 3), COLOURS[scene % len(COLOURS)], np.uint8)
    left = (3 * number) % (WIDTH - 16)
    frame[20:36, left : left + 16] = (255, 128, 0)
    return frame


def pictures(lengths: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The frames of scenes, each so many frames long."""
    for scene, length in enumerate(lengths):
        for number in range(length):
            yield picture(scene, number)


def film_of(frames: Iterator[NDArray[np.uint8]], path: Path, *arguments: str, fps: str = "10") -> Path:
    """Encodes frames."""
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", fps, "-i", "-")
    ffmpeg(*source, *(arguments or H264), path, stdin=b"".join(frame.tobytes() for frame in frames))
    return path


def scene_film(path: Path, lengths: Sequence[int], *arguments: str, fps: str = "10") -> Path:
    """A film of scenes, each so many frames long."""
    return film_of(pictures(lengths), path, *arguments, fps=fps)
