"""A Llama layer in parts: the dense ones on both sides of attention, and their compiled form.

Pre-fusion and the language model share them. Attention itself is never compiled: its shapes change with every answer
that begins or ends. Knows nothing of caches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration

NOT_COMPILED = "--compile: not together with --quantize on a CPU, whose products torch.compile does not know"

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [B, L, d]
Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def project(layer: LlamaDecoderLayer, normed: torch.Tensor, rotary: Rotary, first_query: int = 0) -> Projected:
    """Rotated queries and keys, and values: `[B, L, hidden]` to `[B, heads, L, d]` each.

    Positions before `first_query` give keys and values only.
    """
    attention = layer.self_attn

    def heads(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        return linear(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    queries = rotated(heads(attention.q_proj, normed[:, first_query:]), rotary, first_query)
    return queries, rotated(heads(attention.k_proj, normed), rotary), heads(attention.v_proj, normed)


def rotated(states: torch.Tensor, rotary: Rotary, first: int = 0) -> torch.Tensor:
    """Queries or keys `[B, heads, L, d]`, rotated; the rotary's positions before `first` are left out."""
    cos, sin = (part[:, None, first:] for part in rotary)
    half = states.shape[-1] // 2
    out = states * cos
    out[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return out


def normalised(norm: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """A layer's norm of `[..., hidden]` in one kernel."""
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def finish(layer: LlamaDecoderLayer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residuals and MLP of a layer: both `[..., hidden]`, and so is the result."""
    hidden = layer.self_attn.o_proj(attended).add_(hidden)
    return _mlp(layer.mlp, normalised(layer.post_attention_layernorm, hidden)).add_(hidden)


def _mlp(mlp: LlamaMLP, normed: torch.Tensor) -> torch.Tensor:
    """The layer's MLP, its elementwise part in place where it is SiLU: a tenth of pre-fusion's time on a CPU."""
    if mlp.config.hidden_act != "silu":
        return mlp(normed)
    return mlp.down_proj(functional.silu(mlp.gate_proj(normed), inplace=True).mul_(mlp.up_proj(normed)))


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
