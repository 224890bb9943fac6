"""Compression of N patch features into C * C vision tokens (paper, section 4.2 and Table 8).

Knows nothing of CLIP, text or the language model.
"""

import torch
from torch import nn
from torch.nn import functional

from llava_mini_cli.model.configuration import LlavaMiniConfig


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """2-D sine-cosine position table of a `grid` x `grid` raster.

    The first half of the width encodes the column, the second the row; each half is [sin | cos] with
    frequencies 10000^(-i / (width / 4)).

    Returns:
        float32 `[grid * grid, width]`.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    angle = torch.arange(grid, dtype=torch.float32)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    column = line[None].expand(grid, -1, -1)
    row = line[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(grid * grid, width)


def resize_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """A square position table brought to another grid, bicubic in float32.

    Args:
        table: `[C * C, width]`.

    Returns:
        `[grid * grid, width]` in the table's dtype; the table itself when the grids agree.
    """
    side = round(table.shape[0] ** 0.5)
    if side == grid:
        return table
    raster = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    raster = functional.interpolate(raster, size=(grid, grid), mode="bicubic", align_corners=False)
    return raster.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(table.dtype)


class QueryCompressor(nn.Module):
    """C * C learned queries cross-attend to the patch features."""

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__()
        width = config.mm_hidden_size
        queries = config.compressor_size**2
        self.pos_embed = nn.Parameter(sincos_positions(config.compressor_size, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(queries, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.attn = nn.MultiheadAttention(width, config.compressor_num_heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width)
        self.ln_kv = nn.LayerNorm(width)

    def forward(
        self, features: torch.Tensor, need_weights: bool = False, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compresses a square raster of features.

        Args:
            features: `[B, N, width]`, N a square number.
            need_weights: return the attention map too.
            seen: bool `[N]`, the features that are attended to; None: all.

        Returns:
            `[B, C * C, width]` and, on demand, the head-averaged attention `[B, C * C, N]`.
        """
        positions = self.pos_embed.to(features.dtype)
        grid = round(features.shape[1] ** 0.5)
        values = self.ln_kv(features)
        keys = values + resize_positions(self.pos_embed, grid).to(features.dtype)
        queries = (self.ln_q(self.query) + positions).expand(features.shape[0], -1, -1)
        hidden = None if seen is None else ~seen.expand(len(features), -1)
        return self.attn(queries, keys, values, key_padding_mask=hidden, need_weights=need_weights)


class AveragePool(nn.Module):
    """C x C average pooling in place of the queries: the ablation of Table 8. Has no parameters."""

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__()
        self.size = config.compressor_size

    def forward(
        self, features: torch.Tensor, need_weights: bool = False, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `QueryCompressor.forward`; there is no attention to return. A cell in which nothing is seen is 0."""
        if seen is not None:
            share = self._pooled(seen[None, :, None].to(features.dtype))
            return self._pooled(features * seen[:, None]) / share.where(share > 0, 1), None
        return self._pooled(features), None

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        grid = round(features.shape[1] ** 0.5)
        raster = features.transpose(1, 2).reshape(features.shape[0], -1, grid, grid)
        return functional.adaptive_avg_pool2d(raster, self.size).flatten(2).transpose(1, 2)


def build_compressor(config: LlavaMiniConfig) -> QueryCompressor | AveragePool:
    """The compressor that the configuration asks for."""
    return QueryCompressor(config) if config.compressor_type == "query" else AveragePool(config)
