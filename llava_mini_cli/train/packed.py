"""LLaVA-Mini's own modules run on packed batches (`packing`): the demo's stages, and the loss per answer.

The loss is averaged over the tokens of an answer first and over answers then; otherwise captions, with
their many tokens, would drown one-word answers.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from llava_mini_cli.model import LlavaMiniForConditionalGeneration
from llava_mini_cli.train.fusion_truth import FusionHeads

Mode = Literal["language", "patches", "fused"]
FUSION_SHARE = 0.5  # of what pre-fusion is asked, in the loss; answers: 1


def packed_mask(segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask: causal, and each question sees what all share and itself.

    Args:
        segment: int64 `[B, S]`, 0 shared, -1 padding.

    Returns:
        `[B, 1, S, S]`.
    """
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    alike = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    mask = torch.zeros(alike.shape, dtype=dtype, device=segment.device)
    return mask.masked_fill(~(alike & causal), torch.finfo(dtype).min)[:, None]


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

    def run(self, layers: nn.ModuleList, hidden: torch.Tensor, segment: torch.Tensor, position: torch.Tensor) -> Any:
        """Llama layers over packed sequences `[B, S, width]`."""
        mask = packed_mask(segment, hidden.dtype)
        rotary = self.model.model.rotary_emb(hidden, position)
        for layer in layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=position, position_embeddings=rotary)
        return hidden

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frames `[F, 3, H, W]` to the vision half of pre-fusion's input, `[F, P + C * C, width]`."""
        inner = self.model.model
        with torch.no_grad():
            features = inner.vision_tower(pixels)
        return inner.project_vision(features[:, None]).sequence()

    def fuse(self, vision: torch.Tensor, block: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pre-fusion of a block's texts with its frames: frame outputs `[R, V, width]`, texts `[R, S, width]`."""
        inner = self.model.model
        rows, length = block["frame"].shape[0], vision.shape[1]
        hidden = torch.cat([vision[block["frame"]], inner.embed_tokens(block["ids"])], dim=1)
        segment = torch.cat([torch.zeros_like(block["segment"][:, :1]).expand(-1, length), block["segment"]], dim=1)
        places = torch.arange(length, device=vision.device).expand(rows, -1)
        hidden = self.run(inner.prefusion_layers, hidden, segment, torch.cat([places, block["position"]], dim=1))
        return hidden[:, :length], hidden[:, length:]

    def fused_tokens(self, vision: torch.Tensor, done: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The LLM's tokens of every frame, `[F, C * C, width]`; those of frames without text are computed here."""
        number = self.model.config.vision_tokens_per_frame
        known = torch.cat([frame for frame, _ in done])
        missing = torch.ones(vision.shape[0], dtype=torch.bool, device=vision.device)
        missing[known] = False
        tokens, order = [seen[:, -number:] for _, seen in done], [known]
        if bool(missing.any()):
            alone = vision[missing]
            shared = torch.zeros(alone.shape[:2], dtype=torch.int64, device=vision.device)
            places = torch.arange(alone.shape[1], device=vision.device).expand(alone.shape[0], -1)
            tokens.append(self.run(self.model.model.prefusion_layers, alone, shared, places)[:, -number:])
            order.append(missing.nonzero().flatten())
        return torch.cat(tokens)[torch.cat(order).argsort()]

    def plain(
        self, pixels: torch.Tensor, blocks: list[dict[str, torch.Tensor]], count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts as they are, and every patch or one blank: `[count, width]` and `[F, N, width]` or `[F, 1, width]`."""
        inner = self.model.model
        vision = self.vision(pixels)[:, : -self.model.config.vision_tokens_per_frame]
        texts = vision.new_zeros(count, vision.shape[2], dtype=torch.float32)
        for block in blocks:
            texts = texts.index_copy(
                0, block["target"].flatten(), inner.embed_tokens(block["ids"]).float().flatten(0, 1)
            )
        return texts, vision if self.mode == "patches" else torch.zeros_like(vision[:, :1])

    def fused(
        self, pixels: torch.Tensor, blocks: list[dict[str, torch.Tensor]], count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts fused with their frames, and compressed tokens: `[count, width]` and `[F, C * C, width]`."""
        vision = self.vision(pixels)
        texts = vision.new_zeros(count, vision.shape[2], dtype=torch.float32)
        done: list[tuple[torch.Tensor, torch.Tensor]] = []
        for block in blocks:
            seen, said = self.fuse(vision, block)
            done.append((block["frame"], seen))
            shares = said.float() * block["share"][:, None, None]
            texts = texts.index_add(0, block["target"].flatten(), shares.flatten(0, 1))
        return texts, self.fused_tokens(vision, done)

    def forward(
        self,
        pixel_values: torch.Tensor,
        blocks: list[dict[str, torch.Tensor]],
        text_count: torch.Tensor,
        answer_ids: torch.Tensor,
        rows: list[dict[str, torch.Tensor]],
        truth: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The loss per answer, and the weighted share of answer tokens that are right; shapes in `packing`.

        Where there is pre-fusion, what it is asked counts, too.
        """
        texts, tokens = self.embedded(pixel_values, blocks, int(text_count))
        loss, right = texts.new_zeros(()), texts.new_zeros(())
        for group, logits in self._logits(texts, tokens, answer_ids, rows):
            each = functional.cross_entropy(logits, group["token"], reduction="none")
            loss = loss + (each * group["weight"]).sum()
            right = right + ((logits.argmax(-1) == group["token"]) * group["weight"]).sum().detach()
        if self.mode != "fused":
            return {"loss": loss, "right": right}
        fusion = self.fusion_loss(texts, tokens, truth)
        whole = loss + FUSION_SHARE * fusion.pop("loss")
        return {"loss": whole, "answers": loss.detach(), "right": right, **fusion}

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
        blocks: list[dict[str, torch.Tensor]],
        text_count: torch.Tensor,
        answer_ids: torch.Tensor,
        rows: list[dict[str, torch.Tensor]],
        truth: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """For each group of rows, whether each answer token is the likeliest given the true ones before it."""
        groups = self._logits(*self.embedded(pixel_values, blocks, int(text_count)), answer_ids, rows)
        return [logits.argmax(-1) == group["token"] for group, logits in groups]

    def embedded(
        self, pixels: torch.Tensor, blocks: list[dict[str, torch.Tensor]], count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the LLM reads of texts and frames, as the mode says: `[count, width]` and `[F, N, width]`."""
        return (self.fused if self.mode == "fused" else self.plain)(pixels, blocks, count)

    def _logits(
        self,
        texts: torch.Tensor,
        tokens: torch.Tensor,
        answer_ids: torch.Tensor,
        rows: list[dict[str, torch.Tensor]],
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Each group of rows with the logits `[targets, vocab]` at its targets."""
        inner = self.model.model
        embeddings = torch.cat([texts, tokens.float().flatten(0, 1), inner.embed_tokens(answer_ids).float()])
        for group in rows:
            hidden = self.run(inner.layers, embeddings[group["source"]], group["segment"], group["position"])
            yield group, self.model.lm_head(inner.norm(hidden[group["row"], group["column"]])).float()


class FusionTrainer(nn.Module):
    """Pre-fusion before the language model is asked anything: what it has to give is trained alone."""

    def __init__(self, trainer: PackedTrainer) -> None:
        super().__init__()
        self.trainer = trainer

    def forward(
        self,
        pixel_values: torch.Tensor,
        blocks: list[dict[str, torch.Tensor]],
        text_count: torch.Tensor,
        truth: dict[str, torch.Tensor],
        **answers: object,
    ) -> dict[str, torch.Tensor]:
        """The loss of what pre-fusion is asked about a packed batch; its answers are not looked at."""
        texts, tokens = self.trainer.embedded(pixel_values, blocks, int(text_count))
        return self.trainer.fusion_loss(texts, tokens, truth)
