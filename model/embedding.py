"""The unsharded reference of the embedding tables, and the initial value of a row for every kind of table.

Shape letters: U keys of a step, C rows there is room for, D columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from model.key_index import GOLDEN, KeyIndex, hash_keys, mix64

Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


_ROWS_OF_A_THREAD = 2048


@njit(cache=True, nogil=True)
def _fill_normal(out: Float32Array, hashes_U: npt.NDArray[np.uint64], seed: np.uint64, std: float) -> None:
    """Box–Muller on the counter-based stream mix(hash of the key + counter), two normals a draw."""
    dim = out.shape[1]
    for k in range(hashes_U.shape[0]):
        state = mix64(hashes_U[k] + seed * GOLDEN)
        for pair in range((dim + 1) // 2):
            state += GOLDEN
            bits = mix64(state)
            # (0, 1] for the logarithm, [0, 1) for the angle: 32 bits each.
            radius_bits = np.float64(bits >> np.uint64(32)) + 1.0
            angle_bits = np.float64(bits & np.uint64(0xFFFFFFFF))
            radius = std * np.sqrt(-2.0 * np.log(radius_bits / 4294967296.0))
            angle = 2.0 * np.pi * angle_bits / 4294967296.0
            out[k, 2 * pair] = radius * np.cos(angle)
            if 2 * pair + 1 < dim:
                out[k, 2 * pair + 1] = radius * np.sin(angle)


def initial_rows(tables: Int16Array, ids: Int64Array, dim: int, seed: int, std: float = 0.02) -> Float32Array:
    """What rows start from, float32 (U, D): normal(0, std), a function of (seed, table, id) alone.

    Neither the rank that owns a row nor the moment it is made changes its value, so a table looks the same
    for any number of ranks.

    Args:
        tables: int16 (U,).
        ids: int64 (U,).
        dim: columns.
        seed: any integer.
        std: standard deviation of each number.
    """
    masked_seed = np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)
    hashes_U = hash_keys(np.ascontiguousarray(tables), np.ascontiguousarray(ids))
    rows = np.empty((hashes_U.shape[0], dim), np.float32)
    starts = range(0, hashes_U.shape[0], _ROWS_OF_A_THREAD)
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        _fill_normal(rows, hashes_U, masked_seed, std)
        return rows

    def fill(start: int) -> None:
        end = start + _ROWS_OF_A_THREAD
        _fill_normal(rows[start:end], hashes_U[start:end], masked_seed, std)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, starts))  # raises what a thread raised
    return rows


class EmbeddingRows:
    """All tables of one process in one matrix, with lazy Adam on the rows that a step touches.

    The single-process counterpart of the cluster's sharded tables, for tests, benchmarks and evaluation.
    """

    def __init__(
        self, dim: int, *, seed: int, std: float = 0.02, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.dim = dim
        self.seed = seed
        self.std = std
        self.betas = betas
        self.index = KeyIndex()
        self.values_CD = torch.empty(0, dim)
        self.first_moment_CD = torch.empty(0, dim)
        self.second_moment_CD = torch.empty(0, dim)
        self.updates_C = torch.empty(0, dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.index)

    def lookup(self, tables: Int16Array, ids: Int64Array) -> tuple[Tensor, Tensor]:
        """Rows of unique keys: (rows_UD float32 (1 + U, D) with a zero row first, index int64 (U,))."""
        before = len(self.index)
        index_U = torch.from_numpy(self.index.add(tables, ids))
        self._grow(before)
        rows_UD = torch.zeros(1 + ids.shape[0], self.dim)
        rows_UD[1:] = self.values_CD.index_select(0, index_U)
        return rows_UD.requires_grad_(), index_U

    def apply_gradients(self, index_U: Tensor, gradient_UD: Tensor, learning_rate: float) -> None:
        """One lazy Adam step: w ← w − lr m̂ / (√v̂ + ε), bias-corrected by each row's own number of updates.

        Args:
            index_U: what `lookup` returned.
            gradient_UD: `rows_UD.grad`, float32 (1 + U, D); its row 0 is ignored.
            learning_rate: of this step.
        """
        beta1, beta2 = self.betas
        gradient = gradient_UD[1:]
        updates_U = self.updates_C[index_U] + 1
        first = torch.lerp(self.first_moment_CD[index_U], gradient, 1 - beta1)
        second = torch.lerp(self.second_moment_CD[index_U], gradient.square(), 1 - beta2)
        self.updates_C[index_U], self.first_moment_CD[index_U] = updates_U, first
        self.second_moment_CD[index_U] = second
        exponent_U1 = updates_U.to(torch.float32).unsqueeze(1)
        denominator = (second / (1 - beta2**exponent_U1)).sqrt_().add_(1e-8)
        self.values_CD[index_U] -= learning_rate * first / (1 - beta1**exponent_U1) / denominator

    def _grow(self, before: int) -> None:
        size = len(self.index)
        if size == before:
            return
        tables, ids = self.index.keys()
        fresh = torch.from_numpy(
            initial_rows(tables[before:size], ids[before:size], self.dim, self.seed, self.std)
        )
        zeros = torch.zeros_like(fresh)
        self.values_CD = torch.cat([self.values_CD, fresh])
        self.first_moment_CD = torch.cat([self.first_moment_CD, zeros])
        self.second_moment_CD = torch.cat([self.second_moment_CD, zeros])
        self.updates_C = torch.cat([self.updates_C, torch.zeros(size - before, dtype=torch.int32)])
