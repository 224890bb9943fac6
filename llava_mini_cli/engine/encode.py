"""The encode phase: frames and packed text through CLIP, compressor, projector and pre-fusion.

`encode` is the one door where frames become tokens. The same sums as `model/prefusion.py`, without the work that
nobody reads: vision runs once a frame whatever the number of questions, the text of all questions rides along, and
the last layer computes only keys and values at the patches. Knows nothing of requests or generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.dense import Rotary, attend_causally, finish, project
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.model.clip_space import embed_images
from llava_mini_cli.model.modeling import LlavaMiniModel


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
    """The packs of a chunk's frames as tensors, `[1, ...]` when all frames have the same pack."""

    ids: torch.Tensor  # int64 [B, T], 0 beyond a pack's end
    positions: torch.Tensor  # int64 [B, T]
    mask: torch.Tensor  # bool [B, 1, T, V + T]

    @classmethod
    def of(cls, packs: Sequence[TextPack], vision_length: int, device: torch.device, hidden: int = 0) -> "TextBatch":
        """Stacks packs, padded to the longest. A single distinct pack is stacked once.

        `hidden`: vision positions that are skipped, besides those that are there.
        """
        distinct = packs[:1] if all(pack == packs[0] for pack in packs) else packs
        length = max(len(pack) for pack in distinct)
        ids = torch.zeros(len(distinct), length, dtype=torch.int64)
        positions = torch.ones(len(distinct), length, dtype=torch.int64)
        mask = torch.ones(len(distinct), 1, length, vision_length + length, dtype=torch.bool)
        mask[..., vision_length:] = False
        for number, pack in enumerate(distinct):
            size = len(pack)
            ids[number, :size] = torch.tensor(pack.ids)
            behind = torch.from_numpy(pack.positions)
            positions[number, :size] = torch.where(behind < 0, 1, behind + vision_length + hidden)
            mask[number, 0, :size, vision_length : vision_length + size] = torch.from_numpy(pack.visible)
        return cls(ids.to(device), positions.to(device), mask.to(device))


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
    batch = TextBatch.of(packs, length, vision.device, hidden=0 if seen is None else int((~seen).sum()))
    raw = model.embed_text(batch.ids).to(vision.dtype).expand(frames, -1, -1)
    keep = model.config.vision_tokens_per_frame
    layers = [cast(LlamaDecoderLayer, layer) for layer in model.prefusion_layers]
    if not layers:
        return Encoded(vision[:, -keep:], raw, features, embeddings)
    vision_positions = places.expand(batch.positions.shape[0], -1)
    hidden = torch.cat([vision, raw], dim=1)
    rotary = model.rotary_emb(hidden, torch.cat([vision_positions, batch.positions], dim=1))
    for layer in layers[:-1]:
        hidden = _layer(layer, hidden, rotary, batch.mask, length, first_query=0)
    hidden = _layer(layers[-1], hidden, rotary, batch.mask, length, first_query=length - keep)
    fused = torch.where((batch.ids <= 0)[..., None], raw, hidden[:, keep:])
    return Encoded(hidden[:, :keep], fused, features, embeddings)


def _layer(
    layer: LlamaDecoderLayer,
    hidden: torch.Tensor,
    rotary: Rotary,
    text_mask: torch.Tensor,
    vision_length: int,
    first_query: int,
) -> torch.Tensor:
    """One pre-fusion layer over `[vision | text]`; positions before `first_query` give keys and values only.

    Returns:
        `[F, length - first_query, hidden]`.
    """
    queries, keys, values = project(layer, layer.input_layernorm(hidden), rotary, first_query)
    reads = vision_length - first_query  # vision positions that are queries too
    seen = attend_causally(queries[:, :, :reads], keys[:, :, :vision_length], values[:, :, :vision_length])
    if text_mask.shape[2]:  # nothing is asked when frames are only looked at
        text = functional.scaled_dot_product_attention(
            queries[:, :, reads:], keys, values, attn_mask=text_mask, enable_gqa=True
        )
        seen = torch.cat([seen, text], dim=2)
    return finish(layer, hidden[:, first_query:], seen.transpose(1, 2).flatten(2))
