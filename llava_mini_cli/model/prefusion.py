"""Modality pre-fusion: a few Llama layers in which the text reads every patch (paper, section 4.2, Figure 6).

The sequence is `[patches | compressed tokens | whole text]` under a causal mask, so vision never
depends on the text. This file is the plain way of computing it, all at once; the engine computes the
same in two steps (`engine/`). Knows nothing of pixels or generation.
"""

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding


def is_padding(ids: torch.Tensor) -> torch.Tensor:
    """True at the text positions that pre-fusion treats as padding: every id <= 0.

    That is the image placeholder, and also the real token 0 ("!" in Llama 3, `<unk>` in Llama 2): the
    model was trained so. Padding is masked for everyone, does not advance positions, and keeps its raw
    embedding.

    Returns:
        bool, the shape of `ids`.
    """
    return ids <= 0


def text_positions(ids: torch.Tensor, vision_length: int) -> torch.Tensor:
    """Rotary positions of text behind `vision_length` vision positions; padding does not advance them.

    Args:
        ids: int64 `[B, S]`.

    Returns:
        int64 `[B, S]`; 1 at padding.
    """
    padding = is_padding(ids)
    positions = vision_length - 1 + (~padding).long().cumsum(-1)
    return positions.masked_fill(padding, 1)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as the additive one that transformers' attention functions take."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def prefuse(
    layers: nn.ModuleList,
    rotary: LlamaRotaryEmbedding,
    vision: torch.Tensor,
    text: torch.Tensor,
    ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the pre-fusion layers over vision and text at once.

    Args:
        vision: `[B, V, hidden]`, patches first, compressed tokens last.
        text: `[B, S, hidden]`, embeddings of `ids` (anything at padding).
        ids: int64 `[B, S]`; ids <= 0 are padding.

    Returns:
        The vision `[B, V, hidden]` and text `[B, S, hidden]` outputs; text at padding is `text` itself.
    """
    length = vision.shape[1]
    vision_ids = torch.ones(ids.shape[0], length, dtype=ids.dtype, device=ids.device)
    vision_positions = torch.arange(length, device=ids.device).expand(ids.shape[0], -1)
    positions = torch.cat([vision_positions, text_positions(ids, length)], dim=1)
    key_ok = ~is_padding(torch.cat([vision_ids, ids], dim=1))
    causal = torch.ones(positions.shape[1], positions.shape[1], dtype=torch.bool, device=ids.device).tril()
    hidden = torch.cat([vision, text], dim=1)
    mask = additive_mask(causal & key_ok[:, None, None, :], hidden.dtype)
    position_embeddings = rotary(hidden, positions)
    for layer in layers:
        assert isinstance(layer, LlamaDecoderLayer)
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=position_embeddings)
    fused = torch.where(is_padding(ids)[..., None], text, hidden[:, length:])
    return hidden[:, :length], fused
