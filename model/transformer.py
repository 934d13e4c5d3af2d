"""The causal sequence encoder of the user tower, on prefix-packed sequences.

Shape letters: N sequences, R rows that hold them, L tokens of a row, D columns, H heads, W window, Q events.

A sequence holds a user's context and then the run's items. Every event in it reads the states before its own position,
so one pass encodes all of them. Positions are relative (a learned bias per head and distance): positions counted from
the end, which also measured well, would differ for every event of a sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.dropout import dropout
from model.token_rows import Reads, TokenRows, distances, inside


class RelativeBias(nn.Module):
    """Learned attention bias per head and distance 0..W-1; a token sees neither beyond W nor after itself."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.bias_HW = nn.Parameter(torch.zeros(heads, window))

    def forward(self, length: int) -> Tensor:
        """float32 (H, L, L), −inf where token i must not see token j of its own sequence; `length` is L."""
        distance_LL, outside_LL = distances(length, self.window, self.bias_HW.device)
        bias_HLL = F.embedding(distance_LL, self.bias_HW.T).permute(2, 0, 1)
        return bias_HLL.masked_fill(outside_LL, -torch.inf)


def attention(qkv_RLX: Tensor, bias_HLL: Tensor, apart_R1LL: Tensor | None) -> Tensor:
    """Scaled dot-product attention of H heads, float32 (R, L, D).

    Written out, because F.scaled_dot_product_attention with a learned bias also checks for rows that see no token
    (there are none here) and passes over the scores more often.

    Args:
        qkv_RLX: float32 (R, L, 3 D), queries, keys and values.
        bias_HLL: float32, −inf where token i must not see token j; every token sees itself.
        apart_R1LL: float32, see TokenRows; None where each row holds one sequence.
    """
    rows, length, width = qkv_RLX.shape
    heads = bias_HLL.shape[0]
    # One copy of all three; otherwise both products would copy each of them.
    qkv = qkv_RLX.view(rows, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).contiguous()
    query, key, value = qkv.unbind(0)
    scores_RHLL = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
    scores_RHLL += bias_HLL
    if apart_R1LL is not None:
        scores_RHLL += apart_R1LL
    mixed_RHLD = scores_RHLL.softmax(3) @ value
    mixed_RLD: Tensor = mixed_RHLD.transpose(1, 2).reshape(rows, length, width // 3)
    return mixed_RLD


class Block(nn.Module):
    """Pre-LN attention and feed-forward (GELU, 4 D), dropout on both outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.bias = RelativeBias(config.heads, config.history_length)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x_RLD: Tensor, apart_R1LL: Tensor | None) -> Tensor:
        """float32 (R, L, D) to the same shape; position t depends on its sequence's tokens t−W+1..t.

        Args:
            x_RLD: tokens.
            apart_R1LL: float32, see TokenRows.
        """
        x_RLD = x_RLD + self._drop(self._attend(self.attention_norm(x_RLD), apart_R1LL))
        hidden = self._drop(F.gelu(self.widen(self.feed_forward_norm(x_RLD))))
        return x_RLD + self._drop(self.narrow(hidden))

    def _attend(self, x_RLD: Tensor, apart_R1LL: Tensor | None) -> Tensor:
        bias_HLL = self.bias(x_RLD.shape[1])
        out: Tensor = self.to_out(attention(self.to_qkv(x_RLD), bias_HLL, apart_R1LL))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class SequenceEncoder(nn.Module):
    """Tokens to states: LayerNorm, blocks, LayerNorm. Padding, to the right, is unseen by causality."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.input_norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.output_norm = nn.LayerNorm(config.dim)

    def forward(self, token_RLD: Tensor, rows: TokenRows) -> Tensor:
        """Embedded tokens float32 (R, L, D), laid out as in `rows`, to states (R, L, D)."""
        state_RLD = dropout(self.input_norm(token_RLD), self.dropout, self.training)
        for block in self.blocks:
            state_RLD = block(state_RLD, rows.apart_R1LL)
        out: Tensor = self.output_norm(state_RLD)
        return out


def mean_and_last(state_RLD: Tensor, rows: TokenRows, reads: Reads, window: int) -> Tensor:
    """The summary of each event's history: the mean of the last W states ⊕ the last state, float32 (Q, 2 D).

    Args:
        state_RLD: float32; a state depends on its sequence's tokens up to its own.
        rows: the packed sequences.
        reads: of the events, with the same window; an event without history reads zeros.
        window: W.
    """
    _, length, dim = state_RLD.shape
    inside_LL = inside(length, window, state_RLD.device).to(state_RLD.dtype)
    within = inside_LL.masked_fill(rows.strange_RLL, 0.0) if rows.shared else inside_LL
    both = torch.cat([within @ state_RLD, state_RLD], dim=2).view(-1, 2 * dim)
    read_Q2D = F.embedding(reads.place_Q, both).view(-1, 2, dim)
    return (read_Q2D * reads.share_Q2.unsqueeze(2)).flatten(1)


def last_states(state_RLD: Tensor, reads: Reads) -> Tensor:
    """The state of the token before each event, float32 (Q, D); zero for an event without history."""
    flat = state_RLD.reshape(-1, state_RLD.shape[2])
    return F.embedding(reads.place_Q, flat) * reads.share_Q2[:, 1:]
