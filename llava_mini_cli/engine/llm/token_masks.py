"""Scores of next tokens in which those that a grammar forbids are left out, for the answers of a step together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.engine.llm.generation import Generation
from llava_mini_cli.errors import ItemError


class HeldScores(NamedTuple):
    """The scores of one answer's next token, `-inf` where its grammar forbids it."""

    scores: torch.Tensor  # [vocab]
    likeliest: int
    highest: float


class TokenMasks:
    """Masks scores. The masks lie in one buffer, which grows to the largest step."""

    def __init__(self) -> None:
        self._buffer: NDArray[np.uint32] = np.empty((0, 0), np.uint32)
        self._biases: torch.Tensor | None = None  # [256, 8], for the bits of each byte: 0 where one is set, else -inf

    def hold(
        self, generations: Sequence[Generation], logits: torch.Tensor, likeliest: Sequence[int]
    ) -> dict[int, HeldScores | ItemError]:
        """The masked scores of those that are held to a grammar, from `logits [n, vocab]`, which stay as they are.

        Args:
            likeliest: the token of each with the highest score.

        Returns:
            By the place of the generation: its scores, or why it has none. Left out are those that take the likeliest
            token, where it is allowed: the other scores do not matter then.
        """
        held = [(row, one, one.matcher) for row, one in enumerate(generations) if one.matcher is not None]
        if not held:
            return {}
        words = (logits.shape[1] + 31) // 32
        if self._buffer.shape[0] < len(held) or self._buffer.shape[1] != words:
            self._buffer = np.empty((len(held), words), np.uint32)
        found: dict[int, HeldScores | ItemError] = {}
        wanted: dict[int, int] = {}  # rows of the logits, with those of the buffer
        for place, (row, one, matcher) in enumerate(held):
            mask, token = self._buffer[place], likeliest[row]
            error = matcher.fill(one.tokens, mask)
            if error is not None:
                found[row] = error
            elif not one.takes_likeliest or not (int(mask[token // 32]) >> token % 32) & 1:
                wanted[row] = place
        if wanted:
            masked = self._masked(logits[list(wanted)], self._buffer[list(wanted.values())])
            found |= zip(wanted, masked, strict=True)
        return found

    def _masked(self, scores: torch.Tensor, masks: NDArray[np.uint32]) -> list[HeldScores]:
        bits = torch.from_numpy(masks.view(np.uint8)).to(scores.device).int()
        biases = torch.nn.functional.embedding(bits, self._biases_like(scores)).flatten(1)
        scores += biases[:, : scores.shape[1]]
        highest, likeliest = scores.max(-1)
        rows = zip(scores, likeliest.tolist(), highest.tolist(), strict=True)
        return [HeldScores(row, token, most) for row, token, most in rows]

    def _biases_like(self, scores: torch.Tensor) -> torch.Tensor:
        found = self._biases
        if found is None or found.device != scores.device or found.dtype != scores.dtype:
            bits = torch.arange(256).unsqueeze(-1) >> torch.arange(8) & 1
            found = torch.where(bits == 1, 0.0, -torch.inf).to(scores)
            self._biases = found
        return found
