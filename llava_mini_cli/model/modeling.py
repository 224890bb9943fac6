"""LLaVA-Mini (arXiv 2501.03895, Figure 6): each box of the figure is a module here, in the order of the data.

    pixels -> VisionTower -> patches --+-> compressor -> projector --+
                                       +-> projector ----------------+-> pre-fusion with the text
    LLM input = fused text before the image | C * C tokens a frame | fused text after

This is the plain path: one pass over everything, for use from Python and as the oracle of the engine's
tests. The engine calls the same modules in another order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaPreTrainedModel

from llava_mini_cli.model.compressor import build_compressor
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.prefusion import is_padding, prefuse
from llava_mini_cli.model.pretrained import CheckpointMixin
from llava_mini_cli.model.projector import build_projector
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID
from llava_mini_cli.model.vision import VisionTower

FRAMES_AT_ONCE = 16  # frames the plain path encodes as one batch
Embed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # arguments and result of `fuse_sample`


@dataclass(frozen=True)
class VisionFeatures:
    """Frames on their way into pre-fusion, at the language model's width."""

    patches: torch.Tensor  # [F, P, hidden]; of a split image: the n*n pieces' raster, then the whole's patches
    compressed: torch.Tensor  # [F, C * C, hidden]

    def sequence(self) -> torch.Tensor:
        """`[F, P + C * C, hidden]`, as pre-fusion reads it."""
        return torch.cat([self.patches, self.compressed], dim=1)


def stitch(pieces: torch.Tensor, grid: int) -> torch.Tensor:
    """Patch features of n * n row-major pieces as one raster.

    Args:
        pieces: `[F, n * n, grid * grid, width]`.

    Returns:
        `[F, (n * grid) ** 2, width]`.
    """
    frames, count, _, width = pieces.shape
    n = round(count**0.5)
    raster = pieces.reshape(frames, n, n, grid, grid, width).permute(0, 1, 3, 2, 4, 5)
    return raster.reshape(frames, (n * grid) ** 2, width)


class LlavaMiniModel(LlamaModel):
    """Vision tower, compressor, projector, pre-fusion and the Llama trunk, under the published names."""

    config: LlavaMiniConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.compressor = build_compressor(config)
        self.mm_projector = build_projector(config)
        self.prefusion_layers = nn.ModuleList(
            LlamaDecoderLayer(config, index) for index in range(config.prefusion_layer_num)
        )
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The number format that it computes in; weights may be held in others."""
        return self.norm.weight.dtype

    def encode_vision(self, pixels: torch.Tensor) -> VisionFeatures:
        """Pixels to the vision half of pre-fusion's input. Does not depend on any text.

        Args:
            pixels: float `[F, parts, 3, H, W]`; parts = 1, or n * n pieces and then the whole.
        """
        frames, parts = pixels.shape[:2]
        features = self.vision_tower(pixels.flatten(0, 1)).unflatten(0, (frames, parts))
        return self.project_vision(features)

    def project_vision(self, features: torch.Tensor, seen: torch.Tensor | None = None) -> VisionFeatures:
        """CLIP features `[F, parts, N, mm_hidden_size]` to the vision half of pre-fusion's input.

        `seen`: bool `[P]`, the patches that the compressor sees; None: all.
        """
        whole = features[:, -1]
        if features.shape[1] == 1:
            compressed, _ = self.compressor(whole, seen=seen)
            return VisionFeatures(self.mm_projector(whole), self.mm_projector(compressed))
        raster = stitch(features[:, :-1], round(features.shape[2] ** 0.5))
        compressed, _ = self.compressor(raster, seen=None if seen is None else seen[: raster.shape[1]])
        patches = torch.cat([self.mm_projector(raster), self.mm_projector(whole)], dim=1)
        return VisionFeatures(patches, self.mm_projector(compressed))

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings `[..., hidden]`; an id below 0 takes that of id 0, as in the reference."""
        return self.embed_tokens(ids.clamp(min=0))

    def fuse(self, pixels: torch.Tensor, text: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame and one text each: frame tokens and fused text.

        Args:
            pixels: float `[F, parts, 3, H, W]`.
            text: `[F, S, hidden]`, raw embeddings.
            ids: int64 `[F, S]`; text at ids <= 0 is padding for pre-fusion and comes back raw.

        Returns:
            `[F, C * C, hidden]` and `[F, S, hidden]`.
        """
        vision = self.encode_vision(pixels).sequence()
        vision, fused = prefuse(self.prefusion_layers, self.rotary_emb, vision, text.to(vision.dtype), ids)
        return vision[:, -self.config.vision_tokens_per_frame :], fused

    def fuse_sample(self, pixels: torch.Tensor, ids: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """The LLM's input embeddings for one sample with at least one frame.

        The fused text of a video is the mean over its frames, summed in float32.

        Args:
            pixels: `[F, parts, 3, H, W]`.
            ids: int64 `[S]`; at most one placeholder.
            plain: bool `[S]`, positions kept out of pre-fusion (training targets).

        Returns:
            `[S - 1 + F * C * C, hidden]`, or `[S, hidden]` without a placeholder.
        """
        fusion_ids = ids.masked_fill(plain & (ids > 0), 0)
        raw = self.embed_text(ids)
        tokens: list[torch.Tensor] = []
        total = torch.zeros(ids.shape[0], self.config.hidden_size, device=ids.device)
        for frames in pixels.split(FRAMES_AT_ONCE):
            count = frames.shape[0]
            token, fused = self.fuse(frames, raw.expand(count, -1, -1), fusion_ids.expand(count, -1))
            tokens.append(token.flatten(0, 1))
            total = total + fused.float().sum(0)
        text = torch.where(is_padding(fusion_ids)[:, None], raw, (total / pixels.shape[0]).to(raw.dtype))
        places = (ids == IMAGE_TOKEN_ID).nonzero().flatten().tolist()
        if not places:
            return text
        if len(places) > 1:
            raise ValueError(f"a prompt takes one image placeholder, not {len(places)}")
        return torch.cat([text[: places[0]], *tokens, text[places[0] + 1 :]])


class LlavaMiniForConditionalGeneration(CheckpointMixin, LlamaForCausalLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """LLaVA-Mini with its language-model head; `generate` returns new tokens only."""

    config: LlavaMiniConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = LlavaMiniConfig

    def __init__(self, config: LlavaMiniConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LlavaMiniModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The number format that it computes in; weights may be held in others."""
        return self.model.dtype

    def prepare_embeddings(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor,
        frame_counts: torch.Tensor | None,
        labels: torch.Tensor | None,
        padding_side: str,
        embed: Embed | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Splices every sample's frames into its text and pads the batch with zero vectors.

        Shapes as in `forward`. `embed` stands in for `fuse_sample` (stage 1 of training).
        Returns embeddings `[B, S', hidden]`, mask bool `[B, S']`, labels `[B, S']`.
        """
        counts = [1] * input_ids.shape[0] if frame_counts is None else frame_counts.tolist()
        if sum(counts) != pixel_values.shape[0]:
            raise ValueError(f"frame_counts ask for {sum(counts)} frames, pixel_values has {pixel_values.shape[0]}")
        embeddings: list[torch.Tensor] = []
        targets: list[torch.Tensor] = []
        for index, frames in enumerate(pixel_values.to(self.dtype).split(counts)):
            keep = slice(None) if attention_mask is None else attention_mask[index].bool()
            ids = input_ids[index][keep]
            target = torch.full_like(ids, -100) if labels is None else labels[index][keep]
            if len(frames) == 0:
                embedding = self.model.embed_text(ids)
            else:
                embedding = (embed or self.model.fuse_sample)(frames, ids, target != -100)
            embeddings.append(embedding)
            targets.append(_spread_labels(ids, target, embedding.shape[0]))
        masks = [torch.ones(e.shape[0], dtype=torch.bool, device=e.device) for e in embeddings]
        pad = nn.utils.rnn.pad_sequence
        return (
            pad(embeddings, batch_first=True, padding_side=padding_side),
            pad(masks, batch_first=True, padding_side=padding_side),
            pad(targets, batch_first=True, padding_value=-100, padding_side=padding_side),
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  ids and pixels come together
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss when `labels` are given.

        Args:
            input_ids: int64 `[B, S]`, one `IMAGE_TOKEN_ID` where a sample's frames go.
            pixel_values: float `[F, parts, 3, H, W]`, the frames of all samples one after the other.
            frame_counts: int64 `[B]`, frames of each sample (0: text only); None: one each.
            attention_mask: `[B, S]`, nonzero at real tokens, padded on either side.
            labels: int64 `[B, S]`, -100 where there is no target; targets are not pre-fused.
            inputs_embeds: `[B, S', hidden]` in place of ids and pixels.

        Returns:
            Logits `[B, S', vocab]` over the spliced sequence, padded on `config.tokenizer_padding_side`.
        """
        if pixel_values is not None and inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds, attention_mask, spread = self.prepare_embeddings(
                input_ids, attention_mask, pixel_values, frame_counts, labels, self.config.tokenizer_padding_side
            )
            input_ids, labels = None, spread if labels is not None else None
        return super().forward(
            input_ids=cast(Any, input_ids),
            attention_mask=attention_mask,
            inputs_embeds=cast(Any, inputs_embeds),
            labels=cast(Any, labels),
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]  ids and pixels come together
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generation as in transformers, with frames; arguments as in `forward`. Greedy unless told otherwise.

        Returns:
            int64 `[B, new]`: new tokens only (or what `return_dict_in_generate` asks for).
        """
        kwargs.setdefault("do_sample", False)
        if pixel_values is None:
            embeddings = self.model.embed_text(input_ids)
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        else:
            embeddings, mask, _ = self.prepare_embeddings(
                input_ids, attention_mask, pixel_values, frame_counts, None, "left"
            )
        return cast(Any, super()).generate(inputs_embeds=embeddings, attention_mask=mask.long(), **kwargs)


def _spread_labels(ids: torch.Tensor, labels: torch.Tensor, length: int) -> torch.Tensor:
    """Labels `[S]` moved to the spliced sequence `[length]`; frames have no target."""
    place = (ids == IMAGE_TOKEN_ID).nonzero().flatten()
    if length == ids.shape[0] or len(place) == 0:
        return labels
    at = int(place[0])
    frames = labels.new_full((length - ids.shape[0] + 1,), -100)
    return torch.cat([labels[:at], frames, labels[at + 1 :]])
