"""The vision tower: CLIP's patch features from one of its hidden layers (paper, section 4.1).

Knows nothing of text, frames or compression.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel

from llava_mini_cli.model.configuration import LlavaMiniConfig

SLOPE = 1.702  # of CLIP's activation


class QuickGelu(nn.Module):
    """CLIP's activation, `x * sigmoid(1.702 * x)`, written over its input where no gradient is wanted.

    The input is the widest tensor of a layer. On a CPU, fresh memory for three more of it takes a quarter of the layer.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Any shape and float dtype; the same of it."""
        if torch.is_grad_enabled():
            return states * torch.sigmoid(SLOPE * states)
        return functional.silu(states.mul_(SLOPE), inplace=True).div_(SLOPE)


class VisionTower(nn.Module):
    """CLIP ViT up to the selected hidden state; the layers behind it are run for `summary` alone.

    The inner module keeps the published parameter names, `vision_tower.vision_model.*`, save for the
    `vision_model.` that recent transformers dropped (`checkpoint.py` renames it).
    """

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(config.vision)
        if config.vision.hidden_act == "quick_gelu":
            encoder: Any = self.vision_tower.encoder
            for layer in encoder.layers:
                layer.mlp.activation_fn = QuickGelu()
        layers = config.vision.num_hidden_layers
        select = config.mm_vision_select_layer
        self.layers_run = select if select >= 0 else layers + 1 + select
        self.keep_cls = config.mm_vision_select_feature == "cls_patch"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch features of normalised pictures.

        Args:
            pixels: float `[B, 3, H, W]`.

        Returns:
            `[B, N, mm_hidden_size]` in the dtype of `pixels`; N = patches (one more with `cls_patch`).
        """
        return self.see(pixels)[0]

    def see(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch features as `forward` gives them, and the selected hidden state `[B, 1 + patches, mm_hidden_size]`."""
        tower = self.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixels.to(tower.dtype)))
        for layer in tower.encoder.layers[: self.layers_run]:
            hidden = layer(hidden, None)
        return (hidden if self.keep_cls else hidden[:, 1:]).to(pixels.dtype), hidden

    def summary(self, hidden: torch.Tensor) -> torch.Tensor:
        """CLIP's own summary of pictures, `[B, width]`: the hidden state that `see` gives, through the last layers."""
        tower = self.vision_tower
        for layer in tower.encoder.layers[self.layers_run :]:
            hidden = layer(hidden, None)
        return tower.post_layernorm(hidden[:, 0])
