"""The causal sequence encoder of the user tower, on prefix-packed rows.

Shape letters: N packed rows, L tokens of the longest, D columns, H heads, W window, E events.

A row holds a user's context and then the run's items; every event in it reads the states before its own
position, so one pass encodes all of them. Positions are relative (a learned bias per head and distance):
a token's distance from the end, which MODEL.md measured, would differ for every event of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class RelativeBias(nn.Module):
    """Learned attention bias per head and distance 0..W-1; no token sees beyond W or after itself."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.bias_HW = nn.Parameter(torch.zeros(heads, window))

    def forward(self, length: int) -> Tensor:
        """float32 (H, L, L), −inf where token i must not see token j."""
        at_L = torch.arange(length, device=self.bias_HW.device)
        distance_LL = at_L.unsqueeze(1) - at_L.unsqueeze(0)
        hidden_LL = (distance_LL < 0) | (distance_LL >= self.window)
        bias_HLL = self.bias_HW[:, distance_LL.clamp(0, self.window - 1)]
        return bias_HLL.masked_fill(hidden_LL, -torch.inf)


class Block(nn.Module):
    """Pre-LN attention and feed-forward (GELU, 4 D), dropout on both outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.bias = RelativeBias(config.heads, config.history_length)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """float32 (N, L, D) to the same shape; position t depends on tokens t−W+1..t of the block's input."""
        x_NLD = x_NLD + self._drop(self._attend(self.attention_norm(x_NLD)))
        hidden = self._drop(F.gelu(self.widen(self.feed_forward_norm(x_NLD))))
        return x_NLD + self._drop(self.narrow(hidden))

    def _attend(self, x_NLD: Tensor) -> Tensor:
        rows, length, dim = x_NLD.shape
        qkv = self.to_qkv(x_NLD).view(rows, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_NHLD = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias(length))
        out: Tensor = self.to_out(mixed_NHLD.transpose(1, 2).reshape(rows, length, dim))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class SequenceEncoder(nn.Module):
    """Tokens to states: LayerNorm, blocks, LayerNorm. Padding, to the right, is unseen by causality."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.input_norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.output_norm = nn.LayerNorm(config.dim)

    def forward(self, token_NLD: Tensor) -> Tensor:
        """float32 (N, L, D) to states (N, L, D)."""
        state_NLD = F.dropout(self.input_norm(token_NLD), self.dropout, self.training)
        for block in self.blocks:
            state_NLD = block(state_NLD)
        out: Tensor = self.output_norm(state_NLD)
        return out


def last_and_mean(
    state_NLD: Tensor, sequence_E: Tensor, position_E: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """What an event with `position_E` tokens of history reads: the last state and the mean of the last W.

    Args:
        state_NLD: float32; state t has seen tokens up to t.
        sequence_E: int64, row of each event.
        position_E: int64, tokens before it; 0 gives zero vectors.
        window: W.
    Returns:
        last and mean, float32 (E, D) each.
    """
    _, length, dim = state_NLD.shape
    at_E = sequence_E * length + position_E
    seen_E1 = (position_E > 0).unsqueeze(1)
    last_ED = state_NLD.reshape(-1, dim)[(at_E - 1).clamp_min(0)] * seen_E1
    # sums_t = states before t, so that a window is one difference; a leading zero column per row.
    sums = F.pad(state_NLD.cumsum(1), (0, 0, 1, 0)).view(-1, dim)
    start_E = (position_E - window).clamp_min(0)
    row_E = sequence_E * (length + 1)
    total_ED = sums[row_E + position_E] - sums[row_E + start_E]
    return last_ED, total_ED / (position_E - start_E).clamp_min(1).unsqueeze(1)
