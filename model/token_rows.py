"""Packs many sequences into few rows; sequences that share a row do not see each other.

Shape letters: N sequences, T tokens of all of them, R rows, L tokens of a row.

Histories differ in length by a factor of fifty. With a row for each, most of the towers' work would be padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from model.arrays import Int64Array
from model.transfer import to_device

_ROW_TOKENS = 64
"""Minimum row length, if there are enough tokens to fill a row; short sequences then share rows."""


@dataclass(frozen=True)
class TokenRows:
    """N sequences in R rows."""

    token_RL: Tensor
    """int64; 0 = padding, to the right of a row's sequences."""
    sequence_RL: Tensor
    """int64, which sequence a token belongs to; -1 for padding."""
    within_RL: Tensor
    """int64, position of a token in its sequence; 0 for padding."""
    start_N: Tensor
    """int64, flat index (row · L + column) of a sequence's first token."""
    length_N: Tensor
    """int64, tokens of each sequence; may be 0."""

    @property
    def shared(self) -> bool:
        """Whether any row holds more than one sequence."""
        return self.token_RL.shape[0] < self.length_N.shape[0]

    @cached_property
    def strange_RLL(self) -> Tensor:
        """bool, which pairs of a row's tokens belong to different sequences."""
        return self.sequence_RL.unsqueeze(2) != self.sequence_RL.unsqueeze(1)

    @cached_property
    def apart_R1LL(self) -> Tensor | None:
        """The mask that separates a row's sequences, for all views and members: −inf between two sequences, else 0.

        float32; None where each row holds one sequence.
        """
        if not self.shared:
            return None
        strange_R1LL = self.strange_RLL.unsqueeze(1)
        return torch.zeros(strange_R1LL.shape, device=strange_R1LL.device).masked_fill_(
            strange_R1LL, -torch.inf
        )

    def to(self, device: torch.device | str) -> TokenRows:
        """The same on a device."""
        return to_device(self, device)


@dataclass(frozen=True)
class Reads:
    """Where Q events read the summary of the tokens before them."""

    place_Q: Tensor
    """int64, flat index of the last token before each event; 0 for an event without history."""
    share_Q2: Tensor
    """float32, factors of the window's sum (1 / its tokens) and of the last state (1); zeros without history."""


def reads_at(rows: TokenRows, sequence_Q: Tensor, position_Q: Tensor, window: int) -> Reads:
    """The reads of events at given positions of sequences.

    Args:
        rows: the packed sequences.
        sequence_Q: int64, sequence of each event.
        position_Q: int64, number of tokens before it.
        window: W, number of those that are read at most.
    """
    some_Q = (position_Q > 0).to(torch.float32)
    mean_Q = some_Q / position_Q.clamp(1, window)
    place_Q = (rows.start_N[sequence_Q] + position_Q - 1).clamp_min(0)
    return Reads(place_Q, torch.stack([mean_Q, some_Q], dim=1))


def stacked(parts: Sequence[TokenRows]) -> TokenRows:
    """Concatenate packed rows of one width; sequences are numbered consecutively."""
    width = parts[0].token_RL.shape[1]
    sequences = rows = 0
    sequence_RL, start_N = [], []
    for part in parts:
        sequence_RL.append(torch.where(part.sequence_RL < 0, -1, part.sequence_RL + sequences))
        start_N.append(part.start_N + rows * width)
        sequences, rows = sequences + part.length_N.shape[0], rows + part.token_RL.shape[0]
    return TokenRows(
        torch.cat([part.token_RL for part in parts]),
        torch.cat(sequence_RL),
        torch.cat([part.within_RL for part in parts]),
        torch.cat(start_N),
        torch.cat([part.length_N for part in parts]),
    )


def distances(length: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far token j of a row is before token i, for rows of a given length.

    Returns:
        The distance, int64 (L, L), clipped to 0..W−1, and where it was outside of that range, bool (L, L).
    """
    distance_LL, outside_LL, _ = _constants(-(-length // _ROW_TOKENS), window, device)
    return distance_LL[:length, :length], outside_LL[:length, :length]


def inside(length: int, window: int, device: torch.device) -> Tensor:
    """1 where token j of a row is among the last W tokens up to token i, else 0; float32 (L, L)."""
    return _constants(-(-length // _ROW_TOKENS), window, device)[2][:length, :length]


@lru_cache(maxsize=32)
def _constants(blocks: int, window: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Constants for rows of up to `blocks` blocks of 64 tokens; computed once and read in every step."""
    with torch.inference_mode(False):
        at_L = torch.arange(blocks * _ROW_TOKENS, device=device)
        distance_LL = at_L.unsqueeze(1) - at_L.unsqueeze(0)
        outside_LL = (distance_LL < 0) | (distance_LL >= window)
        return distance_LL.clamp_(0, window - 1), outside_LL, (~outside_LL).to(torch.float32)


def row_width(length_N: Int64Array) -> int:
    """The length of rows for these sequences."""
    return max(int(length_N.max(initial=0)), min(_ROW_TOKENS, int(length_N.sum())), 1)


def pack(token_T: Int64Array, length_N: Int64Array, width: int = 0) -> TokenRows:
    """Pack sequences, longest first, into rows as long as the longest one (or 64); each goes where it fits best.

    Args:
        token_T: int64, the sequences' tokens one after another.
        length_N: int64, tokens of each.
        width: minimum row length.
    """
    total, width = int(length_N.sum()), max(row_width(length_N), width)
    order_N = np.argsort(-length_N, kind="stable")
    start_N, rows = _places(length_N, order_N, width)
    shape = (rows, width)
    row_T = np.repeat(np.arange(length_N.shape[0]), length_N)
    within_T = np.arange(total) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    at_T = start_N[row_T] + within_T
    token_RL, sequence_RL, within_RL = (
        np.zeros(shape, np.int64),
        np.full(shape, -1),
        np.zeros(shape, np.int64),
    )
    token_RL.reshape(-1)[at_T] = token_T
    sequence_RL.reshape(-1)[at_T] = row_T
    within_RL.reshape(-1)[at_T] = within_T
    arrays = (token_RL, sequence_RL, within_RL, start_N, np.ascontiguousarray(length_N))
    return TokenRows(*(torch.from_numpy(array) for array in arrays))


@njit(cache=True, nogil=True)
def _places(length_N: Int64Array, order_N: Int64Array, width: int) -> tuple[Int64Array, int]:
    """Flat index of each sequence, and the number of rows; a sequence goes into the row with the least room for it."""
    start_N = np.zeros(length_N.shape[0], np.int64)
    # Rows by the room that is left in them: the newest one, and for each row the one before it.
    newest = np.full(width + 1, -1, np.int64)
    before_R = np.full(length_N.shape[0], -1, np.int64)
    rows = 0
    for n in order_N:
        length = length_N[n]
        if length == 0:
            continue
        room = length
        while room < width and newest[room] < 0:
            room += 1
        row = newest[room]
        if row < 0:
            row = rows
            rows += 1
        else:
            newest[room] = before_R[row]
        start_N[n] = row * width + width - room
        left = room - length
        if left:
            before_R[row] = newest[left]
            newest[left] = row
    return start_N, rows
