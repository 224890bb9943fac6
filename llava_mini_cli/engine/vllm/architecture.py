"""The language model of a LLaVA-Mini checkpoint for vLLM: its own Llama, filled from the files as they lie there."""

from collections.abc import Iterable

import torch
from vllm.model_executor.models.llama import LlamaForCausalLM  # pyright: ignore[reportMissingModuleSource]

_ELSEWHERE = ("model.vision_tower.", "model.compressor.", "model.mm_projector.", "model.prefusion_layers.")


class LlavaMiniLanguageModel(LlamaForCausalLM):
    """vLLM's Llama without what turns frames into tokens."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Takes the language model's tensors, by their names, and passes over the others."""
        return super().load_weights(pair for pair in weights if not pair[0].startswith(_ELSEWHERE))
