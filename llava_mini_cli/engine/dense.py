"""The dense parts of a Llama layer, on both sides of attention, and their compiled form.

Attention itself is never compiled: its shapes change with every row that comes or goes. Knows nothing of caches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [B, L, d]
Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def project(layer: LlamaDecoderLayer, normed: torch.Tensor, rotary: Rotary) -> Projected:
    """Rotated queries and keys, and values: `[B, L, hidden]` to `[B, heads, L, d]` each."""
    attention = layer.self_attn
    queries, keys, values = (
        linear(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
    return queries, keys, values


def finish(layer: LlamaDecoderLayer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residuals and MLP of a layer: both `[..., hidden]`, and so is the result."""
    hidden = hidden + layer.self_attn.o_proj(attended)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@dataclass(frozen=True)
class Dense:
    """The two functions, as they are or compiled."""

    project: Callable[[LlamaDecoderLayer, torch.Tensor, Rotary], Projected]
    finish: Callable[[LlamaDecoderLayer, torch.Tensor, torch.Tensor], torch.Tensor]


EAGER = Dense(project, finish)


@torch.inference_mode()
def compile_dense(model: LlavaMiniForConditionalGeneration) -> Dense:
    """Compiles both for any number of rows, and tries them once, so that a compiler that is missing is told here.

    Raises:
        UsageError: torch.compile does not work on this machine.
    """
    from torch._dynamo.exc import TorchDynamoException  # heavy, and only wanted here

    compiled = Dense(torch.compile(project, dynamic=True), torch.compile(finish, dynamic=True))
    layer = cast(LlamaDecoderLayer, model.model.layers[0])
    hidden = torch.zeros(3, 1, model.config.hidden_size, dtype=model.dtype, device=model.device)
    rotary = model.model.rotary_emb(hidden, torch.zeros(3, 1, dtype=torch.int64, device=model.device))
    try:
        compiled.project(layer, hidden, rotary)
        compiled.finish(layer, hidden[:, 0], hidden[:, 0])
    except (TorchDynamoException, RuntimeError) as error:
        raise UsageError(f"--compile: torch.compile failed ({str(error).splitlines()[0]})") from error
    return compiled
