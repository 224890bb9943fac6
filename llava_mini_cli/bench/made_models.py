"""Models of a shape with random weights, and LLaVA-1.5 made of the same parts; prompts by their number of tokens.

transformers' LLaVA-1.5 shares the tower, the projector and the language model with ours, so that both fit where one
does, and none of them computes with other weights than the other.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.bench.shapes import NO_END
from llava_mini_cli.model.compressor import build_compressor
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE, model_shapes

BLOCK = 1 << 20  # random numbers that weights repeat
SPREAD = 0.02
BEFORE, AFTER = 23, 20  # text tokens around an image: the paper's 43


class Weight(NamedTuple):
    """A tensor as `engine.fit` counts it."""

    shape: tuple[int, ...]
    dtype: str


def weights_of(config: LlavaMiniConfig, dtype: str) -> dict[str, Weight]:
    """Every tensor of a model of a configuration."""
    return {name: Weight(shape, dtype) for name, shape in model_shapes(config).items()}


def meta_model(config: LlavaMiniConfig) -> LlavaMiniForConditionalGeneration:
    """A model without numbers, whose work can be counted."""
    config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    with torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config).eval().requires_grad_(False)


def random_model(config: LlavaMiniConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """LLaVA-Mini of a configuration with random weights, the same in every run."""
    model = meta_model(config)
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(SPREAD).to(device, dtype)
    for name, parameter in list(model.named_parameters()):
        _put(model, name, _random(name, parameter.shape, block))
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    embeddings: Any = model.model.vision_tower.vision_tower.embeddings
    embeddings.position_ids = torch.arange(config.patch_grid**2 + 1, device=device)[None]
    _end_never(model)
    return model


def _random(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    owner, _, own = name.rpartition(".")
    kind = torch.float32 if own == "pos_embed" else block.dtype
    if own == "weight" and "norm" in owner.rpartition(".")[2]:
        return torch.ones(shape, dtype=kind, device=block.device)
    made = torch.empty(shape, dtype=kind, device=block.device)
    flat = made.view(-1)
    for start in range(0, len(flat), BLOCK):
        flat[start : start + BLOCK] = block[: len(flat) - start]
    return made


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, nn.Parameter(tensor, requires_grad=False))


def _end_never(model: Any) -> None:
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0


def compressor_of(model: LlavaMiniForConditionalGeneration, side: int) -> Any:
    """A random compressor for a model, which gives side * side vision tokens an image."""
    config = LlavaMiniConfig.from_fields({**model.config.to_dict(), "compressor_size": side})
    made = build_compressor(config).requires_grad_(False).eval().to(model.device)
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data if name == "pos_embed" else parameter.data.to(model.model.dtype)
    return made


def llava_config(config: LlavaMiniConfig) -> LlavaConfig:
    """LLaVA-1.5 with the same tower and language model."""
    text = {**config.to_dict(), **NO_END, "model_type": "llama"}
    text = {key: value for key, value in text.items() if not key.startswith(("mm_", "vision_config", "architectures"))}
    return LlavaConfig(
        text_config=text,
        vision_config=config.vision,
        image_token_index=config.vocab_size - 1,
        vision_feature_layer=config.mm_vision_select_layer,
    )


def meta_llava(config: LlavaMiniConfig) -> LlavaForConditionalGeneration:
    """transformers' LLaVA-1.5 of the same parts, without numbers."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(llava_config(config)).eval().requires_grad_(False)


def llava_beside(model: LlavaMiniForConditionalGeneration) -> Any:
    """transformers' LLaVA-1.5 with the weights of our model's parts."""
    llava: Any = meta_llava(model.config)
    ours = dict(model.named_parameters(remove_duplicate=False))
    block = torch.full((BLOCK,), SPREAD, dtype=model.model.dtype, device=model.device)
    for name, parameter in list(llava.named_parameters(remove_duplicate=False)):
        shared = ours.get(_our_name(name))
        if shared is not None and shared.shape == parameter.shape:
            owner, _, own = name.rpartition(".")
            setattr(llava.get_submodule(owner), own, shared)
        else:
            _put(llava, name, _random(name, parameter.shape, block))
    llava.model.language_model.rotary_emb = LlamaRotaryEmbedding(llava.config.text_config).to(model.device)
    patches = model.config.patch_grid**2
    llava.model.vision_tower.embeddings.position_ids = torch.arange(patches + 1, device=model.device)[None]
    _end_never(llava)
    return llava


def _our_name(name: str) -> str:
    for theirs, ours in (
        ("model.language_model.", "model."),
        ("model.vision_tower.", TOWER_MODULE),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


@dataclass(frozen=True)
class CountedPrompts:
    """Prompts of a stated number of tokens; question "7" is the seventh, different from the others in every token."""

    vocabulary: int
    before: int = BEFORE  # text tokens before the frames
    after: int = AFTER  # and behind them

    def question_ids(self, question: str) -> list[int]:
        """As `PromptBuilder.question_ids`."""
        ends = [1 + (100 + 37 * int(question) + place) % (self.vocabulary - 1) for place in range(self.after)]
        return [*range(1, 1 + self.before), IMAGE_TOKEN_ID, *ends]

    def answer_text(self, ids: list[int]) -> str:
        """As `PromptBuilder.answer_text`."""
        return " ".join(map(str, ids))
