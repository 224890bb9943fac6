"""Our own masks and penalties in vLLM's sampler, so that its answers are those of our own language model.

vLLM's penalty looks at the prompt too, whose tokens nobody knows where it is embeddings, and its grammars know neither
the header before an answer nor the end of one that is whole.
"""

from functools import cached_property
from typing import Any, cast

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality  # pyright: ignore[reportMissingModuleSource]

from llava_mini_cli.config import Grammar
from llava_mini_cli.engine.grammars import Grammars, Matcher
from llava_mini_cli.engine.llm.sampling import penalised
from llava_mini_cli.engine.llm.token_masks import TokenMasks
from llava_mini_cli.engine.vllm.messages import GRAMMAR, PENALTY
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.processor import LlavaMiniProcessor


class _Row:
    """One answer in vLLM's batch."""

    def __init__(self, tokens: list[int], penalty: float, matcher: Matcher | None) -> None:
        self.tokens = tokens  # grows as vLLM writes
        self.penalty = penalty
        self.matcher = matcher
        self.takes_likeliest = False


class HeldScores(LogitsProcessor):
    """Changes the scores of the answers that ask for it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._told = vllm_config.additional_config
        self._vocabulary = int(vllm_config.model_config.get_vocab_size())
        self._rows: dict[int, _Row] = {}
        self._masks = TokenMasks()

    def is_argmax_invariant(self) -> bool:
        """Greedy answers are changed too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows vLLM's batch, whose rows come, go and move."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, tokens in batch_update.added:
            self._rows.pop(index, None)
            asked = getattr(params, "extra_args", None) or {}
            if PENALTY in asked or GRAMMAR in asked:
                matcher = self._grammars.matcher(Grammar(*asked[GRAMMAR])) if GRAMMAR in asked else None
                self._rows[index] = _Row(tokens, asked.get(PENALTY, 1.0), matcher)
        for one, other, how in batch_update.moved:
            moved, back = self._rows.pop(one, None), self._rows.pop(other, None)
            if moved is not None:
                self._rows[other] = moved
            if back is not None and how == MoveDirectionality.SWAP:
                self._rows[one] = back

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Masks and penalises, in place. `[n, vocab]`."""
        rows = sorted(self._rows)
        if not rows:
            return logits
        held = self._masks.hold(cast(Any, [self._rows[row] for row in rows]), logits[rows], [0] * len(rows))
        for place, row in enumerate(rows):
            one, found = self._rows[row], held.get(place)
            if isinstance(found, ItemError):  # nothing may come: an end, and whoever asked finds the answer unfinished
                logits[row] = -torch.inf
                logits[row, list(self._told["end_ids"])] = 0.0
                continue
            scores = logits[row] if found is None else found.scores
            logits[row] = penalised(scores, one.tokens, one.penalty)
        return logits

    @cached_property
    def _grammars(self) -> Grammars:
        processor = LlavaMiniProcessor.from_pretrained(self._told["checkpoint"])
        return Grammars(processor.prompts(self._told["layout"]), self._told["end_ids"], self._vocabulary)
