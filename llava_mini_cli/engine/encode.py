"""The encode phase: frames and packed text through CLIP, compressor, projector and pre-fusion.

`encode` is the one door where frames become tokens. The same sums as `model/prefusion.py`, without the work that
nobody reads: vision runs once a frame whatever the number of questions, the text of all questions rides along, and
the last layer computes only keys and values at the patches. Knows nothing of requests or generation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.attention import Part, Seen, additive, attend, attend_causally, attend_masked, merged
from llava_mini_cli.engine.dense import Rotary, finish, normalised, project
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.engine.packed_rows import PackedRows
from llava_mini_cli.model.clip_space import embed_images
from llava_mini_cli.model.modeling import LlavaMiniModel

MOST_ROWS = 2  # times the positions of questions, for those of a row each
Own = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Part]  # of queries, keys and values of some positions


@dataclass(frozen=True)
class Encoded:
    """A chunk of frames behind the encode phase."""

    tokens: torch.Tensor  # [F, C * C, hidden], frame tokens for the LLM
    fused: torch.Tensor  # [F, T, hidden], fused text of each frame's pack, padded to the longest
    features: torch.Tensor  # [F, parts, N, mm_hidden_size], the vision tower's
    embeddings: torch.Tensor | None = None  # float32 [F, shared], CLIP's own; None: not asked for, or not known

    def part(self, start: int, stop: int, text: int) -> "Encoded":
        """The frames from `start` to `stop`, with the first `text` positions of their fused text."""
        frames = slice(start, stop)
        embeddings = None if self.embeddings is None else self.embeddings[frames]
        return Encoded(self.tokens[frames], self.fused[frames, :text], self.features[frames], embeddings)


@dataclass(frozen=True)
class TextBatch:
    """The packs of a chunk's frames as tensors, `[1, ...]` when all frames have the same pack.

    In front lies what everything behind it sees: the text that all questions share, or all text where nobody asks more
    than one. Padding, which nobody sees, is moved to the end.
    """

    ids: torch.Tensor  # int64 [B, T], 0 where a pack has nothing
    positions: torch.Tensor  # int64 [B, T]
    places: torch.Tensor  # int64 [B, T'], where each token of a pack is
    front: int  # positions of the text in front
    seen: Seen  # of vision and the text in front, by the text behind it
    own: Own | None  # what attends from the text behind to itself; None: there is none

    @classmethod
    def of(cls, packs: Sequence[TextPack], vision: torch.Tensor, skipped: int) -> "TextBatch":
        """Stacks packs behind vision `[F, V, hidden]`, which skips some positions; a single distinct pack once."""
        distinct = packs[:1] if all(pack == packs[0] for pack in packs) else packs
        if max(len(pack.prompt_lengths) for pack in distinct) <= 1:
            fronts = [len(pack) for pack in distinct]
        elif _fits_rows(distinct):
            fronts = [int(pack.key_ok[: pack.segments[0].stop].sum()) if pack.segments else 0 for pack in distinct]
        else:
            fronts = [0] * len(distinct)
        front, length = max(fronts), vision.shape[1]
        behind = max(len(pack) - own for pack, own in zip(distinct, fronts, strict=True))
        shape = len(distinct), front + behind
        ids, positions = np.zeros(shape, np.int64), np.ones(shape, np.int64)
        places = np.zeros((len(distinct), max(map(len, distinct))), np.int64)
        for number, (pack, own) in enumerate(zip(distinct, fronts, strict=True)):
            order = np.argsort(~pack.key_ok, kind="stable")
            slots = np.arange(len(pack)) + (np.arange(len(pack)) >= own) * (front - own)
            places[number, order] = slots
            ids[number, slots] = np.asarray(pack.ids, np.int64)[order]
            places_behind = pack.positions[order]
            positions[number, slots] = np.where(places_behind < 0, 1, places_behind + length + skipped)
        return cls(
            *(torch.from_numpy(array).to(vision.device) for array in (ids, positions, places)),
            front=front,
            seen=Seen.of([length + own for own in fronts], length + front, vision),
            own=_own(distinct, behind, vision) if behind else None,
        )

    def in_order(self, text: torch.Tensor) -> torch.Tensor:
        """`[F, T', hidden]` as the packs have it."""
        return torch.take_along_dim(text, self.places[..., None], dim=1)


def _own(packs: Sequence[TextPack], behind: int, like: torch.Tensor) -> Own:
    """Attention of `behind` positions of text to themselves: each question to itself, or what a mask says."""
    if _fits_rows(packs):
        return PackedRows.of([_spans(pack) for pack in packs], behind, like.device).attend
    visible = np.tile(np.eye(behind, dtype=bool), (len(packs), 1, 1))
    for number, pack in enumerate(packs):
        order = np.argsort(~pack.key_ok, kind="stable")
        visible[number, : len(pack), : len(pack)] |= pack.visible[np.ix_(order, order)]
    bias = additive(torch.from_numpy(visible).to(like.device), like.dtype)[:, None]
    return partial(attend_masked, bias=bias)


def _fits_rows(packs: Sequence[TextPack]) -> bool:
    """True if the questions of each pack share all text in front of them, and a row each is not mostly padding."""
    sizes = [[stop - start for start, stop in _spans(pack)] for pack in packs if len(pack.groups) <= 1]
    if len(sizes) < len(packs):
        return False
    padded = len(packs) * max(map(len, sizes)) * max(size for own in sizes for size in [0, *own])
    return padded <= MOST_ROWS * sum(map(sum, sizes))


def _spans(pack: TextPack) -> list[tuple[int, int]]:
    """Where the questions of a pack are among the text behind that which they share, without padding."""
    sizes = [int(pack.key_ok[part.start : part.stop].sum()) for part in pack.segments[1:]]
    stops = list(accumulate(sizes))
    return [(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


@torch.inference_mode()
def encode(
    model: LlavaMiniModel, pixels: torch.Tensor, packs: Sequence[TextPack], projection: torch.Tensor | None = None
) -> Encoded:
    """Encodes a chunk of frames, each with the packed text of its medium.

    Args:
        pixels: float `[F, parts, 3, H, W]` on the model's device.
        packs: one for each frame.
        projection: float `[shared, width]`, CLIP's of pictures; with it, CLIP's own embeddings come from the same
            pass. The embedding of a frame that is cut into pieces is that of the whole frame.
    """
    frames, parts = pixels.shape[:2]
    features, hidden = (part.unflatten(0, (frames, parts)) for part in model.vision_tower.see(pixels.flatten(0, 1)))
    embeddings = None
    if projection is not None:
        embeddings = embed_images(model.vision_tower.summary(hidden[:, -1]), projection)
    return encode_features(model, features, packs, embeddings)


@torch.inference_mode()
def encode_features(
    model: LlavaMiniModel,
    features: torch.Tensor,
    packs: Sequence[TextPack],
    embeddings: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> Encoded:
    """`encode` behind the vision tower, for frames whose features are known.

    Args:
        features: `[F, parts, N, mm_hidden_size]`, as the vision tower gives them.
        embeddings: float32 `[F, shared]`, handed on.
        seen: bool `[P]`, the patches that compressor and pre-fusion see, in their own places; None: all.
    """
    vision = model.project_vision(features, seen).sequence()
    places = torch.arange(vision.shape[1], device=vision.device)
    if seen is not None:
        places = torch.cat([seen.nonzero().flatten(), places[len(seen) :]])
        vision = vision[:, places]
    frames, length = vision.shape[:2]
    batch = TextBatch.of(packs, vision, 0 if seen is None else int((~seen).sum()))
    raw = model.embed_text(batch.ids).to(vision.dtype).expand(frames, -1, -1)
    keep = model.config.vision_tokens_per_frame
    layers = [cast(LlamaDecoderLayer, layer) for layer in model.prefusion_layers]
    if not layers:
        return Encoded(vision[:, -keep:], batch.in_order(raw), features, embeddings)
    vision_positions = places.expand(batch.positions.shape[0], -1)
    hidden = torch.cat([vision, raw], dim=1)
    rotary = model.rotary_emb(hidden, torch.cat([vision_positions, batch.positions], dim=1))
    for layer in layers[:-1]:
        hidden = _layer(layer, hidden, rotary, batch, length, first_query=0)
    hidden = _layer(layers[-1], hidden, rotary, batch, length, first_query=length - keep)
    fused = torch.where((batch.ids <= 0)[..., None], raw, hidden[:, keep:])
    return Encoded(hidden[:, :keep], batch.in_order(fused), features, embeddings)


def _layer(
    layer: LlamaDecoderLayer,
    hidden: torch.Tensor,
    rotary: Rotary,
    text: TextBatch,
    vision_length: int,
    first_query: int,
) -> torch.Tensor:
    """One pre-fusion layer over `[vision | text]`; positions before `first_query` give keys and values only.

    Returns:
        `[F, length - first_query, hidden]`.
    """
    states = project(layer, normalised(layer.input_layernorm, hidden), rotary, first_query)
    front = vision_length + text.front
    cuts = front - first_query, front, front
    queries, keys, values = (part[:, :, :cut] for part, cut in zip(states, cuts, strict=True))
    seen = attend_causally(queries, keys, values)
    if text.own is not None:
        own_queries, own_keys, own_values = (part[:, :, cut:] for part, cut in zip(states, cuts, strict=True))
        own = text.own(own_queries, own_keys, own_values)
        seen = torch.cat([seen, merged(attend(own_queries, keys, values, text.seen), own)], dim=2)
    return finish(layer, hidden[:, first_query:], seen.transpose(1, 2).flatten(2))
