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
from llava_mini_cli.train.fusion_truth import FusionHeads

Mode = Literal["language", "patches", "fused"]
Masks = tuple[torch.Tensor | None, ...]
FUSION_SHARE = 0.5  # of what pre-fusion is asked, in the loss; answers: 1


class Gather(torch.autograd.Function):
    """Rows `x[index]`; its gradient is a gather, too, since every row is asked for once, but for padding.

    Args of `apply`:
        x: `[N, width]`; index: int64 `[M]`; back: int64 `[N]`, where each row of `x` went; there: bool `[M]` or None,
        which gradients count (padding's do not).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


class GatherBack(torch.autograd.Function):
    """Rows `x[back]`, the inverse of `Gather`; padding gets no gradient.

    Args of `apply`:
        x: `[M, width]`; back: int64 `[N]`; index: int64 `[M]`; there: bool `[M]`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, back: torch.Tensor, index: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(index, there)
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        index, there = ctx.saved_tensors
        return gradients[0].index_select(0, index) * there[:, None], None, None, None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: dict[str, Any], masks: list[Masks]
) -> torch.Tensor:
    """Attention over packed sequences: causal, and each question sees what all share and itself.

    What is shared attends once and questions beside each other, so that few scores are computed to be masked.

    Args:
        query, key, value: `[N, heads, d]` of the flat tokens; queries and keys are rotated.
        layout: of `packing.Sequences`.
        masks: of `additive_masks`.

    Returns:
        `[N, heads * d]`.
    """
    _, heads, depth = query.shape
    sizes = [rows * each for g in layout["groups"] for rows, each in (g["shared"], *_tables(g))]
    tables = [
        Gather.apply(x.flatten(1), layout["index"], layout["back"]).split([*sizes, 1])
        for x in (query * depth**-0.5, key, value)
    ]
    each_table = zip(*tables, strict=True)
    done: list[torch.Tensor] = []
    for group, (hidden, *causal) in zip(layout["groups"], masks, strict=True):
        rows, length = group["shared"]
        asks, keys, values = (x.view(rows, length, heads, depth).transpose(1, 2) for x in next(each_table))
        shares = (asks @ keys.transpose(2, 3) + causal[0]).softmax(-1).to(values.dtype)
        done.append((shares @ values).transpose(1, 2).reshape(-1, heads * depth))
        for (number, each), after in zip(group["own"], causal[1:], strict=True):
            own = [x.view(rows, number, each, heads, depth).transpose(2, 3) for x in next(each_table)]
            together = own[0].transpose(1, 2).reshape(rows, heads, number * each, depth)  # every question of a row
            before = together @ keys.transpose(2, 3)
            before = (before if hidden is None else before + hidden).unflatten(2, (number, each)).transpose(1, 2)
            shares = torch.cat([before, own[0] @ own[1].transpose(3, 4) + after], dim=4).softmax(-1).to(values.dtype)
            of_shared, of_own = shares.split([length, each], dim=4)
            of_shared = of_shared.transpose(1, 2).reshape(rows, heads, number * each, length) @ values
            found = of_shared.unflatten(2, (number, each)).transpose(1, 2) + of_own @ own[2]
            done.append(found.transpose(2, 3).reshape(-1, heads * depth))  # of [rows, n, heads, L, d]
    done.append(value.new_zeros(1, heads * depth))  # the place of padding
    return GatherBack.apply(torch.cat(done), layout["back"], layout["index"], layout["there"])


def _tables(group: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and lengths of a group's tables of questions."""
    return [(group["shared"][0] * number, each) for number, each in group["own"]]


def additive_masks(layout: dict[str, Any], dtype: torch.dtype) -> list[Masks]:
    """What is added to scores in each group.

    The padding of what is shared, `[R, 1, 1, P]` or None; then for what is shared and each table of questions what
    comes later, `[length, length]`, which hides padding, too.
    """
    least, device = torch.finfo(dtype).min, layout["back"].device
    masks: list[Masks] = []
    for group in layout["groups"]:
        length, lengths = group["shared"][1], group.get("lengths")
        hidden = None
        if lengths is not None:
            padding = torch.arange(length, device=device) >= lengths[:, None]
            hidden = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill(padding, least)[:, None, None]
        edges = [length, *(each for _, each in group["own"])]
        masks.append((hidden, *(torch.full((e, e), least, dtype=dtype, device=device).triu(1) for e in edges)))
    return masks


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
        """Which parts get gradients, named as for the constructor; `heads`, too."""
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
        """What the LLM reads of texts and frames, as the mode says: `[T, width]` and `[F, N, width]`."""
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

        Where there is pre-fusion, what it is asked counts, too.
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
        of_texts, named = self.heads.texts(texts[truth["ends"]], truth["named"])
        return {"loss": of_frames + of_texts, "seen": seen, "named": named}

    def predictions(
        self,
        pixel_values: torch.Tensor,
        text_ids: torch.Tensor,
        fusion: dict[str, Any],
        llm: dict[str, Any],
        truth: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Whether each answer token is the likeliest given the true ones before it, bool `[M]`."""
        logits = self.logits(*self.embedded(pixel_values, text_ids, fusion), llm)
        return logits.argmax(-1) == llm["token"]


def rotated(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys `[N, heads, d]` turned by their rotary positions; `cos` and `sin`: float32 `[N, 1, d]`."""
    first, second = values.chunk(2, dim=2)
    return (values * cos + torch.cat([-second, first], dim=2) * sin).to(values.dtype)


def compute_type(hidden: torch.Tensor) -> torch.dtype:
    """The type of matrix products with `hidden`: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


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
