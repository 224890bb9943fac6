"""Frames and packed text through CLIP, compressor, projector and pre-fusion: the encode phase.

The same sums as `model/prefusion.py`, without the work that nobody reads: vision runs once a frame
whatever the number of questions, the text of all questions rides along, and the last layer computes
only keys and values at the patches. Knows nothing of requests or generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, apply_rotary_pos_emb

from llava_mini_cli.engine.linear import linear, linear_silu
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.engine.tower import patch_features
from llava_mini_cli.model.modeling import LlavaMiniModel, VisionFeatures


@dataclass(frozen=True)
class Encoded:
    """What is left of a chunk of frames."""

    tokens: torch.Tensor  # [F, C * C, hidden], frame tokens for the LLM
    fused: torch.Tensor  # [F, T, hidden], fused text of each frame's pack, padded to the longest


@dataclass(frozen=True)
class TextBatch:
    """The packs of a chunk's frames as tensors, `[1, ...]` when all frames have the same pack."""

    ids: torch.Tensor  # int64 [B, T], 0 beyond a pack's end
    positions: torch.Tensor  # int64 [B, T]
    mask: torch.Tensor  # bool [B, 1, T, V + T]

    @classmethod
    def of(cls, packs: Sequence[TextPack], vision_length: int, device: torch.device) -> "TextBatch":
        """Stacks packs, padded to the longest. A single distinct pack is stacked once."""
        rows = [packs[0]] if all(pack is packs[0] or pack == packs[0] for pack in packs) else packs
        length = max(len(pack) for pack in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        positions = torch.ones(len(rows), length, dtype=torch.int64)
        mask = torch.ones(len(rows), 1, length, vision_length + length, dtype=torch.bool)
        mask[..., vision_length:] = False
        for row, pack in enumerate(rows):
            size = len(pack)
            ids[row, :size] = torch.tensor(pack.ids)
            behind = torch.from_numpy(pack.positions)
            positions[row, :size] = torch.where(behind < 0, 1, behind + vision_length)
            mask[row, 0, :size, vision_length : vision_length + size] = torch.from_numpy(pack.visible)
        return cls(ids.to(device), positions.to(device), mask.to(device))


@torch.inference_mode()
def encode(model: LlavaMiniModel, pixels: torch.Tensor, packs: Sequence[TextPack]) -> Encoded:
    """Encodes a chunk of frames, each with the packed text of its medium.

    Args:
        pixels: float `[F, parts, 3, H, W]` on the model's device.
        packs: one for each frame.
    """
    frames, parts = pixels.shape[:2]
    features = patch_features(model.vision_tower, pixels.flatten(0, 1)).unflatten(0, (frames, parts))
    return encode_features(model, features, packs)


@torch.inference_mode()
def encode_features(model: LlavaMiniModel, features: torch.Tensor, packs: Sequence[TextPack]) -> Encoded:
    """`encode` behind the vision tower: its features `[F, parts, N, mm_hidden_size]` in place of pixels."""
    return fuse_packed(model, model.project_vision(features), packs)


@torch.inference_mode()
def fuse_packed(model: LlavaMiniModel, features: VisionFeatures, packs: Sequence[TextPack]) -> Encoded:
    """`encode` from projected features on; `features` as `LlavaMiniModel.encode_vision` gives them."""
    vision = features.sequence()
    frames, length = vision.shape[:2]
    batch = TextBatch.of(packs, length, vision.device)
    raw = model.embed_text(batch.ids).to(vision.dtype).expand(frames, -1, -1)
    keep = model.config.vision_tokens_per_frame
    layers = [cast(LlamaDecoderLayer, layer) for layer in model.prefusion_layers]
    if not layers:
        return Encoded(vision[:, -keep:], raw)
    vision_positions = torch.arange(length, device=vision.device).expand(batch.positions.shape[0], -1)
    positions = torch.cat([vision_positions, batch.positions], dim=1)
    hidden = torch.cat([vision, raw], dim=1)
    rotary = model.rotary_emb(hidden, positions)
    for layer in layers[:-1]:
        hidden = _layer(layer, hidden, rotary, batch.mask, length, first_query=0)
    hidden = _layer(layers[-1], hidden, rotary, batch.mask, length, first_query=length - keep)
    fused = torch.where((batch.ids <= 0)[..., None], raw, hidden[:, keep:])
    return Encoded(hidden[:, :keep], fused)


def _layer(
    layer: LlamaDecoderLayer,
    hidden: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    text_mask: torch.Tensor,
    vision_length: int,
    first_query: int,
) -> torch.Tensor:
    """One pre-fusion layer over `[vision | text]`; positions before `first_query` give keys and values only.

    Returns:
        `[F, length - first_query, hidden]`.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    keys, values = (_heads(linear(part, normed), attention.head_dim) for part in (attention.k_proj, attention.v_proj))
    queries = _heads(linear(attention.q_proj, normed[:, first_query:]), attention.head_dim)
    cos, sin = rotary
    keys = _rotate(keys, cos, sin)
    queries = _rotate(queries, cos[:, first_query:], sin[:, first_query:])
    reads = vision_length - first_query  # vision positions that are queries too
    seen = _causal(queries[:, :, :reads], keys[:, :, :vision_length], values[:, :, :vision_length])
    if text_mask.shape[2]:  # nothing is asked when frames are only looked at
        text = functional.scaled_dot_product_attention(
            queries[:, :, reads:], keys, values, attn_mask=text_mask, enable_gqa=True
        )
        seen = torch.cat([seen, text], dim=2)
    out = seen.transpose(1, 2).flatten(2)
    hidden = linear(attention.o_proj, out).add_(hidden[:, first_query:])
    return _mlp(layer.mlp, layer.post_attention_layernorm(hidden)).add_(hidden)


def _mlp(mlp: LlamaMLP, normed: torch.Tensor) -> torch.Tensor:
    """The layer's MLP, its elementwise part in place where it is SiLU."""
    if mlp.config.hidden_act != "silu":
        return mlp(normed)
    return linear(mlp.down_proj, linear_silu(mlp.gate_proj, normed).mul_(linear(mlp.up_proj, normed)))


def _heads(projected: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`[B, L, heads * d]` to `[B, heads, L, d]`."""
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotated, _ = apply_rotary_pos_emb(states, states[:, :1], cos, sin)
    return rotated


def _causal(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last queries of a sequence over all of its keys."""
    size, length = queries.shape[2], keys.shape[2]
    if size == length:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    mask = torch.ones(size, length, dtype=torch.bool, device=queries.device).tril(length - size)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
