"""CLIP's layers as the engine runs them: the sums of `model/vision.py` with fewer passes over memory.

Sums are taken in place, and quick GELU is a scaled SiLU, x * sigmoid(1.702 x) = silu(1.702 x) / 1.702, which is one
pass where it is not free. Knows nothing of text or frames.
"""

from typing import cast

import torch
from torch.nn import functional
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from llava_mini_cli.engine.linear import linear, linear_quick_gelu
from llava_mini_cli.model.vision import VisionTower

QUICK_GELU = 1.702


def patch_features(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    """As `VisionTower.forward`: pixels `[B, 3, H, W]` to `[B, N, mm_hidden_size]`."""
    hidden = hidden_states(tower, pixels)
    return (hidden if tower.keep_cls else hidden[:, 1:]).to(pixels.dtype)


def hidden_states(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    """The selected hidden state with its CLS position in front, `[B, 1 + patches, mm_hidden_size]`."""
    clip = tower.vision_tower
    hidden = clip.pre_layrnorm(clip.embeddings(pixels.to(clip.dtype)))
    for layer in clip.encoder.layers[: tower.layers_run]:
        hidden = _layer(cast(CLIPEncoderLayer, layer), hidden)
    return hidden


def summary(tower: VisionTower, hidden: torch.Tensor) -> torch.Tensor:
    """CLIP's own summary of pictures, `[B, width]`: the selected hidden state through the layers behind it."""
    clip = tower.vision_tower
    for layer in clip.encoder.layers[tower.layers_run :]:
        hidden = _layer(cast(CLIPEncoderLayer, layer), hidden)
    return clip.post_layernorm(hidden[:, 0])


def _layer(layer: CLIPEncoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    hidden = _attention(layer.self_attn, layer.layer_norm1(hidden)).add_(hidden)
    mlp, normed = layer.mlp, layer.layer_norm2(hidden)
    if mlp.config.hidden_act != "quick_gelu":
        return mlp(normed).add_(hidden)
    inner = linear_quick_gelu(mlp.fc1, normed, QUICK_GELU)
    return linear(mlp.fc2, inner.mul_(1 / QUICK_GELU)).add_(hidden)


def _attention(attention: CLIPAttention, normed: torch.Tensor) -> torch.Tensor:
    """Self-attention over all positions: `[B, L, width]` to the same."""
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    queries, keys, values = (
        linear(part, normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in parts
    )
    out = functional.scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    return linear(attention.out_proj, out.transpose(1, 2).flatten(2))
