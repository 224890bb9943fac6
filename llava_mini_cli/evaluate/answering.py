"""Questions of tasks to the engine: every question about a medium, and all of their choices, in one pass over it.

In whichever order questions come, and whichever others there are, a question's answer is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer, Likelihood
from llava_mini_cli.engine.text_only import TextOnly
from llava_mini_cli.errors import ItemError, LlavaMiniError
from llava_mini_cli.evaluate.arguments import EvaluationOptions, Writing, read_writing
from llava_mini_cli.evaluate.visuals import Media, Medium
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.pipelines.question_parts import QuestionParts
from llava_mini_cli.pipelines.run_jobs import Asked, MediumDone, NotOpened, OutcomeCame, run_jobs
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions

Asking = tuple[Medium | None, Prompt]  # what the engine is asked; several questions of tasks may be the same one
WORST = Likelihood(-inf, False)  # of a choice whose question has no answer


class Written(NamedTuple):
    """An answer in words."""

    text: str
    prompt_tokens: int | None = None  # those of frames among them; None: there is no answer
    new_tokens: int | None = None


class Ask(NamedTuple):
    """One question of a task."""

    text: str
    medium: Medium | None  # None: it is about none
    name: str  # the task and the row, for messages


class EvaluationStopped(LlavaMiniError):
    """A question has no answer, and nothing was said about going on without it."""


@dataclass(frozen=True)
class _Found:
    """What came of one prompt about one medium."""

    text: str = ""
    counts: tuple[int, int] | None = None
    scores: Mapping[str, Likelihood] | None = None


class Answering:
    """Answers the questions of tasks."""

    def __init__(self, engine: Engine, media: Media, options: EvaluationOptions, tell: Callable[[str], None]) -> None:
        """`tell`: takes a line about what went wrong."""
        self._engine = engine
        self._media = media
        self._options = options
        self._tell = tell
        self._told: set[str] = set()
        self._text_only = TextOnly(engine)

    def write(
        self, asks: Sequence[Ask], wanted: Sequence[Mapping[str, object]], advance: Callable[[int], object]
    ) -> list[Written]:
        """The answer to each question, in their order.

        Args:
            wanted: how each is to be written: `generation_kwargs`.
            advance: is told how many more questions are done.

        Raises:
            UsageError: how an answer is wanted is not to be had. EvaluationStopped: a question has no answer.
        """
        writings: list[Writing] = []
        times: dict[object, int] = {}
        groups: dict[GenerationOptions, dict[Asking, list[int]]] = {}
        for place, (ask, kwargs) in enumerate(zip(asks, wanted, strict=True)):
            time = times.get((ask, str(kwargs)), 0)
            times[ask, str(kwargs)] = time + 1
            writing = read_writing(kwargs, self._options, time)
            for name in writing.ignored:
                self._tell_once(f"generation option {name} has no effect")
            writings.append(writing)
            groups.setdefault(writing.generation, {}).setdefault((ask.medium, Prompt(ask.text)), []).append(place)
        found: list[Written] = [Written("")] * len(asks)
        for generation, group in groups.items():
            for places, one in self._ask(group, generation, asks):
                for place in places:
                    found[place] = Written(writings[place].cut(one.text), *(one.counts or (None, None)))
                advance(len(places))
        return found

    def score(
        self, asks: Sequence[Ask], continuations: Sequence[str], advance: Callable[[int], object]
    ) -> list[Likelihood]:
        """How likely it is that each question is answered with its continuation, and ends there.

        White space around a continuation does not count. Arguments and errors as those of `write`.
        """
        choices: dict[tuple[Medium | None, str], dict[str, list[int]]] = {}
        for place, (ask, continuation) in enumerate(zip(asks, continuations, strict=True)):
            text = continuation.strip()
            if text:
                choices.setdefault((ask.medium, ask.text), {}).setdefault(text, []).append(place)
            else:
                self._failed(ask.name, "a continuation is empty")
                advance(1)
        group: dict[Asking, list[int]] = {}
        of_choice: dict[int, str] = {}
        for (medium, text), places in choices.items():
            group[medium, Prompt(text, None, tuple(places))] = [place for some in places.values() for place in some]
            of_choice |= {place: choice for choice, some in places.items() for place in some}
        generation = GenerationOptions(choice_score=self._options.choice_score)
        found = [WORST] * len(asks)
        for places, one in self._ask(group, generation, asks):
            for place in places:
                found[place] = WORST if one.scores is None else one.scores[of_choice[place]]
            advance(len(places))
        return found

    def _ask(
        self,
        group: Mapping[Asking, list[int]],
        generation: GenerationOptions,
        asks: Sequence[Ask],
    ) -> Iterator[tuple[list[int], _Found]]:
        """What comes of each prompt, with the places of the questions that it is."""
        by_medium: dict[Medium, dict[Prompt, list[int]]] = {}
        alone: list[tuple[Prompt, list[int]]] = []
        for (medium, prompt), places in group.items():
            if medium is None:
                alone.append((prompt, places))
            else:
                by_medium.setdefault(medium, {})[prompt] = places
        jobs = [_job(medium, prompts) for medium, prompts in by_medium.items()]
        if self._options.failures == "stop":
            for job in jobs:
                if (fault := self._media.find_fault(job)) is not None:
                    self._failed(job.file_name, fault.message)  # before anything is computed
        for prompt, places in alone:
            yield places, self._of_text(prompt, generation, asks[places[0]].name)
        options = RunOptions(self._options.model, self._options.sampling, generation)
        parts = RunParts(open_clip=self._media.open, find_fault=self._media.find_fault)
        with closing(run_jobs(jobs, lambda: self._engine, _asked, options, parts)) as events:
            for event in events:
                match event:
                    case NotOpened(job, fault):
                        found = self._failed(job.file_name, fault.message)
                        yield from ((_places(question), found) for question in job.questions)
                    case OutcomeCame(flight, result):
                        places = _places(flight.job.questions[result.prompt_index])
                        if isinstance(result, Answer):
                            yield places, _Found(result.text, _counts(result), result.choice_scores)
                        else:
                            yield places, self._failed(asks[places[0]].name, result.message)
                    case MediumDone(flight):
                        for warning in flight.clip.warnings:
                            self._tell_once(f"{flight.job.file_name}: {warning}")
                    case _:
                        pass

    def _of_text(self, prompt: Prompt, generation: GenerationOptions, name: str) -> _Found:
        try:
            if prompt.choices is not None:
                return _Found(scores=self._text_only.score(prompt.text, prompt.choices, generation))
            text, asked, new = self._text_only.write(prompt.text, generation)
        except ItemError as error:
            return self._failed(name, str(error))
        return _Found(text, (asked, new))

    def _failed(self, name: str, message: str) -> _Found:
        if self._options.failures == "stop":
            raise EvaluationStopped(f"{name}: {message} (failures=empty goes on without it)")
        self._tell_once(f"{name}: {message}; it counts as an empty answer")
        return _Found()

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)


def _job(medium: Medium, prompts: Mapping[Prompt, list[int]]) -> Job:
    """A medium with every question about it; a question's id is where the answer goes."""
    questions = (Question(prompt, " ".join(map(str, places))) for prompt, places in prompts.items())
    return Job(medium.key, medium.name, tuple(questions))


def _places(question: Question) -> list[int]:
    return [int(place) for place in question.id.split()]


def _asked(job: Job, _: Any) -> Asked[None]:
    parts = QuestionParts.of([question.prompt for question in job.questions])
    return Asked(parts.texts, None, choices=parts.choices)


def _counts(answer: Answer) -> tuple[int, int]:
    return answer.prompt_tokens + answer.vision_tokens, answer.completion_tokens
