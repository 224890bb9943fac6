"""Models of known shapes that can be measured without their weights, by the names of `--preset`. Knows no torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

PresetName = Literal["vicuna-7b", "llama-3.1-8b", "hd", "proportions", "demo"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
_DEMO = Path(__file__).parents[1] / "demo" / "model" / "config.json"

_CLIP_L: dict[str, Any] = {"image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
LARGE_CLIP = {**_CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
SMALL_CLIP = {**_CLIP_L, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
VICUNA_7B = {
    **LLAMA_8B,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
# Llama's 32 layers, grouped-query attention and MLP of 3.5 times the width, at a width for 2 cores.
SMALL_LLM = {
    **LLAMA_8B,
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
NO_END: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}


@dataclass(frozen=True)
class ModelShape:
    """A model by the fields of its configuration."""

    words: str
    llm: dict[str, Any]
    clip: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict[str, Any])  # how vision is compressed and fused

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the configuration; no token ends an answer, so that every answer has its whole length."""
        width = self.clip["hidden_size"]
        return {**self.llm, "mm_hidden_size": width, **self.more, **NO_END, "vision_config": self.clip}


def preset_shape(name: PresetName) -> ModelShape:
    """The shape of a preset; C = 1 and 4 pre-fusion layers unless it says otherwise."""
    if name == "demo":
        fields = json.loads(_DEMO.read_text())
        clip = fields.pop("vision_config")
        return ModelShape("the shape of the demo model", fields, clip)
    shapes: dict[PresetName, ModelShape] = {
        "vicuna-7b": ModelShape("Vicuna-7B and CLIP ViT-L/14 at 336 px, the paper's LLaVA-Mini", VICUNA_7B, LARGE_CLIP),
        "llama-3.1-8b": ModelShape("Llama 3.1 8B and CLIP ViT-L/14, the published checkpoint", LLAMA_8B, LARGE_CLIP),
        "hd": ModelShape(
            "Vicuna-7B and CLIP ViT-L/14 at 672 px in four quadrants and the whole, 64 vision tokens",
            VICUNA_7B,
            LARGE_CLIP,
            {"resolution_ratio": 2, "compressor_size": 8, "video_frame_size": 672},
        ),
        "proportions": ModelShape(
            "the 8B model's depth and proportions at CLIP width 256 and language-model width 512", SMALL_LLM, SMALL_CLIP
        ),
    }
    return shapes[name]
