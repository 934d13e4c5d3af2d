"""The initial value of a row of an embedding table.

Shape letters: U keys, D columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from model.arrays import Float32Array, Int16Array, Int64Array
from model.key_index import GOLDEN, hash_keys, mix64

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
    """Initial rows, float32 (U, D): normal(0, std), a function of (seed, table, id) alone.

    A row's initial value does not depend on its rank or its time of creation, so a table is the same for any number of
    ranks.

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
        list(pool.map(fill, starts))  # list: raises a thread's exception
    return rows
