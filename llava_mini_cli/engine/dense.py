"""A Llama layer in parts: the dense ones on both sides of attention, their compiled form, and causal attention.

Pre-fusion and the language model share them. Attention itself is never compiled: its shapes change with every answer
that begins or ends. Knows nothing of caches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, rotate_half

from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration

NOT_COMPILED = "--compile: not together with --quantize on a CPU, whose products torch.compile does not know"
MASKED_QUERIES = 128  # queries that go through attention at once where a mask is needed

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [B, L, d]
Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def project(layer: LlamaDecoderLayer, normed: torch.Tensor, rotary: Rotary, first_query: int = 0) -> Projected:
    """Rotated queries and keys, and values: `[B, L, hidden]` to `[B, heads, L, d]` each.

    Positions before `first_query` give keys and values only.
    """
    attention = layer.self_attn
    cos, sin = (part[:, None] for part in rotary)

    def heads(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        return linear(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    def rotated(states: torch.Tensor, first: int) -> torch.Tensor:
        return states * cos[:, :, first:] + rotate_half(states) * sin[:, :, first:]

    queries = rotated(heads(attention.q_proj, normed[:, first_query:]), first_query)
    return queries, rotated(heads(attention.k_proj, normed), 0), heads(attention.v_proj, normed)


def finish(layer: LlamaDecoderLayer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residuals and MLP of a layer: both `[..., hidden]`, and so is the result."""
    hidden = layer.self_attn.o_proj(attended).add_(hidden)
    return _mlp(layer.mlp, layer.post_attention_layernorm(hidden)).add_(hidden)


def _mlp(mlp: LlamaMLP, normed: torch.Tensor) -> torch.Tensor:
    """The layer's MLP, its elementwise part in place where it is SiLU: a tenth of pre-fusion's time on a CPU."""
    if mlp.config.hidden_act != "silu":
        return mlp(normed)
    return mlp.down_proj(functional.silu(mlp.gate_proj(normed), inplace=True).mul_(mlp.up_proj(normed)))


def attend_causally(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last queries of a sequence, in blocks, so that no mask grows large.

    Args:
        queries: `[B, heads, L, d]`, those of the last L positions.
        keys, values: `[B, kv heads, P, d]`, of all positions.
    """
    start = keys.shape[2] - queries.shape[2]
    if start == 0:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    out: list[torch.Tensor] = []
    for block in queries.split(MASKED_QUERIES, dim=2):
        stop = start + block.shape[2]
        mask = torch.ones(block.shape[2], stop, dtype=torch.bool, device=block.device).tril(start)
        seen = keys[:, :, :stop], values[:, :, :stop]
        out.append(functional.scaled_dot_product_attention(block, *seen, attn_mask=mask, enable_gqa=True))
        start = stop
    return torch.cat(out, dim=2)


@dataclass(frozen=True)
class Dense:
    """The two functions, as they are or compiled."""

    project: Callable[[LlamaDecoderLayer, torch.Tensor, Rotary], Projected]
    finish: Callable[[LlamaDecoderLayer, torch.Tensor, torch.Tensor], torch.Tensor]


EAGER = Dense(project, finish)


@torch.inference_mode()
def compile_dense(model: LlavaMiniForConditionalGeneration) -> Dense:
    """Both functions compiled for any batch, and tried once, so that a compiler that is missing is told here.

    Raises:
        UsageError: torch.compile does not work on this machine, or not with packed layers.
    """
    if any(hasattr(layer, "packed") for layer in model.modules()):
        raise UsageError(NOT_COMPILED)
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
