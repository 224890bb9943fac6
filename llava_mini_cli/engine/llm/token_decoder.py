"""Answers in the making, one token a step, until each is whole: what the engine does after prefill.

What is to be done is handed out in pieces (`work`). A generation's last token is not in its cache yet: a step puts it
there and has the next one from the scores. Knows nothing of frames. Failures are values, as in `engine`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any, cast

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.dense import Dense
from llava_mini_cli.engine.language_model import NOT_FINITE
from llava_mini_cli.engine.llm.generate import DecodeBatch, decode
from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.engine.llm.kv_cache import RowCache, alike, join, room_to_join
from llava_mini_cli.engine.llm.sampling import LOOP_TOKENS, YesNo, is_looping, next_token, penalised
from llava_mini_cli.engine.llm.token_masks import TokenMasks
from llava_mini_cli.engine.request import FinishReason, Likelihood, Outcome
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.engine.work_room import WorkRoom
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder

End = FinishReason | ItemError  # the last where the answer cannot go on


class TokenDecoder:
    """Carries generations on, each to its answer or its failure."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, prompts: PromptBuilder, dense: Dense) -> None:
        self.generations: list[Generation] = []  # not done yet
        self.done: list[Outcome] = []  # to be handed out
        self._model = model
        self._prompts = prompts
        self._dense = dense
        self.room: WorkRoom | None = None  # for keys and values; None: any
        self._yes_no: YesNo | None = None  # once `accept` was asked for it
        self._masks = TokenMasks()
        self.end_ids = end_ids(model)

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options.

        Raises:
            UsageError: this model cannot give what they ask for.
        """
        if not options.yes_no or self._yes_no is not None:
            return
        self._yes_no = YesNo.of_prompts(self._prompts)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the keys and values of all generations take."""
        return sum(cache.nbytes for cache in {id(one.cache): one.cache for one in self.generations}.values())

    def step(self) -> More:
        """One more token for each generation."""
        return [self._decoding(list(self.generations))] if self.generations else []

    def begin(self, generations: Sequence[Generation], logits: torch.Tensor) -> Piece:
        """Gives generations their first token, from logits `[n, vocab]`; those that are not done go on in `step`."""
        return Piece(
            partial(self._advance, generations, logits),
            partial(self._fail, generations),
            lambda: [self.begin(generations[part], logits[part]) for part in _halves(generations)],
        )

    def _decoding(self, generations: Sequence[Generation]) -> Piece:
        return Piece(
            partial(self._decode, generations), partial(self._fail, generations), partial(self._apart, generations)
        )

    def _decode(self, generations: Sequence[Generation]) -> More:
        groups = _by_cache(generations)
        if some := alike([group[0].cache for group in groups]):
            joining = Piece(partial(self._join, some), partial(_keep_apart, some))
            return [joining, self._decoding(generations)]
        if self.room is not None and self.room.is_bounded:
            self.room.grow(sum(group[0].cache.growth for group in groups))
        shrinking = [Piece(partial(self._free, group[0].cache), tuple) for group in groups]
        ordered = [one for group in groups for one in group]
        return self._logits(groups, lambda logits: [self.begin(ordered, logits), *shrinking])

    def _apart(self, generations: Sequence[Generation]) -> More:
        """The step in halves: of the caches, or of a single cache, which is cut in two for as long as it lives."""
        groups = _by_cache(generations)
        if len(groups) == 1:
            return [self._decoding(part) for part in _cut(groups[0])]
        return [self._decoding([one for group in groups[part] for one in group]) for part in _halves(groups)]

    def _join(self, caches: Sequence[RowCache]) -> More:
        """Joins some caches, so that a step attends to the keys and values of all of them at once."""
        if self.room is not None:
            self.room.grow(room_to_join(caches))
        joined, first = join(caches), 0
        begins: dict[int, int] = {}
        for cache in caches:
            begins[id(cache)] = first
            first += cache.own_lengths.numel()
        moved = [(one, begins[id(one.cache)] + one.row) for one in self.generations if id(one.cache) in begins]
        for one, row in moved:
            one.cache, one.row = joined, row
        return ()

    def _logits(self, groups: Sequence[list[Generation]], then: Callable[[torch.Tensor], More]) -> More:
        """What `then` makes of the scores of each generation's next token, `[n, vocab]`; a group shares a cache."""
        device = self._model.device
        batches = [
            DecodeBatch(group[0].cache, torch.tensor([one.row for one in group], device=device)) for group in groups
        ]
        tokens = torch.tensor([one.tokens[-1] for group in groups for one in group], device=device)
        return decode(self._model, batches, tokens, self._dense, then)

    def _advance(self, generations: Sequence[Generation], logits: torch.Tensor) -> More:
        """Gives each generation its next token; those that are done are answered."""
        with _drawn_alike(generations):
            tokens = self._next_tokens(generations, logits)
            ends: list[End | None] = [self._finish_reason(*pair) for pair in zip(generations, tokens, strict=True)]
            found = list(zip(generations, tokens, ends, strict=True))
            done = {id(one) for one, _, reason in found if reason is not None}
            live = [one for one in self.generations if id(one) not in done]
            here = {id(one) for one in live}
            live += [one for one in generations if id(one) not in done and id(one) not in here]
            replies = [
                Piece(partial(self._reply, one, reason), partial(self._fail, [one]))
                for one, _, reason in found
                if reason is not None
            ]
        for one, token, _ in found:  # from here on nothing needs memory
            if isinstance(token, int) and token not in self.end_ids:
                one.tokens.append(token)
        self.generations = live
        return replies

    def _reply(self, one: Generation, reason: End) -> More:
        if isinstance(reason, ItemError):
            done = one.question.failure(reason)
        else:
            text = self._prompts.answer_text(one.tokens) if one.matcher is None else one.matcher.text(one.tokens)
            done = self.answer(one, reason, one.tokens, text)
        self.done.append(done)
        return ()

    def _fail(self, generations: Sequence[Generation]) -> More:
        """Fails generations for which there is no memory."""
        error = ItemError("out_of_memory", "the answers' keys and values do not fit the memory")
        failures = [one.question.failure(error) for one in generations]
        self.generations = [one for one in self.generations if one not in generations]
        self.done += failures
        return ()

    def _next_tokens(self, generations: Sequence[Generation], logits: torch.Tensor) -> list[int | ItemError]:
        """The next token of each, or why there is none."""
        tokens: list[int | ItemError] = []
        highest, greedy = logits.max(-1)
        likeliest = greedy.tolist()
        held = self._masks.hold(generations, logits, likeliest)
        found = zip(generations, likeliest, highest.tolist(), logits, strict=True)
        for row, (one, token, most, scores) in enumerate(found):
            options = one.question.options
            if isfinite(most) and options.yes_no and one.p_yes is None:
                one.p_yes = self.p_yes(scores)
            if isfinite(most) and row in held:
                allowed = held[row]
                if isinstance(allowed, ItemError):
                    tokens.append(allowed)
                    continue
                scores, token, most = allowed
            if not isfinite(most):  # NaN, or overflowed a half-precision format
                tokens.append(NOT_FINITE)
                continue
            if options.repetition_penalty != 1 and one.tokens:
                scores = penalised(scores, one.tokens, options.repetition_penalty)
                token = int(scores.argmax())
            tokens.append(token if one.generator is None else next_token(scores, options, one.generator))
        return tokens

    def _finish_reason(self, one: Generation, token: int | ItemError) -> End | None:
        """The end that a generation comes to by a token that it is not given yet; None if it goes on."""
        if isinstance(token, ItemError):
            return token
        if token in self.end_ids or (one.matcher is not None and one.matcher.is_whole(one.tokens, token)):
            return "stop"
        if len(one.tokens) + 1 >= one.question.options.max_new_tokens:
            return "length"
        if one.matcher is not None:  # which bounds it
            return None
        return "repetition" if is_looping([*one.tokens[1 - LOOP_TOKENS :], token]) else None

    def _free(self, cache: RowCache) -> More:
        """Frees what a cache holds and nobody needs; left undone where there is no memory for it."""
        if not self._shrink([one for one in self.generations if one.cache is cache]):
            return ()

        def freed() -> More:
            cache.let_go()
            return ()

        return [Piece(freed, tuple)]

    def _shrink(self, live: Sequence[Generation]) -> bool:
        """Drops the media of a cache that nothing is asked about any more, once they are half of it.

        Args:
            live: the generations of the cache that are not done.

        Returns:
            True if it did.
        """
        if not live:
            return False
        cache = live[0].cache
        per_medium = cache.rows_per_medium
        media = sorted({one.row // per_medium for one in live})
        if 2 * len(media) > cache.own_lengths.shape[0]:
            return False
        behind = [medium for medium in media if medium >= len(media)]
        order = [place if place in media else behind.pop(0) for place in range(len(media))]
        rows = [order.index(one.row // per_medium) * per_medium + one.row % per_medium for one in live]
        cache.keep_media(torch.tensor(order, device=self._model.device))
        for one, row in zip(live, rows, strict=True):
            one.row = row
        return True

    def p_yes(self, scores: torch.Tensor) -> float:
        """The probability of yes against no, from the scores `[vocab]` of an answer's first token."""
        assert self._yes_no is not None  # `accept` was told
        return self._yes_no.p_yes(scores)

    def answer(
        self,
        one: Generation,
        reason: FinishReason,
        tokens: Sequence[int],
        text: str,
        choice_probs: Mapping[str, float] | None = None,
        choice_scores: Mapping[str, Likelihood] | None = None,
    ) -> Outcome:
        """The answer that a question came to."""
        return one.question.answer(reason, tokens, text, one.p_yes, choice_probs, choice_scores)


def end_ids(model: LlavaMiniForConditionalGeneration) -> frozenset[int]:
    """The tokens that end an answer, as the model's generation_config.json has them."""
    end = cast("int | list[int] | None", cast(Any, model.generation_config).eos_token_id)
    return frozenset(end if isinstance(end, list) else [] if end is None else [end])


def _keep_apart(caches: Sequence[RowCache]) -> More:
    for cache in caches:
        cache.is_apart = True
    return ()


def _by_cache(generations: Sequence[Generation]) -> list[list[Generation]]:
    groups: dict[int, list[Generation]] = {}
    for one in generations:
        groups.setdefault(id(one.cache), []).append(one)
    return list(groups.values())


def _halves(items: Sequence[object]) -> list[slice]:
    """The two halves of some items; none of a single one."""
    half = len(items) // 2
    return [slice(half), slice(half, None)] if half else []


def _cut(generations: Sequence[Generation]) -> list[list[Generation]]:
    """The generations of one cache in two, each half with a cache of its own; none where it is a single row."""
    cache, per_medium = generations[0].cache, generations[0].cache.rows_per_medium
    if len(generations) == 1:
        return _alone(generations[0])
    ordered = sorted(generations, key=lambda one: one.row)
    media = [one.row // per_medium for one in ordered]
    if media[0] != media[-1]:
        cut = next(medium for medium in media[len(media) // 2 :] + media[-1:] if medium > media[0])
        caches = cache.part(slice(0, cut)), cache.part(slice(cut, cache.own_lengths.shape[0]))
        first = cut * per_medium
        begins = 0, first
    else:
        first = ordered[len(ordered) // 2].row
        here, slot = slice(media[0], media[0] + 1), first % per_medium
        caches = cache.part(here, slice(0, slot)), cache.part(here, slice(slot, per_medium))
        begins = media[0] * per_medium, first
    halves = [one for one in ordered if one.row < first], [one for one in ordered if one.row >= first]
    for half, of_half, begin in zip(halves, caches, begins, strict=True):
        for one in half:
            one.cache, one.row = of_half, one.row - begin
    return list(halves)


def _alone(one: Generation) -> list[list[Generation]]:
    """A generation with a cache of its own, if it has none yet."""
    cache = one.cache
    if cache.own_lengths.numel() == 1:
        return []
    medium, slot = divmod(one.row, cache.rows_per_medium)
    one.cache, one.row = cache.part(slice(medium, medium + 1), slice(slot, slot + 1)), 0
    return [[one]]


@contextmanager
def _drawn_alike(generations: Sequence[Generation]) -> Generator[None]:
    """Where the block fails, what it drew at random is drawn alike the next time."""
    drawing = [one.generator for one in generations if one.generator is not None]
    states = [generator.get_state() for generator in drawing]
    try:
        yield
    except BaseException:
        for generator, state in zip(drawing, states, strict=True):
            generator.set_state(state)
        raise
