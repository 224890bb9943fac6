"""Tiny checkpoints of the published layout with made-up weights, for tests and for trying the tool offline.

Their answers are noise. The weights follow a recipe instead of a random generator's state, so that
numbers computed elsewhere on the same tiny weights can be compared: every value is a small integer
times a power of two, exact in bfloat16, float16 and float32.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_mini_cli.model.checkpoint import TOWER_FILE
from llava_mini_cli.model.compressor import sincos_positions
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE

CONTEXT = 16384
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
CLIP_PREPROCESSING = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}


def recipe_value(key: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """The made-up weight of one key: integers in [-3, 3], scaled by what kind of tensor the name says it is."""
    generator = np.random.Generator(np.random.PCG64(seed * 2**32 + zlib.crc32(key.encode())))
    integers = generator.integers(-3, 4, size=shape).astype(np.float32)
    module, _, name = key.rpartition(".")
    owner = module.rpartition(".")[2]
    if name == "weight" and ("norm" in owner or owner.startswith("ln_")):
        return (1 + integers / 32).astype(np.float32)
    if key.endswith("bias"):
        return (integers / 64).astype(np.float32)
    if owner in ("embed_tokens", "position_embedding") or name in ("class_embedding", "query"):
        return (integers / 4).astype(np.float32)
    gain = 1.0
    if owner == "lm_head":
        gain = 4.0
    elif (owner in ("q_proj", "o_proj") and "vision" not in key) or name == "in_proj_weight":
        gain = 2.0
    exponent = round(math.log2(gain / (2 * math.sqrt(math.prod(shape[1:])))))
    return (integers * 2.0**exponent).astype(np.float32)


def recipe_state(config: LlavaMiniConfig, seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint under its published name, the tower's included, in bfloat16."""
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(config)
    state: dict[str, torch.Tensor] = {}
    for key, value in model.named_parameters():
        name = TOWER_FILE + key.removeprefix(TOWER_MODULE) if key.startswith(TOWER_MODULE) else key
        if name.endswith("pos_embed"):
            tensor = sincos_positions(config.compressor_size, config.mm_hidden_size)
        else:
            tensor = torch.from_numpy(recipe_value(name, tuple(value.shape), seed))
        state[name] = tensor.to(torch.bfloat16)
    return state


def recipe_tower(config: LlavaMiniConfig, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a CLIP vision directory, under that directory's own names, in bfloat16."""
    names = [key for key in recipe_state(config, seed) if key.startswith(TOWER_FILE)]
    shapes = {key: tuple(value.shape) for key, value in recipe_state(config, seed).items() if key in names}
    plain = {"vision_model." + key.removeprefix(TOWER_FILE): shape for key, shape in shapes.items()}
    return {key: torch.from_numpy(recipe_value(key, shape, seed)).bfloat16() for key, shape in plain.items()}


def tiny_config(**changes: Any) -> LlavaMiniConfig:
    """A configuration of about 0.3 M parameters: 112 px, 64 patches, 4 pre-fusion layers, grouped-query attention."""
    fields: dict[str, Any] = {
        "vocab_size": 256 + len(SPECIAL_TOKENS),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 256,
        "eos_token_id": [257, 261],
        "pad_token_id": None,
        "mm_vision_tower": "clip",
        "mm_hidden_size": 64,
        "prefusion_layer_num": 4,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "projection_dim": 32,
        },
    }
    return LlavaMiniConfig.from_fields({**fields, **changes})


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, Llama 3's special tokens and the layout of its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:5]),
        model_max_length=CONTEXT,
    )
    wrapped.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def write_tiny_checkpoint(directory: str | Path, seed: int = 1, **changes: Any) -> Path:
    """Writes a whole checkpoint in the published layout, its CLIP tower in `clip/` inside it.

    Args:
        changes: configuration fields that differ from `tiny_config`.

    Returns:
        The directory.
    """
    directory = Path(directory)
    (directory / "clip").mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    fields = {key: value for key, value in config.to_dict().items() if key != "vision_config"}
    _write_json(directory / "config.json", fields)
    _write_json(directory / "generation_config.json", {"bos_token_id": 256, "eos_token_id": [257, 261]})
    state = {key: value for key, value in recipe_state(config, seed).items() if not key.startswith(TOWER_FILE)}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    save_file(recipe_tower(config, seed + 1), directory / "clip" / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "clip" / "config.json", config.vision.to_dict())
    size = config.vision.image_size
    fields = {"size": size, "crop_size": size, **CLIP_PREPROCESSING}
    _write_json(directory / "clip" / "preprocessor_config.json", fields)
    byte_tokenizer().save_pretrained(directory)
    return directory


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, default=str) + "\n", encoding="utf-8")
