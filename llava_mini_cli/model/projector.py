"""The projector: features of CLIP's width to the language model's (paper, section 4.2)."""

import re

from torch import nn

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.model.configuration import LlavaMiniConfig


def build_projector(config: LlavaMiniConfig) -> nn.Module:
    """`linear`, or `mlp<N>x_gelu`: N linear layers with GELU (erf) between them.

    The module maps `[..., mm_hidden_size]` to `[..., hidden_size]`.

    Raises:
        CheckpointError: the configuration names another type.
    """
    if config.mm_projector_type == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    depth = re.fullmatch(r"mlp(\d+)x_gelu", config.mm_projector_type)
    if depth is None:
        raise CheckpointError(f"unknown mm_projector_type {config.mm_projector_type!r}: not linear or mlp<N>x_gelu")
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, int(depth.group(1))):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
