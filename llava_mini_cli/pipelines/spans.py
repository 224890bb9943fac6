"""The spans of a medium as windows of one request, made one by one as its frames come, and the row that each answer is.

Knows nothing of engines, and not how a row is filled in.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import ceil, inf, isfinite
from typing import NamedTuple, overload

from llava_mini_cli.config import SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import WHOLE, Window
from llava_mini_cli.formats.job import Fault, Job, TimeSpan
from llava_mini_cli.media.clip import ClipInfo

MOST_SPANS = 1_000_000  # of one medium, whose length a file may make up


class Place(NamedTuple):
    """The row that an answer belongs to."""

    question: int  # of the job, by its index
    span: TimeSpan | None  # None: the medium as a whole
    key: str
    of: int = 1  # spans that the question has about its medium


class Grid(NamedTuple):
    """Stretches of the same length, one every `step` seconds, up to the first that reaches the end."""

    begin: float  # seconds
    end: float | None  # None: a picture, or a video of which nobody knows how long it is
    length: float
    step: float
    is_picture: bool = False

    @property
    def total(self) -> int:
        """The number of stretches, at least one."""
        if self.end is None:
            return 1
        asked = self.end - self.begin
        reaching, begun = (ceil(round(one / self.step, 6)) for one in (asked - self.length, asked))
        return max(1, min(1 + reaching, begun))

    def bounds(self, number: int) -> tuple[float, float]:
        """Where a stretch begins and ends; the first has the number 1. Neighbours meet without a gap."""
        start = self.begin if number == 1 else self.begin + (number - 1) * self.step  # which may be endless
        return round(start, 6), round(start + self.length, 6)

    def window(self, number: int, without: frozenset[int] = frozenset()) -> Window:
        """A stretch for the engine. One that reaches the end is open, so that no frame is left over."""
        start, end = self.bounds(number)
        return Window(start, inf if self.end is None or end >= round(self.end, 6) else end, without)

    def span(self, number: int) -> TimeSpan:
        """A stretch for its row."""
        if self.is_picture:
            return TimeSpan(number, None, None, "")
        start, end = self.bounds(number)
        return TimeSpan(number, start, self.end if self.end is None else min(end, self.end), "")


class Listed(NamedTuple):
    """Stretches that a list has."""

    spans: tuple[TimeSpan, ...]

    @property
    def total(self) -> int:
        """The number of stretches."""
        return len(self.spans)

    def window(self, number: int, without: frozenset[int] = frozenset()) -> Window:
        """A stretch for the engine."""
        _, start, end, _ = self.spans[number - 1]
        return Window(start or 0.0, inf if end is None else end, without)

    def span(self, number: int) -> TimeSpan:
        """A stretch for its row."""
        return self.spans[number - 1]


def grid_of(info: ClipInfo, spans: SpanOptions, sampling: SamplingOptions) -> Grid:
    """The stretches of a medium that was opened, or whose header was read."""
    begin = sampling.start or 0.0
    if info.kind == "image" or info.duration_s is None or not isfinite(info.duration_s):
        is_picture = info.kind == "image"
        return Grid(begin, None if is_picture else sampling.end, spans.length, spans.step, is_picture)
    return Grid(begin, min(info.duration_s, sampling.end or inf), spans.length, spans.step)


def looked_at(span: TimeSpan | None, info: ClipInfo, sampling: SamplingOptions) -> tuple[float, float]:
    """Where what is looked at of a medium begins and ends, in seconds; infinity where nobody knows, 0 for a picture.

    Args:
        span: the part of the medium that its job is about; None: all of it.
    """
    if info.kind == "image":
        return 0.0, 0.0
    start, end = (None, None) if span is None else span[1:3]
    begin = max(start or 0.0, sampling.start or 0.0)
    return begin, min(inf if end is None else end, sampling.end or inf, info.duration_s or inf)


class LazyWindows(Sequence[Window]):
    """Windows each of which is made when it is asked for."""

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | Sequence[Window]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._window(index)

    @abstractmethod
    def _window(self, index: int) -> Window: ...


class SpanWindows(LazyWindows):
    """The windows that a job's questions are asked of: the whole, then each span of which a row is not there yet.

    No window is kept, so that a video may have very many.
    """

    def __init__(self, job: Job, info: ClipInfo, spans: SpanOptions, sampling: SamplingOptions) -> None:
        is_listed = job.spans and info.kind == "video"
        self.grid = Listed(job.spans) if is_listed else grid_of(info, spans, sampling)
        keys = [question.spans for question in job.questions]
        self._job = job
        self._is_untimed = spans.timed and info.kind == "image"
        self._there = [frozenset[int]() if key is None else key.there for key in keys]
        self._not_whole = frozenset(
            index for index, key in enumerate(keys) if not (spans.whole if key is None else key.whole)
        )
        self._has_whole = len(self._not_whole) < len(keys)
        self._is_begun = any(self._there)
        everywhere = self._there[0].intersection(*self._there[1:])
        numbers = range(1, self.grid.total + 1)
        self._numbers = [one for one in numbers if one not in everywhere] if everywhere else numbers

    @property
    def fault(self) -> Fault | None:
        """Why they cannot be asked about, if so: there are too many, or a picture has no times for subtitles."""
        if self._is_untimed:
            return Fault("output", "no_time", "a picture has no times, which subtitles need")
        if self.grid.total <= MOST_SPANS:
            return None
        words = f"it lasts so long that it has {self.grid.total:,} stretches; at most {MOST_SPANS:,} are asked about"
        return Fault("decode", "too_many", words)

    def place(self, window: int, question: int) -> Place:
        """The row of a question about one of the windows."""
        asked = self._job.questions[question]
        if self._has_whole and window == 0:
            return Place(question, None, asked.key)
        number = self._numbers[window - self._has_whole]
        key = "" if asked.spans is None else asked.spans.key(number, is_last=number == self.grid.total)
        return Place(question, self.grid.span(number), key, self.grid.total)

    def __len__(self) -> int:
        return self._has_whole + len(self._numbers)

    def _window(self, index: int) -> Window:
        if self._has_whole and index == 0:
            return Window(WHOLE.start, WHOLE.end, self._not_whole)
        number = self._numbers[index - self._has_whole]
        return self.grid.window(number, self._answered(number))

    def _answered(self, number: int) -> frozenset[int]:
        """The questions of which the row about a span is there."""
        if not self._is_begun:
            return frozenset()
        return frozenset(question for question, numbers in enumerate(self._there) if number in numbers)


class RowWindows(LazyWindows):
    """The windows of questions that have a stretch each, ordered by their starts; equal stretches share one.

    A stretch that asks the same twice has two windows, so that there is an answer for each. A picture has one stretch.
    """

    def __init__(self, job: Job, info: ClipInfo) -> None:
        self.prompts = tuple(dict.fromkeys(question.prompt._replace(name=None) for question in job.questions))
        number = {one: index for index, one in enumerate(self.prompts)}
        asked: dict[tuple[float, float], list[dict[int, int]]] = {}  # prompt -> question, of each window of a stretch
        for index, question in enumerate(job.questions):
            _, start, end, _ = (info.kind == "video" and question.span) or TimeSpan(0, None, None, "")
            windows = asked.setdefault((start or 0.0, inf if end is None else end), [])
            prompt = number[question.prompt._replace(name=None)]
            window = next((one for one in windows if prompt not in one), None)
            if window is None:
                windows.append(window := {})
            window[prompt] = index
        self._questions = [(span, asked[span][number]) for span in sorted(asked) for number in range(len(asked[span]))]
        self._job = job
        self._is_picture = info.kind == "image"

    def place(self, window: int, prompt: int) -> Place:
        """The row of a prompt about one of the windows."""
        index = self._questions[window][1][prompt]
        question = self._job.questions[index]
        span = question.span
        if span is not None and self._is_picture:
            span = span._replace(start=None, end=None)
        return Place(index, span, question.key)

    def __len__(self) -> int:
        return len(self._questions)

    def _window(self, index: int) -> Window:
        (start, end), asked = self._questions[index]
        return Window(start, end, frozenset(range(len(self.prompts))) - asked.keys())


def places_unopened(job: Job, question: int) -> Iterator[Place]:
    """The rows of a question about a medium that cannot be opened.

    Of its spans nothing is known, so that one row stands for those that are not there yet.
    """
    asked = job.questions[question]
    if asked.spans is None:
        yield Place(question, asked.span or job.span, asked.key)
        return
    if asked.spans.whole:
        yield Place(question, None, asked.key)
    number = 1
    while number in asked.spans.there:
        number += 1
    yield Place(question, TimeSpan(number, None, None, ""), asked.spans.key(number, is_last=True))
