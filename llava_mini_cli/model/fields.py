"""The fields of a checkpoint's JSON files that are used: what each may be. Looked at before anything is made of them.

A configuration may be somebody else's. What it holds beside these fields is dropped, as transformers would act on some
of it: names of code to run, kernels to fetch, any number of labels.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

from llava_mini_cli.errors import CheckpointError

MOST_LAYERS = 1000
MOST_WIDTH = 1 << 17
MOST_TOKENS = 1 << 22
MOST_PIXELS_AN_EDGE = 4096
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class Rule:
    """What one field may be."""

    words: str  # after "must be"
    holds: Callable[[Any], bool]

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(f"{self.words} or {other.words}", lambda value: self.holds(value) or other.holds(value))


def whole(low: int, high: int) -> Rule:
    """A whole number between two, both included."""
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float = inf) -> Rule:
    """A number above one and up to another."""
    words = f"a number above {low:g}" + ("" if high == inf else f" and up to {high:g}")
    return Rule(words, lambda value: type(value) in (int, float) and low < value <= high and value < 1e300)


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def list_of(rule: Rule, least: int, most: int) -> Rule:
    """A list of what keeps a rule."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, list) and least <= len(cast("list[Any]", value)) <= most and all(map(rule.holds, value))
        )

    return Rule(f"a list of {least} to {most}, each {rule.words}", holds)


NULL = Rule("null", lambda value: value is None)
SWITCH = Rule("true or false", lambda value: type(value) is bool)
TEXT = Rule("a text", lambda value: isinstance(value, str))
NAME = Rule("a text of at most 1024 characters", lambda value: isinstance(value, str) and len(value) <= 1024)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
TOKEN = whole(-1, MOST_TOKENS - 1)  # -1: none, in old checkpoints
END_TOKENS = whole(0, MOST_TOKENS - 1) | list_of(whole(0, MOST_TOKENS - 1), 1, 64)
SHARE = Rule("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
NUMBER_FORMAT = one_of("float32", "float16", "bfloat16", "float64")
PROJECTOR = Rule(
    "linear or mlp<N>x_gelu, N from 1 to 16",
    lambda value: isinstance(value, str) and re.fullmatch(r"linear|mlp([1-9]|1[0-6])x_gelu", value) is not None,
)

LAYERS: dict[str, Rule] = {  # of transformers of every kind
    "hidden_size": whole(2, MOST_WIDTH),
    "intermediate_size": whole(1, 8 * MOST_WIDTH),
    "num_hidden_layers": whole(1, MOST_LAYERS),
    "num_attention_heads": whole(1, MOST_WIDTH),
    "hidden_act": one_of(*ACTIVATIONS),
    "attention_dropout": SHARE,
    "initializer_range": SHARE,
}
CONFIG: dict[str, Rule] = {
    **LAYERS,
    "vocab_size": whole(1, MOST_TOKENS),
    "num_key_value_heads": whole(1, MOST_WIDTH) | NULL,
    "head_dim": whole(2, MOST_WIDTH) | NULL,
    "max_position_embeddings": whole(1, 1 << 30),
    "rms_norm_eps": number(0, 1),
    "attention_bias": SWITCH,
    "mlp_bias": SWITCH,
    "tie_word_embeddings": SWITCH,
    "use_cache": SWITCH,
    "pretraining_tp": whole(1, 1 << 16),
    "bos_token_id": TOKEN | NULL,
    "eos_token_id": END_TOKENS | NULL,
    "pad_token_id": TOKEN | NULL,
    "rope_theta": number(0) | NULL,
    "rope_scaling": OBJECT | NULL,
    "rope_parameters": OBJECT | NULL,
    "dtype": NUMBER_FORMAT | NULL,
    "torch_dtype": NUMBER_FORMAT | NULL,
    "vision_config": OBJECT | NULL,
    "mm_vision_tower": NAME | NULL,
    "unfreeze_mm_vision_tower": SWITCH,
    "mm_vision_select_layer": whole(-MOST_LAYERS, MOST_LAYERS),
    "mm_vision_select_feature": one_of("patch", "cls_patch"),
    "mm_hidden_size": whole(4, MOST_WIDTH),
    "mm_projector_type": PROJECTOR,
    "mm_use_im_start_end": SWITCH,
    "image_aspect_ratio": NAME | NULL,
    "resolution_ratio": whole(1, 8),
    "video_frame_size": whole(1, MOST_PIXELS_AN_EDGE),
    "compressor_size": whole(1, 64),
    "compressor_type": one_of("query", "average"),
    "compressor_num_heads": whole(1, MOST_WIDTH),
    "prefusion_layer_num": whole(0, MOST_LAYERS),
    "tokenizer_padding_side": one_of("left", "right"),
    # Not used here, but written again by `save_pretrained`, for the reference's own loader.
    "architectures": list_of(NAME, 0, 16) | NULL,
    "transformers_version": NAME | NULL,
    "tokenizer_model_max_length": whole(1, 1 << 30) | NULL,
    "mm_patch_merge_type": NAME | NULL,
    "mm_use_im_patch_token": SWITCH | NULL,
    "use_mm_proj": SWITCH | NULL,
}
ROPE: dict[str, Rule] = {
    "rope_type": one_of(*ROPE_TYPES),
    "type": one_of(*ROPE_TYPES),
    "rope_theta": number(0),
    "factor": number(0, 1e6),
    "low_freq_factor": number(0, 1e6),
    "high_freq_factor": number(0, 1e6),
    "original_max_position_embeddings": whole(1, 1 << 30),
    "attention_factor": number(0, 1e6) | NULL,
    "beta_fast": number(0, 1e6) | NULL,
    "beta_slow": number(0, 1e6) | NULL,
    "mscale": number(0, 1e6) | NULL,
    "mscale_all_dim": number(0, 1e6) | NULL,
    "short_factor": list_of(number(0, 1e6), 1, MOST_WIDTH),
    "long_factor": list_of(number(0, 1e6), 1, MOST_WIDTH),
    "partial_rotary_factor": number(0, 1),
    "truncate": SWITCH,
}
VISION: dict[str, Rule] = {
    **LAYERS,
    "image_size": whole(1, MOST_PIXELS_AN_EDGE),
    "patch_size": whole(1, MOST_PIXELS_AN_EDGE),
    "num_channels": whole(3, 3),
    "projection_dim": whole(1, MOST_WIDTH),
    "layer_norm_eps": number(0, 1),
    "initializer_factor": number(0, 100),
}
CLIP_TEXT: dict[str, Rule] = {
    **LAYERS,
    "vocab_size": whole(1, MOST_TOKENS),
    "max_position_embeddings": whole(1, 1 << 16),
    "projection_dim": whole(1, MOST_WIDTH),
    "layer_norm_eps": number(0, 1),
    "initializer_factor": number(0, 100),
    "bos_token_id": TOKEN | NULL,
    "eos_token_id": TOKEN | NULL,
    "pad_token_id": TOKEN | NULL,
}
GENERATION: dict[str, Rule] = {
    "bos_token_id": TOKEN | NULL,
    "eos_token_id": END_TOKENS | NULL,
    "pad_token_id": TOKEN | NULL,
}
_EDGE = whole(1, MOST_PIXELS_AN_EDGE)
PREPROCESSOR: dict[str, Rule] = {
    "size": _EDGE | OBJECT,
    "crop_size": _EDGE | OBJECT,
    "image_mean": list_of(number(-1e6, 1e6), 1, 3),
    "image_std": list_of(number(0, 1e6), 1, 3),
    "rescale_factor": number(0, 1e6),
    "resample": whole(0, 5),
}
PICTURE_SIZE: dict[str, Rule] = {"shortest_edge": _EDGE, "height": _EDGE, "width": _EDGE}


def checked_fields(fields: Mapping[str, Any], rules: Mapping[str, Rule], place: Path | str) -> dict[str, Any]:
    """Those of the fields that there are rules for; the others are dropped.

    Args:
        place: the file, and where in it they stand.

    Raises:
        CheckpointError: one breaks its rule; the text names file, field and value.
    """
    known = {key: fields[key] for key in rules if key in fields}
    for key, value in known.items():
        if not rules[key].holds(value):
            raise CheckpointError(f"{place}: {key} {shown(value)}: must be {rules[key].words}")
    return known


def shown(value: Any) -> str:
    """A value as an error says it, cut short."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "(a very long number)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
