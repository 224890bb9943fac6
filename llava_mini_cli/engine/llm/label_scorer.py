"""Questions with given choices, to their answers: every choice is scored behind the question, and none is written.

What is to be done is handed out in pieces (`work`), as in `token_decoder`, which takes the other questions on. All
labels of all questions of a batch are scored in one packed step, as far as `STEP_POSITIONS` goes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from llava_mini_cli.config import Choices
from llava_mini_cli.engine.labels import MOST_KEPT, Blind, LabelIds, Labels, chosen
from llava_mini_cli.engine.language_model import NOT_FINITE, PrefillItem
from llava_mini_cli.engine.llm.branches import HEAD_POSITIONS, Branches, log_likelihoods
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.kv_cache import RowCache
from llava_mini_cli.engine.llm.token_decoder import TokenDecoder
from llava_mini_cli.engine.request import Likelihood
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder

STEP_POSITIONS = 2048  # tokens of labels that are scored at once


@dataclass(eq=False)
class Scoring:
    """One question in a cache, and what is known of its labels."""

    asked: Generation | Blind
    labels: Labels
    cache: RowCache
    row: int
    first: torch.Tensor  # [vocab], the scores of the token behind the question
    scores: dict[int, Likelihood] = field(default_factory=dict[int, Likelihood])  # of each label so far, by its index
    is_over: bool = False

    def text(self, label: int) -> tuple[int, ...]:
        """The tokens of a label by its index, with what the model writes before it."""
        return self.labels.header + self.labels.ids[label]


Part = tuple[Scoring, range]  # some labels of one question


class LabelScorer:
    """Answers questions that have choices."""

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        prompts: PromptBuilder,
        labels: LabelIds,
        decoder: TokenDecoder,
    ) -> None:
        """`decoder` knows what ends an answer, and hands out what is done."""
        self._model = model
        self._prompts = prompts
        self._labels = labels
        self._decoder = decoder
        self._blind: dict[Blind, list[float] | None] = {}  # scores without a medium; None: there was no memory for them

    def begin(self, generations: Sequence[Generation], logits: torch.Tensor) -> Piece:
        """Scores the choices of questions, whose first token has the logits `[n, vocab]`."""
        return Piece(partial(self._begin, generations, logits), partial(self._fail_all, generations))

    def _begin(self, generations: Sequence[Generation], logits: torch.Tensor) -> More:
        """The questions without a medium whose scores are wanted and not known, then those at hand."""
        if sum(len(choices) for _, choices in self._blind) > MOST_KEPT:
            self._blind.clear()
        scorings: list[Scoring] = []
        wanted: dict[Blind, None] = {}
        for one, first in sorted(zip(generations, logits, strict=True), key=lambda pair: pair[0].row):
            choices = one.question.choices
            assert choices is not None
            scorings.append(Scoring(one, self._labels.of(choices), one.cache, one.row, first))
            if one.question.options.choice_prior and self._blind.get(_blind(one, choices)) is None:
                wanted[_blind(one, choices)] = None
        return [*([self._asking_blindly(list(wanted))] if wanted else []), *self._steps(scorings)]

    def _asking_blindly(self, questions: Sequence[Blind]) -> Piece:
        half = len(questions) // 2
        parts = (questions[:half], questions[half:]) if half else ()
        return Piece(
            partial(self._ask_blindly, questions),
            partial(self._forget, questions),
            lambda: [self._asking_blindly(part) for part in parts],
        )

    @torch.inference_mode()
    def _ask_blindly(self, questions: Sequence[Blind]) -> More:
        """Questions as text alone through the language model, as the model's `generate` takes them."""
        items: list[PrefillItem] = []
        for question, _ in questions:
            ids = torch.tensor(self._prompts.text_ids(question), device=self._model.device)
            items.append(PrefillItem.of_text(self._model.model.embed_text(ids)))
        if self._decoder.room is not None:
            self._decoder.room.prefill(len(items), max(item.prefix.shape[0] for item in items), 1, 1)
        cache, logits = prefill(self._model, items)
        made = [(asked, self._labels.of(asked[1]), row) for row, asked in enumerate(questions)]
        return self._steps([Scoring(asked, labels, cache, row, logits[row]) for asked, labels, row in made])

    def _steps(self, scorings: Iterable[Scoring]) -> More:
        """The questions' labels in steps, each of about as many tokens as are scored at once."""
        steps: list[list[Part]] = [[]]
        left = STEP_POSITIONS
        for scoring in scorings:
            begin = 0
            for label in range(len(scoring.labels.ids)):
                size = len(scoring.text(label))
                if size > left and (steps[-1] or label > begin):
                    if label > begin:
                        steps[-1].append((scoring, range(begin, label)))
                    steps.append([])
                    left, begin = STEP_POSITIONS, label
                left -= size
            steps[-1].append((scoring, range(begin, len(scoring.labels.ids))))
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
        cache = parts[0][0].cache
        branches = [
            Branches.of(scoring.row, [scoring.text(label) for label in labels], len(scoring.labels.header))
            for scoring, labels in parts
        ]
        self._ask_for_room(cache, sum(len(one.tokens) for one in branches))
        scores = log_likelihoods(
            self._model,
            cache,
            branches,
            torch.stack([scoring.first for scoring, _ in parts]),
            sorted(self._decoder.end_ids),
        )
        for (scoring, labels), found in zip(parts, scores, strict=True):  # the same again where it is done again
            scoring.scores.update(zip(labels, found, strict=True))
        whole = [scoring for scoring, _ in parts if len(scoring.scores) == len(scoring.labels.ids)]
        return [Piece(partial(self._end, scoring), partial(self._fail, [scoring])) for scoring in whole]

    def _ask_for_room(self, cache: RowCache, tokens: int) -> None:
        """Raises `MemoryError` where so many tokens of labels do not fit the memory at once."""
        if self._decoder.room is not None:
            seen = int(cache.prefix_lengths.max()) + int(cache.own_lengths.max())
            scores = min(tokens, HEAD_POSITIONS) * self._model.config.vocab_size
            self._decoder.room.score(tokens, seen, scores)

    def _end(self, scoring: Scoring) -> More:
        """All labels of a question are scored."""
        scores = [scoring.scores[label] for label in range(len(scoring.labels.ids))]
        if isinstance(scoring.asked, Generation):
            return self._reply(scoring, scoring.asked, scores)
        self._blind[scoring.asked] = [score.score for score in scores]
        scoring.is_over = True
        return ()

    def _reply(self, scoring: Scoring, one: Generation, found: Sequence[Likelihood]) -> More:
        labels, options = scoring.labels, one.question.options
        before = self._blind[_blind(one, labels.texts)] if options.choice_prior else None
        if options.choice_prior and before is None:
            return self._fail([scoring])
        choice = chosen(labels, options, found, before)
        if choice is None:
            done = one.question.failure(NOT_FINITE)
        else:
            if options.yes_no:
                one.p_yes = self._decoder.p_yes(scoring.first)
            done = self._decoder.answer(one, "stop", *choice)
        self._decoder.done.append(done)
        scoring.is_over = True
        return ()

    def _fail(self, scorings: Sequence[Scoring]) -> More:
        """There is no memory for some questions."""
        left = [scoring for scoring in scorings if not scoring.is_over]
        self._fail_all([scoring.asked for scoring in left if isinstance(scoring.asked, Generation)])
        for scoring in left:
            if not isinstance(scoring.asked, Generation):
                self._blind[scoring.asked] = None
            scoring.is_over = True
        return ()

    def _fail_all(self, generations: Sequence[Generation]) -> More:
        error = ItemError("out_of_memory", "the question's choices do not fit the memory")
        self._decoder.done += [one.question.failure(error) for one in generations]
        return ()

    def _forget(self, questions: Sequence[Blind]) -> More:
        self._blind.update(dict.fromkeys(questions))
        return ()


def _blind(one: Generation, choices: Choices) -> Blind:
    return one.question.text, choices


def _halves(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """The questions in two, or the labels of a single one; none of a single label."""
    if len(parts) > 1:
        return [parts[: len(parts) // 2], parts[len(parts) // 2 :]]
    ((scoring, labels),) = parts
    half = len(labels) // 2
    return [[(scoring, labels[:half])], [(scoring, labels[half:])]] if half else []
