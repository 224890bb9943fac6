"""Archives without a model: a collecting engine that sees the number in a frame's time, and clips of few frames."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_doubles import EchoEngine, open_made_clip
from numpy.typing import NDArray

from llava_mini_cli.config import ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, EncodedFrames, Failure, FrameShapes
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.pipelines import build_archive
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.run_parts import RunParts

WIDTH = 4


def direction(number: int) -> NDArray[np.float32]:
    """One of `WIDTH` embeddings that have nothing in common."""
    return np.eye(WIDTH, dtype=np.float32)[number % WIDTH]


def of_time(time: float) -> NDArray[np.float32]:
    """Two seconds look alike."""
    return direction(int(time) // 2)


class SeeingEngine(EchoEngine):
    """Gives each frame to its request's sink: an embedding by its time, and numbers by its time elsewhere."""

    frame_shapes = FrameShapes((1, 8), WIDTH, (1, 3, 2))

    def __init__(self, options: ModelOptions, embed: Callable[[float], NDArray[np.float32]] = of_time) -> None:
        super().__init__(options)
        self.embed = embed

    def step(self) -> list[Answer | Failure]:
        request = self._waiting.pop(0)
        sink = request.sink
        assert sink is not None
        asked = [(prompt, window) for window in range(len(request.windows)) for prompt in range(len(request.prompts))]
        try:
            for chunk in request.frames:
                sink.add(self._encoded(chunk.times, sink.features))
            sink.end()
        except MediaError as error:
            sink.fail(error.stage, error.kind, str(error))
            return [Failure(request.key, prompt, error.stage, error.kind, "cut", window) for prompt, window in asked]
        finally:
            request.frames.close()
        return [self._caption(request.key, prompt, window) for prompt, window in reversed(asked)]

    def _encoded(self, times: NDArray[np.float64], features: str | None) -> EncodedFrames:
        ones = np.ones((len(times), 1, 3, 2), features or np.float32)
        return EncodedFrames(
            times,
            np.repeat(times, 8).reshape(-1, 1, 8).astype(np.float16),
            np.stack([self.embed(time) for time in times]) if self.frame_shapes.embedding else None,
            ones * times[0].astype(ones.dtype) if features else None,
        )

    def _caption(self, key: str, prompt: int, window: int) -> Answer | Failure:
        if window == 1:
            return Failure(key, prompt, "generate", "empty", "no frames", window)
        if window == 2:
            return Failure(key, prompt, "generate", "too_long", "no room", window)
        return Answer(key, prompt, f"caption {window}", (1,), "stop", 2, 5, 2, 1, window)


def job(path: Path) -> Job:
    return Job(str(path), path.name, (Question(Prompt("index"), str(path)),))


def index_options(**changes: object) -> IndexOptions:
    return IndexOptions(ModelOptions("echo"), SamplingOptions(), **changes)  # pyright: ignore


def index(
    folder: Path,
    *media: Path | Job,
    engine: SeeingEngine | None = None,
    options: IndexOptions | None = None,
    parts: RunParts | None = None,
) -> RunParts:
    """Brings an archive up to date; returns the parts, with their tally."""
    parts = parts or RunParts(open_made_clip)
    jobs: Iterator[Job] = (job(one) if isinstance(one, Path) else one for one in media)
    options = options or index_options()
    build_archive.index_jobs(jobs, folder, lambda model: engine or SeeingEngine(model), options, parts)
    return parts


@pytest.fixture
def digest(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's files need not be there."""
    monkeypatch.setattr(build_archive, "model_digest", lambda model, revision: f"digest of {model}")
    return "digest of echo"
