"""LLaVA-Mini's own modules run on packed batches (`packing`): the demo's stages, and the loss per answer.

The loss is averaged over the tokens of an answer first and over answers then; otherwise captions, with
their many tokens, would drown one-word answers.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.train.demo_preset.attention import additive_masks, attend, compute_type, rotated
from llava_mini_cli.train.demo_preset.fusion_truth import FusionHeads

Mode = Literal["language", "patches", "fused"]
FUSION_SHARE = 0.5  # weight of what pre-fusion is asked, in the loss; that of answers is 1


class PackedTrainer(nn.Module):
    """The model under training; `forward` gives the loss of one packed batch.

    Args:
        model: the model; its vision tower is never trained here.
        mode: what the LLM reads. `language`: text alone, blank vision. `patches`: plain text and every
            projected patch, the paper's stage 1. `fused`: LLaVA-Mini itself, stage 2.
        trained: submodules of `model.model` (or `lm_head`) that are trained; None: all but the tower.
    """

    def __init__(
        self, model: LlavaMiniForConditionalGeneration, mode: Mode = "fused", trained: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.mode: Mode = mode
        self.heads = FusionHeads(model.config.hidden_size, model.config.vision_tokens_per_frame)
        self.train_only(trained)

    def train_only(self, trained: tuple[str, ...] | None) -> None:
        """Lets only these parts get gradients, named as for the constructor; `heads` may be among them."""
        for name, parameter in self.named_parameters():
            part = name.removeprefix("model.").removeprefix("model.").split(".")[0]
            wanted = part != "vision_tower" if trained is None else part in trained
            parameter.requires_grad_(wanted and not name.endswith("pos_embed"))

    def run(self, layers: nn.ModuleList, hidden: torch.Tensor, layout: dict[str, Any]) -> torch.Tensor:
        """Llama layers over the flat tokens `[N, width]` of packed sequences."""
        tokens, places = len(hidden), len(layout["back"])
        hidden = functional.pad(hidden, (0, 0, 0, places - tokens))
        positions = functional.pad(layout["position"], (0, places - tokens))
        cos, sin = (part[0, :, None] for part in self.model.model.rotary_emb(hidden, positions[None]))
        masks = additive_masks(layout, compute_type(hidden))
        for layer in cast(Iterable[LlamaDecoderLayer], layers):
            normed, own = layer.input_layernorm(hidden), layer.self_attn
            query, key, value = (
                part(normed).unflatten(1, (-1, cos.shape[2])) for part in (own.q_proj, own.k_proj, own.v_proj)
            )
            seen = attend(rotated(query, cos, sin), rotated(key, cos, sin), value, layout, masks)
            hidden = hidden + own.o_proj(seen)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden[:tokens]

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frames `[F, 3, H, W]` to the vision half of pre-fusion's input, `[F, P + C * C, width]`."""
        inner = self.model.model
        with torch.no_grad():
            features = inner.vision_tower(pixels)
        return inner.project_vision(features[:, None]).sequence()

    def plain(self, vision: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts as they are, and every patch or one blank: `[T, width]` and `[F, N, width]` or `[F, 1, width]`."""
        patches = vision[:, : -self.model.config.vision_tokens_per_frame]
        texts = self.model.model.embed_tokens(ids)
        return texts, patches if self.mode == "patches" else torch.zeros_like(patches[:, :1])

    def fused(
        self, vision: torch.Tensor, ids: torch.Tensor, fusion: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts fused with their frames, and compressed tokens: `[T, width]` and `[F, C * C, width]`."""
        inner = self.model.model
        frames, length, width = vision.shape
        said = inner.embed_tokens(ids[fusion["target"]])
        hidden = torch.cat([vision.reshape(-1, width).to(said.dtype), said])
        hidden = self.run(inner.prefusion_layers, hidden, fusion).float()
        seen, said = hidden.split([frames * length, len(hidden) - frames * length])
        texts = said.new_zeros(len(ids), width).index_add(0, fusion["target"], said * fusion["share"][:, None])
        return texts, seen.view(frames, length, width)[:, -self.model.config.vision_tokens_per_frame :]

    def embedded(
        self, pixels: torch.Tensor, ids: torch.Tensor, fusion: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts and frames as the LLM reads them in this mode: `[T, width]` and `[F, N, width]`."""
        vision = self.vision(pixels)
        return self.fused(vision, ids, fusion) if self.mode == "fused" else self.plain(vision, ids)

    def logits(self, texts: torch.Tensor, tokens: torch.Tensor, llm: dict[str, Any]) -> torch.Tensor:
        """Logits `[M, vocab]` wherever an answer's token is predicted."""
        inner = self.model.model
        said = inner.embed_tokens(llm["answer_ids"])
        table = torch.cat([texts.float(), tokens.float().flatten(0, 1), said.float()])
        hidden = self.run(inner.layers, functional.embedding(llm["source"], table), llm)
        return self.model.lm_head(inner.norm(functional.embedding(llm["at"], hidden))).float()

    def forward(
        self,
        pixel_values: torch.Tensor,
        text_ids: torch.Tensor,
        fusion: dict[str, Any],
        llm: dict[str, Any],
        truth: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The loss per answer, and the weighted share of answer tokens that are right; shapes in `packing`.

        Where there is pre-fusion, the loss of its own questions counts, too.
        """
        texts, tokens = self.embedded(pixel_values, text_ids, fusion)
        logits = self.logits(texts, tokens, llm)
        loss = (functional.cross_entropy(logits, llm["token"], reduction="none") * llm["weight"]).sum()
        right = ((logits.argmax(-1) == llm["token"]) * llm["weight"]).sum().detach()
        if self.mode != "fused":
            return {"loss": loss, "right": right}
        asked = self.fusion_loss(texts, tokens, truth)
        whole = loss + FUSION_SHARE * asked.pop("loss")
        return {"loss": whole, "answers": loss.detach(), "right": right, **asked}

    def fusion_loss(
        self, texts: torch.Tensor, tokens: torch.Tensor, truth: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The loss of what pre-fusion is asked, and the shares of things that tokens and texts know."""
        of_frames, seen = self.heads.frames(tokens, truth["cells"])
        ends = texts[truth["ends"]]
        of_texts, named = self.heads.texts(ends, truth["named"])
        behind = self.heads.backgrounds(ends, truth["background"])
        return {"loss": of_frames + of_texts + behind, "seen": seen, "named": named, "behind": behind.detach()}


class FusionTrainer(nn.Module):
    """Pre-fusion before the language model is asked anything: what it has to give is trained alone."""

    def __init__(self, trainer: PackedTrainer) -> None:
        super().__init__()
        self.trainer = trainer

    def forward(
        self,
        pixel_values: torch.Tensor,
        text_ids: torch.Tensor,
        fusion: dict[str, Any],
        truth: dict[str, torch.Tensor],
        **answers: object,
    ) -> dict[str, torch.Tensor]:
        """The loss of what pre-fusion is asked about a packed batch; its answers are not looked at."""
        texts, tokens = self.trainer.embedded(pixel_values, text_ids, fusion)
        return self.trainer.fusion_loss(texts, tokens, truth)
