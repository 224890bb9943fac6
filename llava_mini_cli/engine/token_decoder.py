"""Rows in flight, one token a step, until each is an answer: what the engine does after prefill.

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
    """Generates the answers of rows; `outbox` is where answers and failures go."""

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        prompts: PromptBuilder,
        dense: Dense,
        outbox: list[Outcome],
    ) -> None:
        self.rows: list[Generation] = []  # not done yet
        self._model = model
        self._prompts = prompts
        self._dense = dense
        self._outbox = outbox
        self._yes_no: YesNo | None = None  # once `accept` was asked for it
        end = cast("int | list[int] | None", cast(Any, model.generation_config).eos_token_id)
        self._end_ids = frozenset(end if isinstance(end, list) else [] if end is None else [end])

    def accept(self, options: GenerationOptions) -> None:
        """Gets ready for rows of these options. Raises `UsageError` where this model cannot give what they ask for."""
        if not options.yes_no or self._yes_no is not None:
            return
        if self._prompts.layout == "reference" and self._prompts.family == "llama3":
            raise UsageError("--yes-no: with --prompt-layout reference the answer begins with a header, not yes or no")
        self._yes_no = YesNo.of(self._prompts.tokenizer)

    @property
    def cache_bytes(self) -> int:
        """What the keys and values of all rows hold."""
        return sum(cache.nbytes for cache in {id(row.cache): row.cache for row in self.rows}.values())

    def step(self) -> None:
        """One more token for each row."""
        self._decode(self.rows)

    def _decode(self, rows: Sequence[Generation]) -> None:
        """One more token for each row."""
        by_cache: dict[int, list[Generation]] = {}
        for row in rows:
            by_cache.setdefault(id(row.cache), []).append(row)
        groups = list(by_cache.values())
        ordered = [row for group in groups for row in group]
        logits = unless_out_of_memory(self._logits, groups)
        if logits is None:
            self._decode_apart(groups)
            return
        self.rows = [row for row in self.rows if row not in ordered]
        self.advance(ordered, logits)
        for group in groups:
            live = [row for row in self.rows if row.cache is group[0].cache]
            if unless_out_of_memory(self._shrink, live) is None:
                self._fail_rows(live)

    def _logits(self, groups: Sequence[list[Generation]]) -> torch.Tensor:
        """Of the next token of each row, `[n, vocab]`; each group's rows share a cache."""
        device = self._model.device
        batches = [
            DecodeBatch(group[0].cache, torch.tensor([row.number for row in group], device=device)) for group in groups
        ]
        tokens = torch.tensor([row.tokens[-1] for group in groups for row in group], device=device)
        return decode(self._model, batches, tokens, self._dense)

    def _decode_apart(self, groups: Sequence[list[Generation]]) -> None:
        """The step again after memory ran out, in halves; a single cache that does not fit fails its rows."""
        if len(groups) == 1:
            self._fail_rows(groups[0])
            return
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            self._decode([row for group in part for row in group])

    def _fail_rows(self, rows: Sequence[Generation]) -> None:
        """Fails rows for which there is no memory."""
        error = ItemError("out_of_memory", "the answers' keys and values do not fit the memory")
        self.rows = [row for row in self.rows if row not in rows]
        for row in rows:
            self._fail_row(row, error)

    def _fail_row(self, row: Generation, error: ItemError) -> None:
        request, window = row.track.request, row.window.index
        self._outbox.append(request.failure(row.prompt_index, window, error, "generate"))

    def advance(self, rows: Sequence[Generation], logits: torch.Tensor) -> None:
        """Gives each row its next token; rows that are done are answered, the others go on."""
        tokens = unless_out_of_memory(self._next_tokens, rows, logits)
        if tokens is None:
            self._fail_rows(rows)
            return
        for row, token in zip(rows, tokens, strict=True):
            if token is None:
                self._fail_row(row, ItemError("internal", "the model gave no finite scores; another --dtype may"))
                continue
            reason = self._finish_reason(row, token, row.track.request.generation.max_new_tokens)
            if reason is None:
                self.rows.append(row)
            else:
                self._outbox.append(self._answer(row, reason))

    def _next_tokens(self, rows: Sequence[Generation], logits: torch.Tensor) -> list[int | None]:
        """The next token of each row; None: its scores are NaN, or overflowed a half-precision format."""
        tokens: list[int | None] = []
        highest, greedy = logits.max(-1)
        for row, best, most, scores in zip(rows, greedy.tolist(), highest.tolist(), logits, strict=True):
            if not isfinite(most):
                tokens.append(None)
                continue
            options = row.track.request.generation
            if options.yes_no and row.p_yes is None:
                assert self._yes_no is not None
                row.p_yes = self._yes_no.p_yes(scores)
            if options.repetition_penalty != 1 and row.tokens:
                scores = penalised(scores, row.tokens, options.repetition_penalty)
                best = int(scores.argmax())
            tokens.append(best if row.generator is None else next_token(scores, options, row.generator))
        return tokens

    def _finish_reason(self, row: Generation, token: int, max_new_tokens: int) -> FinishReason | None:
        if token in self._end_ids:
            return "stop"
        row.tokens.append(token)
        if len(row.tokens) >= max_new_tokens:
            return "length"
        return "repetition" if is_looping(row.tokens) else None

    def _shrink(self, live: Sequence[Generation]) -> bool:
        """Frees the media of a cache that have no rows left, once they are half of it; says whether it did.

        Args:
            live: the rows of the cache that are not done.
        """
        if not live:
            return False
        cache = live[0].cache
        per_medium = cache.rows_per_medium
        media = sorted({row.number // per_medium for row in live})
        if 2 * len(media) > cache.own_lengths.shape[0]:
            return False
        cache.keep_media(torch.tensor(media, device=self._model.device))
        for row in live:
            row.number = media.index(row.number // per_medium) * per_medium + row.number % per_medium
        return True

    def _answer(self, row: Generation, reason: FinishReason) -> Answer:
        request = row.track.request
        return Answer(
            key=request.key,
            prompt_index=row.prompt_index,
            text=self._prompts.answer_text(row.tokens),
            token_ids=tuple(row.tokens),
            finish_reason=reason,
            frame_count=row.window.frame_count,
            prompt_tokens=row.track.pack.prompt_lengths[row.prompt_index],
            vision_tokens=row.window.frame_count * self._model.config.vision_tokens_per_frame,
            completion_tokens=len(row.tokens),
            window_index=row.window.index,
            p_yes=row.p_yes,
        )
