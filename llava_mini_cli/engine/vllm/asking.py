"""Questions as units of work for vLLM's process, each with a task: what its result is for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.grammars import Grammars, Matcher
from llava_mini_cli.engine.language_model import Asked, PrefillItem, Question
from llava_mini_cli.engine.llm.sampling import LOOP_TOKENS, YesNo
from llava_mini_cli.engine.vllm.chooser import Chooser, Scoring
from llava_mini_cli.engine.vllm.messages import Finish, Group, Unit
from llava_mini_cli.engine.vllm.tries import Node, p_yes
from llava_mini_cli.model.modeling import LlavaMiniModel
from llava_mini_cli.model.prompt_layouts import PromptBuilder


@dataclass(eq=False)
class Writing:
    """An answer that is being written."""

    question: Question
    nbytes: int
    matcher: Matcher | None = None
    tokens: list[int] = field(default_factory=list[int])
    p_yes: float | None = None
    waits: bool = False  # for a `Yes`
    ended: Finish | None = None  # how, while it still waits


@dataclass(eq=False)
class Yes:
    """How likely yes is as the first word of an answer that is held to a grammar."""

    of: Writing
    number: int  # of the answer's own unit
    nbytes: int


@dataclass(eq=False)
class Scored:
    """A node of a scoring."""

    scoring: Scoring
    node: Node
    nbytes: int
    is_yes_no: bool = False  # it is asked how likely yes is


Task = Writing | Yes | Scored


@dataclass
class Handed:
    """What is handed over for some questions."""

    groups: list[Group] = field(default_factory=list[Group])
    tasks: dict[int, Task] = field(default_factory=dict[int, Task])  # by the numbers of their units
    scorings: list[Scoring] = field(default_factory=list[Scoring])  # what is scored, about media and about none


class Asking:
    """Makes units of questions and numbers them."""

    def __init__(self, model: LlavaMiniModel, prompts: PromptBuilder, grammars: Grammars, chooser: Chooser) -> None:
        """`model` has the table of embeddings, and may be without the layers of the language model."""
        self._model = model
        self._prompts = prompts
        self._grammars = grammars
        self._chooser = chooser
        self._yes_no: YesNo | None = None
        self._number = 0  # of the next unit

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options. Raises `UsageError`."""
        if options.yes_no and self._yes_no is None:
            self._yes_no = YesNo.of_prompts(self._prompts)

    def p_yes(self, scores: dict[int, float]) -> float:
        """How likely yes is, from the log-probabilities that a unit was asked for."""
        assert self._yes_no is not None
        return p_yes(scores, self._yes_no.yes, self._yes_no.no)

    @torch.inference_mode()
    def units(self, asked: Sequence[Asked]) -> Handed:
        """The units of some questions, and of what has to be asked about no medium for them. Raises `MemoryError`."""
        handed = Handed()
        for one in asked:
            units: list[tuple[Unit, Task]] = []
            for tail, question in zip(one.item.tails, one.questions, strict=True):
                if question.choices is None:
                    units += self._writing(question, tail)
                else:
                    scoring = self._chooser.scoring(question, question.choices)
                    handed.scorings.append(scoring)
                    units += self._nodes(scoring, tail, question.options.yes_no)
            _add(handed, one.item.prefix, units)
        for scoring in self._chooser.unasked(handed.scorings):
            assert isinstance(scoring.asked, tuple)
            item = self._alone(scoring.asked[0])
            handed.scorings.append(scoring)
            _add(handed, item.prefix, self._nodes(scoring, item.tails[0], yes_no=False))
        return handed

    def _writing(self, question: Question, tail: torch.Tensor) -> list[tuple[Unit, Task]]:
        options, grammar = question.options, question.grammar
        matcher = None if grammar is None else self._grammars.matcher(grammar)
        task = Writing(question, tail.nbytes, matcher)
        wanted = self._yes_no_ids if options.yes_no else ()
        unit = Unit(
            self._next(),
            _sent(tail),
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            options.seed,
            options.repetition_penalty,
            None if grammar is None else (grammar.kind, grammar.text),
            wanted if matcher is None else (),
            is_watched=matcher is None and options.max_new_tokens >= LOOP_TOKENS,
        )
        if matcher is None or not wanted:
            return [(unit, task)]
        task.waits = True  # for scores that no grammar has changed
        first = Unit(self._next(), _sent(tail), 1, wanted=wanted, is_scored=True)
        return [(unit, task), (first, Yes(task, unit.number, tail.nbytes))]

    def _nodes(self, scoring: Scoring, tail: torch.Tensor, yes_no: bool) -> list[tuple[Unit, Task]]:
        """The units that score all choices behind a question."""
        found = self._chooser.nodes(scoring)
        if yes_no:
            found.insert(0, Node((), self._yes_no_ids))
        scoring.missing = len(found)
        units: list[tuple[Unit, Task]] = []
        for place, node in enumerate(found):
            text = torch.cat([tail, self._embedded(scoring.labels.header + node.path)])
            unit = Unit(self._next(), _sent(text), 1, wanted=node.wanted, is_scored=True)
            units.append((unit, Scored(scoring, node, text.nbytes, is_yes_no=yes_no and place == 0)))
        return units

    @property
    def _yes_no_ids(self) -> tuple[int, ...]:
        assert self._yes_no is not None
        return (*self._yes_no.yes, *self._yes_no.no)

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _embedded(self, tokens: Sequence[int]) -> torch.Tensor:
        table = self._model.embed_tokens
        return table(torch.tensor(list(tokens), dtype=torch.int64, device=table.weight.device))

    def _alone(self, question: str) -> PrefillItem:
        """A question as text alone, as the model's `generate` takes it."""
        ids = torch.tensor(self._prompts.text_ids(question), device=self._model.embed_tokens.weight.device)
        return PrefillItem.of_text(self._model.embed_text(ids))


def _add(handed: Handed, prefix: torch.Tensor, units: Sequence[tuple[Unit, Task]]) -> None:
    """Adds units behind one prefix, whose bytes count with the first of them."""
    units[0][1].nbytes += prefix.nbytes
    handed.tasks |= {unit.number: task for unit, task in units}
    handed.groups.append(Group(_sent(prefix), tuple(unit for unit, _ in units)))


def _sent(states: torch.Tensor) -> torch.Tensor:
    """Embeddings as they are sent."""
    return states.detach().cpu()
