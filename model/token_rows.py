"""Many sequences in few rows: several stand behind one another in a row and do not see each other.

Shape letters: N sequences, T tokens of all of them, R rows, L tokens of a row.

Histories differ in length by a factor of fifty; a row for each would be padding for the most part, and the towers
would compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from model.transfer import to_device

Int64Array = npt.NDArray[np.int64]

_ROW_TOKENS = 64
"""Rows are at least so long, if there is enough to fill one: short sequences then share them."""


@dataclass(frozen=True)
class TokenRows:
    """N sequences in R rows."""

    token_RL: Tensor
    """int64; 0 = padding, to the right of a row's sequences."""
    sequence_RL: Tensor
    """int64, which sequence a token belongs to; -1 for padding."""
    within_RL: Tensor
    """int64, place of a token in its sequence; 0 for padding."""
    start_N: Tensor
    """int64, flat place (row · L + column) of a sequence's first token."""
    length_N: Tensor
    """int64, tokens of each sequence; may be 0."""

    @property
    def shared(self) -> bool:
        """Whether any row holds more than one sequence."""
        return self.token_RL.shape[0] < self.length_N.shape[0]

    @cached_property
    def strange_RLL(self) -> Tensor:
        """bool, which pairs of a row's tokens are not of one sequence."""
        return self.sequence_RL.unsqueeze(2) != self.sequence_RL.unsqueeze(1)

    @cached_property
    def apart_R1LL(self) -> Tensor | None:
        """What keeps a row's sequences from seeing one another, for all views and members: −inf between two, else 0.

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


def pack(token_T: Int64Array, length_N: Int64Array) -> TokenRows:
    """Sequences, longest first, into rows as long as the longest one (or 64), each row filled before the next.

    Args:
        token_T: int64, the sequences' tokens one after another.
        length_N: int64, tokens of each.
    """
    total, longest = int(length_N.sum()), int(length_N.max(initial=0))
    width = max(longest, min(_ROW_TOKENS, total), 1)
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
    """Flat place of each sequence, and how many rows they fill; each goes into the last row if it fits there."""
    start_N = np.zeros(length_N.shape[0], np.int64)
    rows, used = 0, width
    for n in order_N:
        if length_N[n] == 0:
            continue
        if used + length_N[n] > width:
            rows += 1
            used = 0
        start_N[n] = (rows - 1) * width + used
        used += length_N[n]
    return start_N, rows
