"""The scenes of a video as windows that are told while it is decoded, and the row that each answer is.

Knows nothing of engines and decoders, and not how scenes are told apart.
"""

from math import inf

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import WHOLE, GrowingWindows, Window
from llava_mini_cli.formats.job import Job, TimeSpan
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.pipelines.scenes import BY_CLIP, Scenes
from llava_mini_cli.pipelines.spans import MOST_SPANS, LazyWindows, Place


class SceneWindows(LazyWindows, GrowingWindows):
    """The windows that a job's questions are asked of: the whole, then each scene of which a row is not there yet."""

    def __init__(self, job: Job, clip: Clip, spans: SpanOptions, sampling: SamplingOptions) -> None:
        self._job = job
        self._note = BY_CLIP if clip.cuts is None else ""
        duration = inf if clip.info.duration_s is None else clip.info.duration_s
        self._end = min(duration, inf if sampling.end is None else sampling.end)
        self._scenes = Scenes(clip.cuts, spans, sampling.start or 0.0, self._end, MOST_SPANS)
        self._starts = self._scenes.starts  # of the scenes so far
        self._looked_at = 0  # of them
        keys = [question.spans for question in job.questions]
        self._there = [frozenset[int]() if key is None else key.there for key in keys]
        self._not_whole = frozenset(
            index for index, key in enumerate(keys) if not (spans.whole if key is None else key.whole)
        )
        self._has_whole = len(self._not_whole) < len(keys)
        self._numbers: list[int] = []  # of the scenes that are asked about
        self._outcomes = len(keys) - len(self._not_whole)
        self._is_growing = True
        self._ask_about_new()

    @property
    def wants_embeddings(self) -> bool:
        """True if the clip does not tell where scenes begin."""
        return self._scenes.wants_embeddings

    @property
    def is_growing(self) -> bool:
        """True until the last scene is known to be the last."""
        return self._is_growing

    @property
    def outcomes(self) -> int:
        """The rows of the scenes so far, and of the whole."""
        return self._outcomes

    def reached(self, time: float) -> None:
        """Begins a scene at each of the clip's cuts up to `time`, seconds. Raises `MediaError`: there are too many."""
        try:
            self._scenes.reached(time)
        finally:
            self._ask_about_new()

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Begins a scene at each frame that is far from the one before. Frames that come again change nothing.

        Raises:
            MediaError: there are no embeddings, or too many scenes.
        """
        try:
            self._scenes.saw(times, embeddings)
        finally:
            self._ask_about_new()

    def close(self) -> None:
        """There are no more frames, so that the last scene is the last."""
        self._is_growing = False

    def is_known(self, window: int) -> bool:
        """True if it is known where a window ends, and whether another one follows."""
        is_whole = self._has_whole and window == 0
        return is_whole or not self._is_growing or self._numbers[window - self._has_whole] < len(self._starts)

    def place(self, window: int, question: int) -> Place:
        """The row of a question about one of the windows. How many scenes there are is known with the last one."""
        asked, total = self._job.questions[question], len(self._starts) + self._is_growing
        if self._has_whole and window == 0:
            return Place(question, None, asked.key)
        number = self._numbers[window - self._has_whole]
        key = "" if asked.spans is None else asked.spans.key(number, is_last=number == total)
        start, end = self._bounds(number, self._end)
        span = TimeSpan(number, round(start, 6), round(end, 6) if end < inf else None, self._note)
        return Place(question, span, key, total)

    def __len__(self) -> int:
        return self._has_whole + len(self._numbers)

    def _window(self, index: int) -> Window:
        if self._has_whole and index == 0:
            return Window(WHOLE.start, WHOLE.end, self._not_whole)
        number = self._numbers[index - self._has_whole]
        return Window(*self._bounds(number, inf), self._answered(number))

    def _bounds(self, number: int, end: float) -> tuple[float, float]:
        """Where a scene begins and ends; `end` for the last so far."""
        return self._starts[number - 1], self._starts[number] if number < len(self._starts) else end

    def _ask_about_new(self) -> None:
        """Takes note of the scenes that have begun."""
        for number in range(self._looked_at + 1, len(self._starts) + 1):
            questions = len(self._job.questions) - len(self._answered(number))
            if questions:
                self._numbers.append(number)
                self._outcomes += questions
        self._looked_at = len(self._starts)

    def _answered(self, number: int) -> frozenset[int]:
        """The questions of which the row about a scene is there."""
        return frozenset(question for question, numbers in enumerate(self._there) if number in numbers)
