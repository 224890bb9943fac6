"""The questions behind rows: one each, or for a schema one for each field; and the answers to them, put together again.

Answers come in any order. Knows neither engines nor what a row looks like.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import Choices, Grammar
from llava_mini_cli.engine.request import WHOLE, Answer, Failure, GrowingWindows, Window
from llava_mini_cli.formats.answer_schema import AnswerSchema, Part
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.pipelines.scene_windows import SceneWindows
from llava_mini_cli.pipelines.spans import LazyWindows, RowWindows, SpanWindows

Places = SpanWindows | RowWindows | SceneWindows  # what prompts are asked of, and where each answer's row belongs


@dataclass(frozen=True)
class QuestionParts:
    """What the engine is asked for some prompts."""

    parts: tuple[Part, ...]  # those of the first prompt, then those of the next
    each: int = 1  # parts of a prompt

    @classmethod
    def of(cls, prompts: Sequence[Prompt], schema: AnswerSchema | None = None) -> "QuestionParts":
        """The parts of some prompts; `schema`: what each of them is asked to fill."""
        if schema is None:
            return cls(tuple(Part(prompt.text, prompt.choices) for prompt in prompts))
        return cls(tuple(part for prompt in prompts for part in schema.parts(prompt.text)), schema.part_count)

    @property
    def texts(self) -> tuple[str, ...]:
        """The questions to the engine."""
        return tuple(part.text for part in self.parts)

    @property
    def choices(self) -> tuple[Choices | None, ...]:
        """Of each part; () where none has any, as a request has it."""
        found = tuple(part.choices for part in self.parts)
        return found if any(one is not None for one in found) else ()

    @property
    def grammars(self) -> tuple[Grammar | None, ...]:
        """The same."""
        found = tuple(part.grammar for part in self.parts)
        return found if any(one is not None for one in found) else ()

    def windows(self, windows: Sequence[Window]) -> Sequence[Window]:
        """Windows that leave out prompts, as windows that leave out their parts."""
        if self.each == 1 or windows == (WHOLE,):
            return windows
        if isinstance(windows, GrowingWindows):
            return _GrowingPartWindows(windows, self.each)
        return _PartWindows(windows, self.each)


class _PartWindows(LazyWindows):
    def __init__(self, windows: Sequence[Window], each: int) -> None:
        self._windows = windows
        self._each = each

    def __len__(self) -> int:
        return len(self._windows)

    def _window(self, index: int) -> Window:
        window, each = self._windows[index], self._each
        left_out = (range(prompt * each, (prompt + 1) * each) for prompt in window.without)
        return Window(window.start, window.end, frozenset(part for parts in left_out for part in parts))


class _GrowingPartWindows(_PartWindows, GrowingWindows):
    def __init__(self, windows: GrowingWindows, each: int) -> None:
        super().__init__(windows, each)
        self._growing = windows

    @property
    def wants_embeddings(self) -> bool:
        return self._growing.wants_embeddings

    @property
    def is_growing(self) -> bool:
        return self._growing.is_growing

    @property
    def outcomes(self) -> int:
        return self._growing.outcomes * self._each

    def reached(self, time: float) -> None:
        self._growing.reached(time)

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        self._growing.saw(times, embeddings)

    def close(self) -> None:
        self._growing.close()


@dataclass(frozen=True)
class Assembly:
    """The answers about one medium, until all those that make a row are there."""

    each: int  # parts of a prompt
    places: Places | None = None  # what the prompts are asked of; None: the medium as a whole
    _there: dict[tuple[int, int], dict[int, Answer | Failure]] = field(
        default_factory=dict[tuple[int, int], dict[int, Answer | Failure]]
    )

    def take(self, result: Answer | Failure) -> tuple[int, list[Answer | Failure]] | None:
        """The prompt and what came of its parts, in their order, once the last of them is there; None before that."""
        prompt, part = divmod(result.prompt_index, self.each)
        there = self._there.setdefault((result.window_index, prompt), {})
        there[part] = result
        if len(there) < self.each:
            return None
        del self._there[result.window_index, prompt]
        return prompt, [there[part] for part in sorted(there)]
