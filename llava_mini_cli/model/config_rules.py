"""A checkpoint's configuration from the fields of its files, each checked by itself and then against the others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPVisionConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.errors import CheckpointError, first_line
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.fields import CLIP_TEXT, CONFIG, GENERATION, ROPE, VISION, checked_fields, shown


def model_config(
    fields: Mapping[str, Any], vision: Mapping[str, Any], file: Path, vision_file: Path
) -> LlavaMiniConfig:
    """The configuration of a whole model.

    Args:
        vision: the fields of CLIP's vision half, which may stand in another file.

    Raises:
        CheckpointError: a field that cannot be used; one line names file, field and value.
    """
    known = checked_fields(fields, CONFIG, file)
    for key in ("rope_scaling", "rope_parameters"):
        if known.get(key) is not None:
            known[key] = checked_fields(known[key], ROPE, f"{file}: {key}")
    known["vision_config"] = checked_fields(vision, VISION, vision_file)
    for fault in _head_faults(known):
        raise CheckpointError(f"{file}: {fault}")
    try:
        config = LlavaMiniConfig.from_fields(known)
    except Exception as error:  # transformers' own checks raise whatever they trip over
        raise CheckpointError(f"{file}: {' '.join(str(error).split()) or type(error).__name__}") from error
    for faults, place in ((_vision_faults(config.vision), vision_file), (_faults(config), file)):
        for fault in faults:
            raise CheckpointError(f"{place}: {fault}")
    check_rotary(config, file)
    return config


def _vision_faults(vision: CLIPVisionConfig) -> Iterator[str]:
    yield from _heads(vision.num_attention_heads, vision.hidden_size, "hidden_size")
    if not 0 < vision.patch_size <= vision.image_size:  # pyright: ignore[reportOperatorIssue]  both are whole numbers
        yield f"patch_size {vision.patch_size}: must be at most image_size {vision.image_size}"


def _head_faults(known: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the attention heads; transformers finds it too, but names no field."""
    heads, width = (known.get(key, getattr(LlavaMiniConfig, key)) for key in ("num_attention_heads", "hidden_size"))
    yield from _heads(heads, width, "hidden_size")
    head = known.get("head_dim") or width // heads
    if head % 2:
        yield f"head_dim {head}: must be even"


def _faults(config: LlavaMiniConfig) -> Iterator[str]:
    """What is wrong between two fields, first things first."""
    heads, vision = config.num_attention_heads, config.vision
    yield from _heads(config.num_key_value_heads or heads, heads, "num_attention_heads", "num_key_value_heads")
    yield from _heads(config.compressor_num_heads, config.mm_hidden_size, "mm_hidden_size", "compressor_num_heads")
    if config.mm_hidden_size != vision.hidden_size:
        yield f"mm_hidden_size {config.mm_hidden_size}: must be hidden_size of the vision tower, {vision.hidden_size}"
    layers, select = vision.num_hidden_layers, config.mm_vision_select_layer
    if not -layers - 1 <= select <= layers:
        yield f"mm_vision_select_layer {select}: must be a hidden state of the tower's {layers} layers"
    yield from token_faults(vars(config), config.vocab_size)


def _heads(heads: int, width: int, of: str, name: str = "num_attention_heads") -> Iterator[str]:
    if width % heads:
        yield f"{name} {heads}: must divide {of} {width}"


def token_faults(fields: Mapping[str, Any], vocabulary: int) -> Iterator[str]:
    """Ids of special tokens that the vocabulary does not have."""
    for key in GENERATION:
        ids = fields.get(key)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and token >= vocabulary:
                yield f"{key} {shown(ids)}: must be below vocab_size {vocabulary}"


def check_rotary(config: LlavaMiniConfig, file: Path) -> None:
    """Raises `CheckpointError` where no rotary positions come of a configuration, or ones that are no numbers."""
    try:
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    except Exception as error:  # whatever arithmetic on the numbers of a file trips over
        raise CheckpointError(f"{file}: rope_parameters: {first_line(error)}") from error
    if not (torch.isfinite(frequencies) & (frequencies > 0)).all() or not len(frequencies):
        raise CheckpointError(f"{file}: rope_parameters: give no usable positions")


def text_config(fields: Any, file: Path) -> CLIPTextConfig:
    """The configuration of CLIP's text half. Raises `CheckpointError`."""
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: text_config {shown(fields)}: must be an object")
    config = CLIPTextConfig(**checked_fields(fields, CLIP_TEXT, f"{file}: text_config"))
    for fault in _heads(config.num_attention_heads, config.hidden_size, "hidden_size"):
        raise CheckpointError(f"{file}: text_config: {fault}")
    return config
