"""Random views for the contrastive losses and the masked input, reproducible on any number of ranks.

Every random number is a hash of (seed, step, salt, entity, position), so an event, user or item gets the same view on
any rank and at any place in the batch.

Shape letters: R rows of L tokens, N sequences, E entities, F fields, V fields of all views, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from model.key_index import GOLDEN, mix64

INPUT_MASK, SEQUENCE_VIEW, ATTRIBUTE_VIEW, ITEM_VIEW, DROPOUT_VIEW = 1, 16, 32, 48, 64
"""Salts. A view adds its number (0 or 1)."""

_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = int(GOLDEN)


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


_FIRST_FACTOR = _signed(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = _signed(0x94D049BB133111EB)
_LOWEST = -(1 << 63)


def _shifted(x: Tensor, bits: int) -> Tensor:
    # int64 >> copies the sign bit; masking it gives the logical shift that the hash is defined by.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 on int64; products wrap as two's complement does."""
    x = (x ^ _shifted(x, 30)) * _FIRST_FACTOR
    x = (x ^ _shifted(x, 27)) * _SECOND_FACTOR
    return x ^ _shifted(x, 31)


def _mix64_of_int(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


@dataclass(frozen=True)
class RandomKey:
    """The part of the hashed key that all random numbers of one step share."""

    seed: int
    step: int

    def uniform(self, salt: int, entity: Tensor, position: Tensor) -> Tensor:
        """Numbers in [0, 1), float32, of the broadcast shape of two int64 tensors; 24 random bits each."""
        hashed = _mix64(self.hashed(salt, entity) + position * _signed(_GOLDEN))
        return _shifted(hashed, 40).to(torch.float32) * (1.0 / (1 << 24))

    def hashed(self, salt: int, entity: Tensor) -> Tensor:
        """The start of an entity's counter-based stream, int64 like `entity`."""
        base = _mix64_of_int(_mix64_of_int(_mix64_of_int(self.seed) + self.step * _GOLDEN) + salt * _GOLDEN)
        return _mix64(entity + _signed(base))

    def dropout_starts(self, salt: int, entity_E: Tensor, fields: int, dim: int) -> Tensor:
        """For `view_factors`: the start of each field's random numbers, int64 (E, F); a field has D of them."""
        first_F = torch.arange(fields) * dim
        return self.hashed(DROPOUT_VIEW + salt, entity_E).unsqueeze(1) + first_F * _signed(_GOLDEN)


def view_factors(start_V: Tensor, kept_V: Tensor, dim: int, ratio: float) -> Tensor:
    """Inverted dropout of fields that a view keeps or hides: kept · 1[u ≥ ratio] / (1 − ratio), float32 (V, D).

    The zeros are a function of entity and column: u is `RandomKey.uniform` of the entity at the columns of all its
    fields side by side.

    Args:
        start_V: int64, `dropout_starts`.
        kept_V: bool or float32, whether the view keeps the field.
        dim: columns of a field.
        ratio: the share to drop.
    """
    scale = 1.0 / (1.0 - ratio)
    threshold = int(np.ceil(np.float64(np.float32(ratio)) * (1 << 24))) << 40
    if start_V.device.type == "cpu":
        factors_VD = np.empty((start_V.shape[0], dim), np.float32)
        kept = kept_V.numpy().astype(np.float32) * np.float32(scale)
        _factors(factors_VD, start_V.numpy().view(np.uint64), kept, np.uint64(threshold))
        return torch.from_numpy(factors_VD)
    # Only the top 24 bits matter, and the last step of the hash does not change them.
    x = start_V.unsqueeze(1) + _column_hashes(dim, start_V.device)
    x = (x ^ _shifted(x, 30)) * _FIRST_FACTOR
    x = (x ^ _shifted(x, 27)) * _SECOND_FACTOR
    # int64 comparison is signed; flipping the sign bit makes it the unsigned one that is needed.
    return ((x ^ _LOWEST) >= threshold + _LOWEST) * (kept_V * scale).unsqueeze(1)


@lru_cache(maxsize=8)
def _column_hashes(dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(dim, device=device) * _signed(_GOLDEN)


@njit(cache=True, nogil=True)
def _factors(
    factors_VD: npt.NDArray[np.float32],
    start_V: npt.NDArray[np.uint64],
    kept_V: npt.NDArray[np.float32],
    threshold: np.uint64,
) -> None:
    for v in range(factors_VD.shape[0]):
        x = start_V[v]
        for d in range(factors_VD.shape[1]):
            factors_VD[v, d] = kept_V[v] if mix64(x) >= threshold else np.float32(0.0)
            x += GOLDEN


def masked_tokens(uniform_RL: Tensor, sequence_RL: Tensor, sequences: int, ratio: float) -> Tensor:
    """Which tokens to hide, bool (R, L): u < ratio, but the token with the largest u of each sequence always stays.

    Args:
        uniform_RL: float32, a random number for each token.
        sequence_RL: int64, the sequence of each token; -1 for padding, which is never hidden.
        sequences: how many there are.
        ratio: the share to hide.
    """
    valid_RL = sequence_RL >= 0
    of_token = sequence_RL.clamp_min(0).reshape(-1)
    largest_N = uniform_RL.new_full((max(sequences, 1),), -1.0)
    largest_N = largest_N.scatter_reduce(
        0, of_token, uniform_RL.masked_fill(~valid_RL, -1.0).reshape(-1), "amax"
    )
    return (uniform_RL < ratio) & (uniform_RL < largest_N[of_token].view_as(uniform_RL)) & valid_RL


def kept_fields(uniform_EF: Tensor, ratio: float) -> Tensor:
    """Which attributes a view keeps, bool (E, F): u ≥ ratio, and at least the one with the largest u."""
    kept_EF = uniform_EF >= ratio
    return kept_EF.scatter(1, uniform_EF.argmax(dim=1, keepdim=True), True)


def kept_item_fields(uniform_E: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Whether a view keeps the id and the categories, bool (E,): hidden with chance ratio/2, never both."""
    return uniform_E >= ratio / 2, (uniform_E < ratio / 2) | (uniform_E >= ratio)
