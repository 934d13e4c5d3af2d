"""Optimizers that touch only the rows of a step: fused compiled loops on a CPU, torch operations on a GPU.

Shape letters: R rows in the table, U touched rows (each once), G rows of gradients, D columns.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from streaming.arrays import Float32Array, Int64Array

_CORRECTIONS = 1 << 15
"""Updates after which a bias correction is 1 in float32, for any sensible beta."""


class RowOptimizer:
    """Updates touched rows in place; has one tensor per kind of state, with one entry per row."""

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """(trailing shape, dtype) of each row's state, by name."""
        raise NotImplementedError

    def update(
        self,
        values_RD: Tensor,
        state: dict[str, Tensor],
        index_U: Tensor,
        grad_GD: Tensor,
        lr: float,
        at_U: Tensor | None = None,
    ) -> None:
        """One step on the distinct rows `index_U`; row u has the gradient `grad_GD[at_U[u]]`, or `grad_GD[u]`."""
        if values_RD.device.type != "cpu":
            grad_UD = grad_GD if at_U is None else grad_GD.index_select(0, at_U)
            self.update_with_torch(values_RD, state, index_U, grad_UD, lr)
            return
        self._update_on_cpu(
            values_RD.numpy(),
            {name: tensor.numpy() for name, tensor in state.items()},
            index_U.numpy(),
            grad_GD.contiguous().numpy(),
            np.arange(index_U.shape[0]) if at_U is None else at_U.numpy(),
            lr,
        )

    def update_with_torch(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """The same on any device, with one gradient per row; the reference for the compiled loop."""
        raise NotImplementedError

    def _update_on_cpu(
        self,
        values_RD: Float32Array,
        state: dict[str, Any],
        index_U: Int64Array,
        grad_GD: Float32Array,
        at_U: Int64Array,
        lr: float,
    ) -> None:
        raise NotImplementedError


class RowAdam(RowOptimizer):
    """Adam on touched rows; bias correction counts each row's own updates (lazy Adam).

    So a rarely touched row gets full-sized early steps, as if it had been trained alone.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        counts = np.arange(_CORRECTIONS, dtype=np.float64)
        # β ** t from a table, because a power per row would cost more than the row's update.
        self._correction1 = (1 - beta1**counts).astype(np.float32)
        self._correction2 = (1 - beta2**counts).astype(np.float32)
        self._inverses: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """First and second moment per element, updates per row."""
        return {
            "first_moment": ((dim,), torch.float32),
            "second_moment": ((dim,), torch.float32),
            "updates": ((), torch.int32),
        }

    def _update_on_cpu(
        self,
        values_RD: Float32Array,
        state: dict[str, Any],
        index_U: Int64Array,
        grad_GD: Float32Array,
        at_U: Int64Array,
        lr: float,
    ) -> None:
        """m ← β1 m + (1−β1) g;  v ← β2 v + (1−β2) g²;  w ← w − lr m̂ / (√v̂ + ε)."""
        _adam(
            values_RD,
            state["first_moment"],
            state["second_moment"],
            state["updates"],
            index_U,
            grad_GD,
            at_U,
            self._correction1,
            self._correction2,
            np.array([1 - self.beta1, self.beta2, 1 - self.beta2, self.eps, lr], np.float32),
        )

    def update_with_torch(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """See RowOptimizer."""
        updates_U = state["updates"].index_select(0, index_U) + 1
        first_UD = state["first_moment"].index_select(0, index_U).lerp_(grad_UD, 1 - self.beta1)
        second_UD = state["second_moment"].index_select(0, index_U).mul_(self.beta2)
        second_UD.addcmul_(grad_UD, grad_UD, value=1 - self.beta2)
        state["updates"].index_copy_(0, index_U, updates_U)
        state["first_moment"].index_copy_(0, index_U, first_UD)
        state["second_moment"].index_copy_(0, index_U, second_UD)
        count_U = updates_U.clamp_max(_CORRECTIONS - 1)
        inverse1_C, inverse2_C = self._inverse_corrections(values_RD.device)
        first_UD *= inverse1_C.index_select(0, count_U).unsqueeze(1)
        second_UD *= inverse2_C.index_select(0, count_U).unsqueeze(1)
        step_UD = first_UD.div_(second_UD.sqrt_().add_(self.eps))
        values_RD.index_add_(0, index_U, step_UD, alpha=-lr)

    def _inverse_corrections(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """1 / (1 − β ** t) by t, float32, on a device, from the same tables as in the compiled loop."""
        if device not in self._inverses:
            one = np.float32(1.0)
            with np.errstate(divide="ignore"):  # t = 0, which is never used
                tables = (one / self._correction1, one / self._correction2)
            first, second = (torch.from_numpy(table).to(device) for table in tables)
            self._inverses[device] = (first, second)
        return self._inverses[device]


class RowAdagrad(RowOptimizer):
    """Row-wise Adagrad: one accumulator per row, the mean square of its gradients (4 bytes of state)."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def state_shapes(self, dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The sum over steps of the row's mean squared gradient."""
        return {"accumulator": ((), torch.float32)}

    def _update_on_cpu(
        self,
        values_RD: Float32Array,
        state: dict[str, Any],
        index_U: Int64Array,
        grad_GD: Float32Array,
        at_U: Int64Array,
        lr: float,
    ) -> None:
        """a ← a + mean(g²);  w ← w − lr g / (√a + ε)."""
        _adagrad(
            values_RD,
            state["accumulator"],
            index_U,
            grad_GD,
            at_U,
            np.float32(self.eps),
            np.float32(lr),
        )

    def update_with_torch(
        self, values_RD: Tensor, state: dict[str, Tensor], index_U: Tensor, grad_UD: Tensor, lr: float
    ) -> None:
        """See RowOptimizer."""
        total_U = state["accumulator"].index_select(0, index_U) + grad_UD.square().mean(dim=1)
        state["accumulator"].index_copy_(0, index_U, total_U)
        values_RD.index_add_(0, index_U, grad_UD / (total_U.sqrt() + self.eps).unsqueeze(1), alpha=-lr)


def row_optimizer(name: Literal["adam", "adagrad"]) -> RowOptimizer:
    """The optimizer of `train.row_optimizer`."""
    return RowAdam() if name == "adam" else RowAdagrad()


# error_model="numpy": a division with a check for zero cannot be vectorised.
@njit(cache=True, nogil=True, error_model="numpy")
def _adam(
    values_RD: Float32Array,
    first_RD: Float32Array,
    second_RD: Float32Array,
    updates_R: npt.NDArray[np.int32],
    index_U: Int64Array,
    grad_GD: Float32Array,
    at_U: Int64Array,
    correction1: Float32Array,
    correction2: Float32Array,
    constants: Float32Array,
) -> None:
    rate1, beta2, rate2, eps, lr = constants
    one = np.float32(1.0)
    for u in range(index_U.shape[0]):
        row = index_U[u]
        updates_R[row] += 1
        count = min(updates_R[row], correction1.shape[0] - 1)
        inverse1, inverse2 = one / correction1[count], one / correction2[count]
        value_D, first_D, second_D = values_RD[row], first_RD[row], second_RD[row]
        grad_D = grad_GD[at_U[u]]
        for d in range(grad_D.shape[0]):
            gradient = grad_D[d]
            first = first_D[d] + rate1 * (gradient - first_D[d])
            second = beta2 * second_D[d] + rate2 * gradient * gradient
            first_D[d] = first
            second_D[d] = second
            value_D[d] -= lr * (first * inverse1) / (np.sqrt(second * inverse2) + eps)


# The loop can only be vectorised if squares may be summed in any order.
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _adagrad(
    values_RD: Float32Array,
    accumulator_R: Float32Array,
    index_U: Int64Array,
    grad_GD: Float32Array,
    at_U: Int64Array,
    eps: np.float32,
    lr: np.float32,
) -> None:
    for u in range(index_U.shape[0]):
        row = index_U[u]
        value_D, grad_D = values_RD[row], grad_GD[at_U[u]]
        square = np.float32(0.0)
        for d in range(grad_D.shape[0]):
            square += grad_D[d] * grad_D[d]
        total = accumulator_R[row] + square / np.float32(grad_D.shape[0])
        accumulator_R[row] = total
        scale = lr / (np.sqrt(total) + eps)
        for d in range(grad_D.shape[0]):
            value_D[d] -= scale * grad_D[d]
