"""Vectors of unit norm, with a gradient of four operations; torch's differentiates every step of the norm."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_SMALLEST = 1e-12


def unit(x_ND: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) of each row, float32 (N, D); a zero row stays zero. As `torch.nn.functional.normalize`."""
    if not (x_ND.requires_grad and torch.is_grad_enabled()):
        return x_ND / _norms(x_ND)
    return cast(Tensor, _Unit.apply(x_ND))  # type: ignore[no-untyped-call]


def _norms(x_ND: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).clamp_min_(_SMALLEST)
    return norms


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        norm_N1 = _norms(x_ND)
        unit_ND = x_ND / norm_N1
        ctx.save_for_backward(unit_ND, norm_N1)
        return unit_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """(g − y (y · g)) / ‖x‖: the component along the vector is removed."""
        unit_ND, norm_N1 = ctx.saved_tensors
        along_N1 = (gradients[0] * unit_ND).sum(-1, keepdim=True)
        return torch.addcmul(gradients[0], unit_ND, along_N1, value=-1).div_(norm_N1)
