"""A checkpoint of the published model's layout and size with random weights, written tensor by tensor.

    FOLDER/llava-mini-8b/                 config.json, shards of 5 GB with an index, a tokenizer of 128,256 tokens
    FOLDER/clip-vit-large-patch14-336/    CLIP's vision half and its projection, float32

Names, shapes, number formats and files are those of `ICTNLP/llava-mini-llama-3.1-8b` and of the tower that it names, so
that reading it, what it takes in memory and how fast it is are the same. What it answers is noise.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tiny_checkpoints import CHAT_TEMPLATE, CLIP_PREPROCESSING
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava_mini_cli.model.compressor import sincos_positions
from llava_mini_cli.model.configuration import CLIP_VIT_L_336, LlavaMiniConfig
from llava_mini_cli.model.prompt_layouts import LLAMA_3_SYSTEM
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE, Shape, model_shapes, vision_shapes

Size = Literal["full", "small"]
CHECKPOINT, TOWER = "llava-mini-8b", "clip-vit-large-patch14-336"
SHARD_BYTES = {"full": 5 * 10**9, "small": 10**6}
FORMATS = {"bfloat16": ("BF16", torch.bfloat16), "float16": ("F16", torch.float16), "float32": ("F32", torch.float32)}
SPECIAL_TOKENS = 256
TRAINED_TOKENS = 8192  # learned from this project's own pages, so that prompts have about as many tokens as in Llama 3
BLOCK = 16_777_259  # random numbers that all tensors are cut from; a prime, so that no two rows are alike
LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlavaMiniLlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "compressor_size": 1,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "square",
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "mm_hidden_size": 1024,
    "mm_patch_merge_type": "flat",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": TOWER,
    "model_type": "llava_mini_llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "prefusion_layer_num": 4,
    "pretraining_tp": 1,
    "resolution_ratio": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": 128256,
}
SMALL_LLAMA = {
    "bos_token_id": 2048,
    "eos_token_id": [2049, 2056, 2057],
    "hidden_size": 128,
    "intermediate_size": 448,
    "mm_hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2304,
}
SMALL_CLIP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def write_checkpoint(folder: Path, size: Size = "full", weights: str = "bfloat16", seed: int = 1) -> Path:
    """Writes a checkpoint and its tower beside it. The full size takes 19 GB of the disk and 0.3 GB of memory.

    Args:
        size: `full`, or `small`: the same files and layers at a width that takes a second.
        weights: number format of the language model's shards; the tower's is float32, as published.

    Returns:
        The checkpoint's directory.
    """
    small = size == "small"
    fields = {**LLAMA_31_8B, "torch_dtype": weights, **(SMALL_LLAMA if small else {})}
    clip = {**CLIP_VIT_L_336, **(SMALL_CLIP if small else {})}
    config = LlavaMiniConfig.from_fields({**fields, "vision_config": clip})
    checkpoint, tower = folder / CHECKPOINT, folder / TOWER
    for directory in (checkpoint, tower):
        directory.mkdir(parents=True, exist_ok=True)
    _write_json(checkpoint / "config.json", fields)
    ids = {key: fields[key] for key in ("bos_token_id", "eos_token_id")}
    _write_json(checkpoint / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.9})
    make_tokenizer(fields["vocab_size"]).save_pretrained(checkpoint)
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    shapes = {key: shape for key, shape in model_shapes(config).items() if not key.startswith(TOWER_MODULE)}
    _write_shards(checkpoint, shapes, weights, SHARD_BYTES[size], numbers, config)
    _write_tower(tower, clip, config, numbers)
    return checkpoint


def _write_tower(tower: Path, clip: dict[str, Any], config: LlavaMiniConfig, numbers: torch.Tensor) -> None:
    _write_json(tower / "config.json", {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", **clip})
    edge = clip["image_size"]
    _write_json(tower / "preprocessor_config.json", {"size": edge, "crop_size": edge, **CLIP_PREPROCESSING})
    shapes = {f"vision_model.{key}": shape for key, shape in vision_shapes(config.vision).items()}
    shapes["visual_projection.weight"] = (clip["projection_dim"], clip["hidden_size"])
    _write_file(tower / "model.safetensors", shapes, "float32", numbers, config)


def _write_shards(
    directory: Path,
    shapes: Mapping[str, Shape],
    weights: str,
    most: int,
    numbers: torch.Tensor,
    config: LlavaMiniConfig,
) -> None:
    """Shards in the order of the module tree, and the index that says which tensor is where."""
    width = FORMATS[weights][1].itemsize
    shards: list[dict[str, Shape]] = [{}]
    filled = 0
    for key, shape in shapes.items():
        size = math.prod(shape) * width
        if filled and filled + size > most:
            shards.append({})
            filled = 0
        shards[-1][key] = shape
        filled += size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, weights, numbers, config)
        places |= dict.fromkeys(shard, name)
    total = sum(math.prod(shape) * width for shape in shapes.values())
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_file(
    path: Path, shapes: Mapping[str, Shape], weights: str, numbers: torch.Tensor, config: LlavaMiniConfig
) -> None:
    """One file of safetensors: 8 bytes with the header's length, the header, and the tensors one after the other."""
    name, dtype = FORMATS[weights]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8, as safetensors' own writer has it
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            for piece in _pieces(key, shape, numbers, config):
                file.write(piece.to(dtype).contiguous().view(torch.uint8).numpy())


def _pieces(key: str, shape: Shape, numbers: torch.Tensor, config: LlavaMiniConfig) -> Iterator[torch.Tensor]:
    """The numbers of one tensor, float32, in pieces of a few million."""
    if key.endswith("pos_embed"):
        yield sincos_positions(config.compressor_size, config.mm_hidden_size)
        return
    mean, deviation = _scale(key, shape)
    left, place = math.prod(shape), zlib.crc32(key.encode()) % BLOCK
    while left:
        piece = numbers[place : place + min(left, BLOCK >> 2)]
        yield piece * deviation + mean
        left, place = left - len(piece), (place + len(piece)) % BLOCK


def _scale(key: str, shape: Shape) -> tuple[float, float]:
    """Mean and standard deviation of a tensor, so that attention is not even and nothing overflows."""
    module, _, name = key.rpartition(".")
    owner = module.rpartition(".")[2]
    if name == "weight" and ("norm" in owner or owner.startswith("ln_")):
        return 1.0, 0.05
    if len(shape) == 1 or "position_embedding" in key or owner == "embed_tokens":
        return 0.0, 0.02
    gain = 1.5 if name == "in_proj_weight" or owner in ("q_proj", "k_proj") else 1.0
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with Llama 3's special tokens and chat template, and as many tokens as the model has."""
    ordinary = vocabulary - SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=min(TRAINED_TOKENS, ordinary), initial_alphabet=alphabet, show_progress=False
    )
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    tokenizer.train_from_iterator([LLAMA_3_SYSTEM, *(page.read_text(encoding="utf-8") for page in pages)], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    merges: list[tuple[str, str]] = [tuple(merge) for merge in learned["merges"]]
    words = [word for word in vocab if word.isascii()]
    for left, right in ((left, right) for left in words for right in words):
        if len(vocab) == ordinary:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    tokenizer.model = models.BPE(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _special_tokens()])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_max_length=131072,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _special_tokens() -> list[str]:
    """Llama 3.1's, at their places behind the ordinary tokens."""
    named = {
        0: "begin_of_text",
        1: "end_of_text",
        4: "finetune_right_pad_id",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
        9: "eot_id",
        10: "python_tag",
    }
    reserved = iter(range(SPECIAL_TOKENS))
    return [
        f"<|{named[place] if place in named else f'reserved_special_token_{next(reserved)}'}|>"
        for place in range(SPECIAL_TOKENS)
    ]


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
