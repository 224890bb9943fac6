"""Given texts behind the rows of a cache, and how likely the language model finds each. Nothing is generated.

The texts behind one row are a tree: what they begin with alike is there once. A token sees the keys and values of its
row where they lie, the tokens between the row and itself, and itself. Knows nothing of questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.attention import additive, attend, attend_masked, merged
from llava_mini_cli.engine.dense import finish, normalised, project
from llava_mini_cli.engine.llm.kv_cache import RowCache
from llava_mini_cli.engine.request import Likelihood
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration

HEAD_POSITIONS = 256  # positions whose scores of the whole vocabulary are there at once


@dataclass(frozen=True)
class Branches:
    """Some texts behind one row of a cache. Parents come before their children; -1 stands for the row."""

    row: int
    tokens: list[int]
    parents: list[int]
    paths: list[list[int]]  # of each text: where its tokens are
    given: int = 0  # tokens at the beginning of every text that are taken as said
    has_end: bool = True  # an end belongs to each text

    @classmethod
    def of(cls, row: int, texts: Sequence[Sequence[int]], given: int = 0, has_end: bool = True) -> "Branches":
        """From the tokens of each text, of which there is at least one."""
        tree = cls(row, [], [], [], given, has_end)
        known: dict[tuple[int, int], int] = {}
        for text in texts:
            path, here = list[int](), -1
            for token in text:
                step = here, token
                here = known.setdefault(step, len(tree.tokens))
                if here == len(tree.tokens):
                    tree.parents.append(step[0])
                    tree.tokens.append(token)
                path.append(here)
            tree.paths.append(path)
        return tree

    def depths(self) -> list[int]:
        """The distance of each token from the row, from 0."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent < 0 else found[parent] + 1)
        return found


@torch.inference_mode()
def log_likelihoods(
    model: LlavaMiniForConditionalGeneration,
    cache: RowCache,
    branches: Sequence[Branches],
    first: torch.Tensor,
    ends: Sequence[int],
) -> list[list[Likelihood]]:
    """The likelihood of each text of each tree: of its tokens and then of an end, if it has one.

    Args:
        branches: of rows in ascending order. The cache is read and stays as it is.
        first: `[len(branches), vocab]`, the scores of the token behind each row.
        ends: the tokens that end an answer, any of which may follow a text.

    Returns:
        One for each text of each tree; its score is NaN where the model gave no finite scores.
    """
    hidden = _extend(model, cache, branches)
    begins = _begins(branches)
    trees = list(zip(branches, begins, strict=True))
    parents = torch.tensor([begin + up if up >= 0 else -1 for one, begin in trees for up in one.parents])
    tokens = torch.tensor([token for one in branches for token in one.tokens])
    said, ended = torch.zeros(2, len(tokens), dtype=torch.float64)
    is_best, ends_best = torch.zeros(2, len(tokens), dtype=torch.bool)
    last = torch.tensor(list(ends))
    heads = torch.tensor([number for number, one in enumerate(branches) for up in one.parents if up < 0])
    roots = (parents < 0).nonzero().flatten()
    said[roots] = first.float().log_softmax(-1)[heads.to(first.device), tokens[roots].to(first.device)].double().cpu()
    is_best[roots] = first.argmax(-1).cpu()[heads] == tokens[roots]
    for start in range(0, len(tokens), HEAD_POSITIONS):
        scores = model.lm_head(hidden[start : start + HEAD_POSITIONS]).float().log_softmax(-1)
        stop = start + len(scores)
        ended[start:stop] = scores[:, list(ends)].double().logsumexp(-1).cpu()
        best = scores.argmax(-1).cpu()
        ends_best[start:stop] = torch.isin(best, last)
        here = ((parents >= start) & (parents < stop)).nonzero().flatten()
        said[here] = scores[(parents[here] - start).to(scores.device), tokens[here].to(scores.device)].double().cpu()
        is_best[here] = best[parents[here] - start] == tokens[here]
    chances, endings = said.tolist(), ended.tolist()
    found: list[list[Likelihood]] = []
    for one, begin in trees:
        found.append([])
        for path in one.paths:
            own = [begin + place for place in path[one.given :]]
            end = begin + path[-1]
            score = sum(chances[place] for place in own) + (endings[end] if one.has_end else 0.0)
            is_greedy = bool(is_best[own].all()) and (not one.has_end or bool(ends_best[end]))
            found[-1].append(Likelihood(score, is_greedy))
    return found


def _begins(branches: Sequence[Branches]) -> list[int]:
    """Where the tokens of each tree begin, one tree behind the other."""
    begins, total = list[int](), 0
    for one in branches:
        begins.append(total)
        total += len(one.tokens)
    return begins


def _extend(model: LlavaMiniForConditionalGeneration, cache: RowCache, branches: Sequence[Branches]) -> torch.Tensor:
    """All trees through the language model in one pass; attention alone goes medium by medium. `[n, hidden]`."""
    trunk = model.model
    device = cache.prefix_lengths.device
    rows = torch.tensor([one.row for one in branches], device=device)
    sizes = torch.tensor([len(one.tokens) for one in branches], device=device)
    depths = torch.tensor([depth for one in branches for depth in one.depths()], device=device)
    positions = cache.positions(rows).repeat_interleave(sizes) + depths
    hidden = trunk.embed_tokens(torch.tensor([token for one in branches for token in one.tokens], device=device))[None]
    rotary = trunk.rotary_emb(hidden, positions[None])
    grouped = groupby(branches, lambda one: one.row // cache.rows_per_medium)
    views = [_View.of(cache, medium, list(trees)) for medium, trees in grouped]
    for number, layer in enumerate(cast("list[LlamaDecoderLayer]", list(trunk.layers))):
        states = project(layer, normalised(layer.input_layernorm, hidden), rotary)
        split = [part.split([view.size for view in views], dim=2) for part in states]
        out = [view.attend(number, *parts) for view, *parts in zip(views, *split, strict=True)]
        hidden = finish(layer, hidden, torch.cat(out, dim=2).transpose(1, 2).flatten(2))
    return normalised(trunk.norm, hidden)[0]


@dataclass(frozen=True)
class _View:
    """The trees behind the rows of one medium, and what each of their tokens sees.

    All see the prefix, or a row without one, of which there is a single one. The others are seen by a mask.
    """

    cache: RowCache
    is_of_row: bool  # whether all see a row, and not the prefix
    shared: tuple[slice, int]  # which of the rows or media it is, and how many positions
    rows: torch.Tensor  # int64 [R'], those that have trees and are seen by a mask
    own: int  # S, positions of the longest of these rows' own parts
    bias: torch.Tensor  # [1, 1, n, R' * S + n]

    @property
    def size(self) -> int:
        """Tokens of the trees."""
        return self.bias.shape[2]

    @classmethod
    def of(cls, cache: RowCache, medium: int, trees: Sequence[Branches]) -> "_View":
        rows = torch.tensor([one.row for one in trees], device=cache.prefix_lengths.device)
        lengths = cache.own_lengths.flatten()[rows].tolist()
        shared = slice(medium, medium + 1), int(cache.prefix_lengths[medium])
        if is_of_row := len(trees) == 1 and not shared[1]:
            shared, rows, lengths = (slice(trees[0].row, trees[0].row + 1), lengths[0]), rows[:0], [0]
        longest, total = max(lengths), sum(len(one.tokens) for one in trees)
        before = len(rows) * longest
        visible = torch.zeros(total, before + total, dtype=torch.bool)
        inner = visible[:, before:]
        for slot, (one, begin, length) in enumerate(zip(trees, _begins(trees), lengths, strict=True)):
            visible[begin : begin + len(one.tokens), slot * longest : slot * longest + length] = True
            for place, parent in enumerate(one.parents):
                if parent >= 0:
                    inner[begin + place] = inner[begin + parent]
                inner[begin + place, begin + place] = True
        own_keys = cache.own_keys[0]
        bias = additive(visible.to(own_keys.device), own_keys.dtype)[None, None]
        return cls(cache, is_of_row, shared, rows, longest, bias)

    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`[1, heads, n, d]`; keys and values are those of the trees' own tokens, `[1, kv heads, n, d]`."""
        cache = self.cache
        own_keys, own_values = cache.own_keys[layer], cache.own_values[layer]
        own = attend_masked(queries, self._with_rows(own_keys, keys), self._with_rows(own_values, values), self.bias)
        part, length = self.shared
        if not length:
            return own.out
        if not self.is_of_row:
            own_keys, own_values = cache.prefix_keys[layer], cache.prefix_values[layer]
        return merged(attend(queries, own_keys[part, :, :length], own_values[part, :, :length]), own)

    def _with_rows(self, own: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Keys or values of the rows and the trees as one, for this layer alone."""
        rows = own[self.rows, :, : self.own].transpose(0, 1).flatten(1, 2)
        return torch.cat([rows[None], new], dim=2)
