"""Our own language model as the engine asks it: prefill here, then a token a step, or the scores of given answers."""

from collections.abc import Sequence

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.dense import EAGER, Dense
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import Asked
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.label_scorer import LabelScorer
from llava_mini_cli.engine.llm.sampling import random_generator
from llava_mini_cli.engine.llm.token_decoder import TokenDecoder
from llava_mini_cli.engine.request import Outcome
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.engine.work_room import WorkRoom
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder


class OwnLanguageModel:
    """A `LanguageModel` in this process."""

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        prompts: PromptBuilder,
        labels: LabelIds,
        grammars: Grammars,
        room: WorkRoom,
        dense: Dense = EAGER,
    ) -> None:
        self.decoder = TokenDecoder(model, prompts, dense)
        self.decoder.room = room
        self._model = model
        self._grammars = grammars
        self._room = room
        self._scorer = LabelScorer(model, prompts, labels, self.decoder)

    @property
    def done(self) -> list[Outcome]:
        """Outcomes to be handed out."""
        return self.decoder.done

    @done.setter
    def done(self, outcomes: list[Outcome]) -> None:
        self.decoder.done = outcomes

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.decoder.end_ids

    @property
    def asked(self) -> int:
        """Questions that are being answered."""
        return len(self.decoder.generations)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.decoder.cache_bytes

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options. Raises `UsageError`."""
        self.decoder.accept(options)

    def begin(self, asked: Sequence[Asked]) -> More:
        """Prefixes and tails through the model, then the first token of each answer, or which of its choices."""
        return self._following(*self._begun(asked))

    def step(self) -> More:
        """One more token for each answer."""
        return self.decoder.step()

    def close(self) -> None:
        """Lets go of all answers."""
        self.decoder.generations.clear()

    def _begun(self, asked: Sequence[Asked]) -> tuple[list[Generation], torch.Tensor]:
        """The generations of some questions and the logits of each one's first token, `[n, vocab]`."""
        items = [one.item for one in asked]
        prefix, rows = max(item.prefix.shape[0] for item in items), max(len(item.tails) for item in items)
        self._room.prefill(len(items), prefix, max(sum(map(len, item.tails)) for item in items), rows)
        cache, logits = prefill(self._model, items)
        begun: list[Generation] = []
        for medium, one in enumerate(asked):
            for slot, question in enumerate(one.questions):
                row = medium * cache.rows_per_medium + slot
                generator, grammar = random_generator(question.options), question.grammar
                matcher = None if grammar is None else self._grammars.matcher(grammar)
                begun.append(Generation(question, cache, row, generator, matcher=matcher))
        return begun, logits[[one.row for one in begun]]

    def _following(self, generations: Sequence[Generation], logits: torch.Tensor) -> list[Piece]:
        """What comes behind prefill: the choices of the questions that have some, the first tokens of the others."""
        free = [one.question.choices is None for one in generations]
        pieces: list[Piece] = []
        for is_free, begin in ((False, self._scorer.begin), (True, self.decoder.begin)):
            which = [number for number, this in enumerate(free) if this is is_free]
            if which:
                some = logits if len(which) == len(generations) else logits[which]
                pieces.append(begin([generations[number] for number in which], some))
        return pieces
