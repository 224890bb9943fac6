"""Configuration of LLaVA-Mini: a flat Llama configuration with `mm_*` fields, as the published checkpoint has it.

Two ablations of the paper are configuration: `compressor_type="average"` (pooling in place of the
queries, Table 8) and `prefusion_layer_num=0` (no pre-fusion, Table 7).
"""

from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, LlamaConfig

CompressorType = Literal["query", "average"]

# CLIP ViT-L/14 at 336 px, the tower of every published checkpoint (their configurations do not repeat it).
CLIP_VIT_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


@strict
class LlavaMiniConfig(LlamaConfig):
    """A Llama configuration, and how vision is compressed and fused into it.

    `vision_config` is written by `save_pretrained`; where a checkpoint has none, the loader takes it
    from the directory or hub id that `mm_vision_tower` names.
    """

    model_type = "llava_mini_llama"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": CLIPVisionConfig}  # pyright: ignore[reportIncompatibleMethodOverride]

    vision_config: dict[str, Any] | CLIPVisionConfig | None = None
    mm_vision_tower: str | None = None
    unfreeze_mm_vision_tower: bool = False  # the checkpoint's own tower weights count, not mm_vision_tower's
    mm_vision_select_layer: int = -2  # index into CLIP's hidden states; -2 is the output before its last layer
    mm_vision_select_feature: str = "patch"  # "patch" drops CLS, "cls_patch" keeps it
    mm_hidden_size: int = 1024  # width of the patch features
    mm_projector_type: str = "mlp2x_gelu"  # linear, or mlp<N>x_gelu
    mm_use_im_start_end: bool = False
    image_aspect_ratio: str | None = None  # "pad": letterbox images to a square; else CLIP's centre crop
    resolution_ratio: int = 1  # n: an image is read as n x n pieces and the whole
    video_frame_size: int = 336  # pixels; frames are squashed to this square before CLIP's own step
    compressor_size: int = 1  # C: C * C vision tokens an image or frame
    compressor_type: CompressorType = "query"
    compressor_num_heads: int = 8
    prefusion_layer_num: int = 4
    tokenizer_padding_side: str = "right"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = CLIPVisionConfig(**CLIP_VIT_L_336)
        elif isinstance(self.vision_config, dict):
            fields = {key: value for key, value in self.vision_config.items() if key != "model_type"}
            self.vision_config = CLIPVisionConfig(**fields)
        super().__post_init__(**kwargs)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """From the fields of a `config.json`, whatever version of transformers wrote it."""
        return cls(**fields)

    @property
    def vision(self) -> CLIPVisionConfig:
        """The CLIP tower's configuration."""
        assert isinstance(self.vision_config, CLIPVisionConfig)
        return self.vision_config

    @property
    def vision_tokens_per_frame(self) -> int:
        """C * C."""
        return self.compressor_size**2

    @property
    def parts_per_frame(self) -> int:
        """Pictures that CLIP sees for one image or frame: the whole, and n * n pieces when n > 1."""
        return self.resolution_ratio**2 + 1 if self.resolution_ratio > 1 else 1

    @property
    def patch_grid(self) -> int:
        """Patches along one edge of one picture."""
        size, patch = self.vision.image_size, self.vision.patch_size
        assert isinstance(size, int)
        assert isinstance(patch, int)
        return size // patch
