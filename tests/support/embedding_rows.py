"""The unsharded reference of the embedding tables.

Shape letters: U keys of a step, C rows of capacity, D columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.embedding import initial_rows
from model.key_index import KeyIndex

Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]


class EmbeddingRows:
    """All tables of one process in one matrix, with lazy Adam on the rows that a step touches.

    The single-process counterpart of the cluster's sharded tables.
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
