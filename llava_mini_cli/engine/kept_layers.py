"""Packed layers as facts in plain JSON and plain or packed tensors, and back. A layer's bias is the checkpoint's own.

FBGEMM does not hand out its packed weights: what is kept of them is the rounded weight, which is packed at every load.
"""

from collections.abc import Mapping
from typing import Any

import torch

from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Kernel, Int8Linear, pack

PackedLayer = Int8Linear | Int4Linear
Facts = dict[str, Any]
Parts = Mapping[str, torch.Tensor]


def facts_of(layer: PackedLayer) -> Facts:
    """What makes a layer again, beside its parts."""
    bits = 8 if isinstance(layer, Int8Linear) else 4
    return {"bits": bits, "in": layer.in_features, "out": layer.out_features}


def parts_of(layer: PackedLayer) -> dict[str, torch.Tensor]:
    """The tensors of a layer; those of its weight are packed where they can be had so."""
    if isinstance(layer, Int8Linear) and layer.kernel == "fbgemm":
        return {"rounded": torch.ops.quantized.linear_unpack(layer.packed)[0].int_repr(), "scales": layer.scales}
    return {"packed": layer.packed, "scales": layer.scales}


def use_parts(layer: PackedLayer, parts: Parts) -> None:
    """Puts equal tensors in the place of a layer's own."""
    layer.scales = parts["scales"]
    if "packed" in parts:
        layer.packed = parts["packed"]


def layer_of(facts: Facts, parts: Parts, kernel: Int8Kernel | None) -> PackedLayer:
    """A layer without a bias.

    Args:
        kernel: of int8; its packed weights are those of the kernel that made the parts.

    Raises:
        LookupError, TypeError, ValueError: the facts and parts are of no such layer.
    """
    inputs, outputs = facts["in"], facts["out"]
    if facts["bits"] == 4:
        return Int4Linear(parts["packed"], parts["scales"], inputs, outputs)
    packed = parts["packed"] if kernel != "fbgemm" else pack(parts["rounded"], "fbgemm")
    return Int8Linear(packed, parts["scales"], inputs, kernel=kernel)
