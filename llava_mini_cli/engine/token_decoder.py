"""Answers in the making, one token a step, until each is whole: what the engine does after prefill.

Knows nothing of frames. Failures are values, as in `engine`.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, cast

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.dense import Dense
from llava_mini_cli.engine.generate import DecodeBatch, decode
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.request import Answer, FinishReason, Outcome
from llava_mini_cli.engine.sampling import YesNo, is_looping, next_token, penalised
from llava_mini_cli.engine.track import Generation
from llava_mini_cli.errors import ItemError, UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder


class TokenDecoder:
    """Carries generations on, each to its answer or its failure."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, prompts: PromptBuilder, dense: Dense) -> None:
        self.generations: list[Generation] = []  # not done yet
        self._model = model
        self._prompts = prompts
        self._dense = dense
        self._yes_no: YesNo | None = None  # once `accept` was asked for it
        end = cast("int | list[int] | None", cast(Any, model.generation_config).eos_token_id)
        self._end_ids = frozenset(end if isinstance(end, list) else [] if end is None else [end])

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for answers with these options.

        Raises:
            UsageError: this model cannot give what they ask for.
        """
        if not options.yes_no or self._yes_no is not None:
            return
        if self._prompts.layout == "reference" and self._prompts.family == "llama3":
            raise UsageError("--yes-no: with --prompt-layout reference the answer begins with a header, not yes or no")
        self._yes_no = YesNo.of(self._prompts.tokenizer)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the keys and values of all generations take."""
        return sum(cache.nbytes for cache in {id(one.cache): one.cache for one in self.generations}.values())

    def step(self) -> list[Outcome]:
        """One more token for each generation; returns the outcomes of those that are done."""
        return self._decode(self.generations)

    def advance(self, generations: Sequence[Generation], logits: torch.Tensor) -> list[Outcome]:
        """Gives each generation its next token from logits `[n, vocab]`; those that are not done go on in `step`."""
        tokens = unless_out_of_memory(self._next_tokens, generations, logits)
        if tokens is None:
            return self._fail(generations)
        done: list[Outcome] = []
        for one, token in zip(generations, tokens, strict=True):
            if token is None:
                done.append(one.failure(ItemError("internal", "the model gave no finite scores; another --dtype may")))
            elif (reason := self._finish_reason(one, token)) is None:
                self.generations.append(one)
            else:
                done.append(self._answer(one, reason))
        return done

    def _decode(self, generations: Sequence[Generation]) -> list[Outcome]:
        by_cache: dict[int, list[Generation]] = {}
        for one in generations:
            by_cache.setdefault(id(one.cache), []).append(one)
        groups = list(by_cache.values())
        ordered = [one for group in groups for one in group]
        logits = unless_out_of_memory(self._logits, groups)
        if logits is None:
            return self._decode_halves(groups)
        self._take_out(ordered)
        done = self.advance(ordered, logits)
        for group in groups:
            live = [one for one in self.generations if one.cache is group[0].cache]
            if unless_out_of_memory(self._shrink, live) is None:
                done += self._fail(live)
        return done

    def _decode_halves(self, groups: Sequence[list[Generation]]) -> list[Outcome]:
        """The step again after memory ran out, in halves; a single cache that does not fit fails all that it holds."""
        if len(groups) == 1:
            return self._fail(groups[0])
        half = len(groups) // 2
        parts = groups[:half], groups[half:]
        return [done for part in parts for done in self._decode([one for group in part for one in group])]

    def _logits(self, groups: Sequence[list[Generation]]) -> torch.Tensor:
        """Scores of the next token of each generation, `[n, vocab]`; those of a group share a cache."""
        device = self._model.device
        batches = [
            DecodeBatch(group[0].cache, torch.tensor([one.row for one in group], device=device)) for group in groups
        ]
        tokens = torch.tensor([one.tokens[-1] for group in groups for one in group], device=device)
        return decode(self._model, batches, tokens, self._dense)

    def _fail(self, generations: Sequence[Generation]) -> list[Outcome]:
        """Fails generations for which there is no memory."""
        self._take_out(generations)
        error = ItemError("out_of_memory", "the answers' keys and values do not fit the memory")
        return [one.failure(error) for one in generations]

    def _take_out(self, generations: Sequence[Generation]) -> None:
        self.generations = [one for one in self.generations if one not in generations]

    def _next_tokens(self, generations: Sequence[Generation], logits: torch.Tensor) -> list[int | None]:
        """The next token of each; None: its scores are NaN, or overflowed a half-precision format."""
        tokens: list[int | None] = []
        highest, greedy = logits.max(-1)
        for one, best, most, scores in zip(generations, greedy.tolist(), highest.tolist(), logits, strict=True):
            if not isfinite(most):
                tokens.append(None)
                continue
            options = one.track.request.generation
            if options.yes_no and one.p_yes is None:
                assert self._yes_no is not None
                one.p_yes = self._yes_no.p_yes(scores)
            if options.repetition_penalty != 1 and one.tokens:
                scores = penalised(scores, one.tokens, options.repetition_penalty)
                best = int(scores.argmax())
            tokens.append(best if one.generator is None else next_token(scores, options, one.generator))
        return tokens

    def _finish_reason(self, one: Generation, token: int) -> FinishReason | None:
        """Adds a token to a generation; None if it goes on."""
        if token in self._end_ids:
            return "stop"
        one.tokens.append(token)
        if len(one.tokens) >= one.track.request.generation.max_new_tokens:
            return "length"
        return "repetition" if is_looping(one.tokens) else None

    def _shrink(self, live: Sequence[Generation]) -> bool:
        """Frees the media of a cache that nothing is asked about any more, once they are half of it.

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
        cache.keep_media(torch.tensor(media, device=self._model.device))
        for one in live:
            one.row = media.index(one.row // per_medium) * per_medium + one.row % per_medium
        return True

    def _answer(self, one: Generation, reason: FinishReason) -> Answer:
        request = one.track.request
        return Answer(
            key=request.key,
            prompt_index=one.prompt_index,
            text=self._prompts.answer_text(one.tokens),
            token_ids=tuple(one.tokens),
            finish_reason=reason,
            frame_count=one.window.frame_count,
            prompt_tokens=one.track.packs[one.window.pass_number].prompt_lengths[one.prompt_index],
            vision_tokens=one.window.frame_count * self._model.config.vision_tokens_per_frame,
            completion_tokens=len(one.tokens),
            window_index=one.window.index,
            p_yes=one.p_yes,
        )
