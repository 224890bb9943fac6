"""Questions with choices, from what is known of next tokens to their answers. Knows neither vLLM nor embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llava_mini_cli.config import Choices
from llava_mini_cli.engine.labels import MOST_KEPT, Blind, LabelIds, Labels, chosen
from llava_mini_cli.engine.language_model import NOT_FINITE, Question
from llava_mini_cli.engine.request import Outcome
from llava_mini_cli.engine.vllm.tries import Known, Node, Path, likelihood, nodes
from llava_mini_cli.errors import ItemError


@dataclass(eq=False)
class Scoring:
    """The choices of one question while they are being scored."""

    asked: Question | Blind
    labels: Labels
    blind: Blind | None = None  # what has to be known of it without a medium, too; None: nothing, or it is
    before: list[float] | None = None  # the scores without a medium, where they are wanted and known
    error: ItemError | None = None  # why they are not to be had
    missing: int = 0  # nodes that are not known yet
    known: dict[Path, Known] = field(default_factory=dict[Path, Known])
    p_yes: float | None = None


class Chooser:
    """Decides once everything about a question is known; what it came to lies in `done`."""

    def __init__(self, labels: LabelIds, ends: Sequence[int]) -> None:
        """`ends`: the tokens that end an answer, any of which may follow a choice."""
        self.done: list[Outcome] = []
        self._labels = labels
        self._ends = ends
        self._before: dict[Blind, list[float]] = {}
        self._waiting: dict[Blind, list[Scoring]] = {}  # all that is asked about no medium, and who has to know

    @property
    def waiting(self) -> set[int]:
        """The `id` of each scoring that only waits for what is asked about no medium."""
        return {id(one) for some in self._waiting.values() for one in some if not one.missing}

    def scoring(self, question: Question, choices: Choices) -> Scoring:
        """A question with some choices."""
        labels = self._labels.of(choices)
        if not question.options.choice_prior:
            return Scoring(question, labels)
        blind = question.text, labels.texts
        before = self._before.get(blind)
        return Scoring(question, labels, blind if before is None else None, before)

    def unasked(self, scorings: Sequence[Scoring]) -> list[Scoring]:
        """What has to be asked about no medium for some questions, and is not being asked yet."""
        wanted = dict.fromkeys(one.blind for one in scorings if one.blind is not None)
        return [Scoring(blind, self._labels.of(blind[1])) for blind in wanted if blind not in self._waiting]

    def begun(self, scorings: Sequence[Scoring]) -> None:
        """Takes note of what is asked now, about media and about none."""
        self._waiting |= {one.asked: [] for one in scorings if isinstance(one.asked, tuple)}
        for one in scorings:
            if one.blind is not None:
                self._waiting[one.blind].append(one)

    def nodes(self, scoring: Scoring) -> list[Node]:
        """All that has to be asked to score the choices."""
        return nodes(scoring.labels.ids, self._ends)

    def heard(self, scoring: Scoring, path: Path, known: Known) -> None:
        """What came of one node."""
        here = scoring.known.setdefault(path, Known({}, known.likeliest))
        here.scores |= known.scores
        scoring.missing -= 1
        if not scoring.missing:
            self._scored(scoring)

    def fail(self, scoring: Scoring, error: ItemError) -> None:
        """A node has no result: its question has none, and those that have to know it neither."""
        if isinstance(scoring.asked, tuple):
            self._tell(scoring.asked, error)
            return
        if scoring.blind is not None:
            self._waiting[scoring.blind].remove(scoring)
        self.done.append(scoring.asked.failure(error))

    def clear(self) -> None:
        """Lets go of all questions."""
        self._waiting.clear()

    def _scored(self, scoring: Scoring) -> None:
        if not isinstance(scoring.asked, tuple):
            self._decide(scoring, scoring.asked)
            return
        if sum(len(choices) for _, choices in self._before) > MOST_KEPT:
            self._before.clear()
        before = [likelihood(ids, scoring.known, self._ends).score for ids in scoring.labels.ids]
        self._before[scoring.asked] = before
        self._tell(scoring.asked, before)

    def _tell(self, blind: Blind, before: list[float] | ItemError) -> None:
        """The scores without a medium are there, or are not to be had, for all that have to know them."""
        for one in self._waiting.pop(blind):
            one.blind = None
            if isinstance(before, ItemError):
                one.error = before
            else:
                one.before = before
            if not one.missing and not isinstance(one.asked, tuple):
                self._decide(one, one.asked)

    def _decide(self, scoring: Scoring, question: Question) -> None:
        """Answers a question of which everything is known, but perhaps for the scores without a medium."""
        if scoring.blind is not None:
            return
        if scoring.error is not None:
            self.done.append(question.failure(scoring.error))
            return
        found = [likelihood(ids, scoring.known, self._ends) for ids in scoring.labels.ids]
        choice = chosen(scoring.labels, question.options, found, scoring.before)
        if choice is None:
            self.done.append(question.failure(NOT_FINITE))
            return
        ids, text, probs, scores = choice
        self.done.append(question.answer("stop", ids, text, scoring.p_yes, probs, scores))
