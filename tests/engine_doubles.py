"""Frame sources for engine tests: arrays in place of decoders."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.clip import FrameChunk


class ArrayFrames:
    """Frames from an array, `size` at a time, one a second; may fail after some, and may keep the engine waiting."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        size: int = 7,
        error: MediaError | None = None,
        not_ready: int = 0,
    ) -> None:
        self.pixels = pixels
        self.size = size
        self.error = error
        self.not_ready = not_ready  # how often `ready` says no
        self.closed = False

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, len(self.pixels), self.size):
            part = self.pixels[start : start + self.size]
            yield FrameChunk(part, np.arange(start, start + len(part), dtype=np.float64))
        if self.error is not None:
            raise self.error

    def ready(self) -> bool:
        self.not_ready -= 1
        return self.not_ready < 0

    def close(self) -> None:
        self.closed = True


def noise_video(frames: int, seed: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Frames that differ from one another, uint8 `[frames, height, width, 3]`."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 128, (frames, 1, 1, 3))
    return (colour + generator.integers(0, 128, (frames, height, width, 3))).astype(np.uint8)
