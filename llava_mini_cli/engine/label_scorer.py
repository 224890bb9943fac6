"""Questions with given choices, to their answers: every choice is scored behind the question, and none is written.

What is to be done is handed out in pieces (`work`), as in `token_decoder`, which takes the other questions on. All
labels of all questions of a batch are scored in one packed step, as far as `STEP_POSITIONS` goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import exp, isfinite

import torch

from llava_mini_cli.engine.branches import Branches, log_likelihoods
from llava_mini_cli.engine.labels import LabelIds, Labels
from llava_mini_cli.engine.token_decoder import TokenDecoder
from llava_mini_cli.engine.track import Generation
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration

STEP_POSITIONS = 2048  # tokens of labels that are scored at once


@dataclass(eq=False)
class Scoring:
    """One question and what is known of its labels."""

    one: Generation
    labels: Labels
    first: torch.Tensor  # [vocab], the scores of the token behind the question
    scores: dict[int, float] = field(default_factory=dict[int, float])  # of each label so far, by its index
    is_over: bool = False

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The tokens of each label, with what the model writes before it."""
        return [self.labels.header + ids for ids in self.labels.ids]


Part = tuple[Scoring, range]  # some labels of one question


class LabelScorer:
    """Answers questions that have choices."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, labels: LabelIds, decoder: TokenDecoder) -> None:
        """`decoder` knows what ends an answer, and hands out what is done."""
        self._model = model
        self._labels = labels
        self._decoder = decoder

    def begin(self, generations: Sequence[Generation], logits: torch.Tensor) -> Piece:
        """Scores the choices of questions, whose first token has the logits `[n, vocab]`."""
        return Piece(
            partial(self._deal_out, generations, logits),
            partial(self._fail, [Scoring(one, Labels((), (), ()), logits[0]) for one in generations]),
        )

    def _deal_out(self, generations: Sequence[Generation], logits: torch.Tensor) -> More:
        """The questions' labels in steps, each of about as many tokens as are scored at once."""
        steps: list[list[Part]] = [[]]
        left = STEP_POSITIONS
        for one, first in sorted(zip(generations, logits, strict=True), key=lambda pair: pair[0].row):
            choices = one.track.request.choices_of(one.prompt_index)
            assert choices is not None
            scoring = Scoring(one, self._labels.of(choices), first)
            begin = 0
            for number, text in enumerate(scoring.texts):
                if len(text) > left and (steps[-1] or number > begin):
                    if number > begin:
                        steps[-1].append((scoring, range(begin, number)))
                    steps.append([])
                    left, begin = STEP_POSITIONS, number
                left -= len(text)
            steps[-1].append((scoring, range(begin, len(choices))))
        return [self._scoring(step) for step in steps]

    def _scoring(self, parts: Sequence[Part]) -> Piece:
        return Piece(
            partial(self._score, parts),
            partial(self._fail, [scoring for scoring, _ in parts]),
            lambda: [self._scoring(half) for half in _halves(parts)],
        )

    def _score(self, parts: Sequence[Part]) -> More:
        parts = [part for part in parts if not part[0].is_over]
        if not parts:
            return ()
        texts = [[scoring.texts[number] for number in labels] for scoring, labels in parts]
        branches = [Branches.of(scoring.one.row, some) for (scoring, _), some in zip(parts, texts, strict=True)]
        scores = log_likelihoods(
            self._model,
            parts[0][0].one.cache,
            branches,
            torch.stack([scoring.first for scoring, _ in parts]),
            sorted(self._decoder.end_ids),
            len(parts[0][0].labels.header),
        )
        for (scoring, labels), found in zip(parts, scores, strict=True):  # the same again where it is done again
            scoring.scores.update(zip(labels, found, strict=True))
        whole = [scoring for scoring, _ in parts if len(scoring.scores) == len(scoring.labels.ids)]
        return [Piece(partial(self._reply, scoring), partial(self._fail, [scoring])) for scoring in whole]

    def _reply(self, scoring: Scoring) -> More:
        one, labels = scoring.one, scoring.labels
        request = one.track.request
        scores = [scoring.scores[number] for number in range(len(labels.ids))]
        if not all(map(isfinite, scores)):
            done = one.failure(ItemError("internal", "the model gave no finite scores; another --dtype may"))
        else:
            best = scores.index(max(scores))
            if request.generation.yes_no:
                one.p_yes = self._decoder.p_yes(scoring.first)
            done = self._decoder.answer(one, "stop", labels.ids[best], labels.texts[best], _probs(labels, scores))
        self._decoder.done.append(done)
        scoring.is_over = True
        return ()

    def _fail(self, scorings: Sequence[Scoring]) -> More:
        error = ItemError("out_of_memory", "the question's choices do not fit the memory")
        left = [scoring for scoring in scorings if not scoring.is_over]
        failures = [scoring.one.failure(error) for scoring in left]
        for scoring in left:
            scoring.is_over = True
        self._decoder.done += failures
        return ()


def _probs(labels: Labels, scores: Sequence[float]) -> dict[str, float]:
    """The softmax of the scores, by label."""
    most = max(scores)
    shares = [exp(score - most) for score in scores]
    total = sum(shares)
    return {text: share / total for text, share in zip(labels.texts, shares, strict=True)}


def _halves(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """The questions in two, or the labels of a single one; none of a single label."""
    if len(parts) > 1:
        return [parts[: len(parts) // 2], parts[len(parts) // 2 :]]
    ((scoring, labels),) = parts
    half = len(labels) // 2
    return [[(scoring, labels[:half])], [(scoring, labels[half:])]] if half else []
