"""Optimizers that touch only the rows of a step, on the device where the rows lie.

Shape letters: R rows in the table, U touched rows (each once), D columns.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor


class RowOptimizer(Protocol):
    """Updates touched rows in place and owns one tensor per kind of state, with one entry per row."""

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name to (trailing shape, dtype) of the state that each row carries."""
        ...

    def update(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """One step on the rows `index_U` (no duplicates)."""
        ...


class RowAdam:
    """Adam on touched rows; bias correction counts each row's own updates (lazy Adam).

    A row that is seldom touched so gets full-sized early steps, as if it had been trained alone.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """First and second moment per element, updates per row."""
        return {
            "first_moment": ((dim,), torch.float32),
            "second_moment": ((dim,), torch.float32),
            "updates": ((), torch.int32),
        }

    def update(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """m ← β1 m + (1−β1) g;  v ← β2 v + (1−β2) g²;  w ← w − lr m̂ / (√v̂ + ε)."""
        updates_U = state["updates"].index_select(0, index_U) + 1
        first_UD = state["first_moment"].index_select(0, index_U).lerp_(grad_UD, 1 - self.beta1)
        second_UD = state["second_moment"].index_select(0, index_U).mul_(self.beta2)
        second_UD.addcmul_(grad_UD, grad_UD, value=1 - self.beta2)
        state["updates"].index_copy_(0, index_U, updates_U)
        state["first_moment"].index_copy_(0, index_U, first_UD)
        state["second_moment"].index_copy_(0, index_U, second_UD)
        exponent_U1 = updates_U.to(torch.float32).unsqueeze(1)
        first_UD /= 1 - self.beta1**exponent_U1
        second_UD /= 1 - self.beta2**exponent_U1
        step_UD = first_UD.div_(second_UD.sqrt_().add_(self.eps))
        values_RD.index_add_(0, index_U, step_UD, alpha=-lr)


class RowAdagrad:
    """Row-wise Adagrad: one accumulator per row, the mean square of its gradients (4 bytes of state)."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The sum over steps of the row's mean squared gradient."""
        return {"accumulator": ((), torch.float32)}

    def update(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """a ← a + mean(g²);  w ← w − lr g / (√a + ε)."""
        total_U = state["accumulator"].index_select(0, index_U) + grad_UD.square().mean(dim=1)
        state["accumulator"].index_copy_(0, index_U, total_U)
        values_RD.index_add_(0, index_U, grad_UD / (total_U.sqrt() + self.eps).unsqueeze(1), alpha=-lr)


def row_optimizer(name: Literal["adam", "adagrad"]) -> RowOptimizer:
    """The optimizer of `train.row_optimizer`."""
    return RowAdam() if name == "adam" else RowAdagrad()
