"""Dropout whose mask is never stored: one number is drawn, and both passes derive the mask from it.

On a CPU, PyTorch draws a double per element, which took a quarter of a training step. Here one compiled loop hashes a
counter, takes eight masks from each hash, and multiplies; the backward pass runs the same loop on the gradient. Ratios
are multiples of 1/256; the scale uses the rounded ratio, so the mean stays exact.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from model.arrays import Float32Array
from model.key_index import GOLDEN, mix64

_LEVELS = 256
_BLOCK = 256


def dropout(x: Tensor, ratio: float, training: bool) -> Tensor:
    """Inverted dropout: each element is zero with probability `ratio` (rounded to 1/256); the others are scaled up.

    Draws from torch's default generator; on CUDA it is torch's own dropout, which is fast.

    Args:
        x: floats of any shape; on a CPU, others than float32 are rounded to it.
        ratio: in [0, 1).
        training: if false, x is returned as it is.
    """
    if not training or ratio == 0.0 or x.numel() == 0:
        return x
    if x.is_cuda:
        # What F.dropout calls on a GPU: one kernel for the numbers and the product.
        out: Tensor = torch.native_dropout(x, ratio, True)[0]
        return out
    dropped = min(max(round(ratio * _LEVELS), 1), _LEVELS - 1)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    whole = x.to(torch.float32)
    return cast(Tensor, _Dropped.apply(whole, dropped, seed)).to(x.dtype)  # type: ignore[no-untyped-call]


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int, seed: int) -> Tensor:
        ctx.dropped, ctx.seed = dropped, seed
        return _thinned(x, dropped, seed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _thinned(gradients[0], ctx.dropped, ctx.seed), None, None


def _thinned(x: Tensor, dropped: int, seed: int) -> Tensor:
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    _thin(
        x.view(-1).numpy(),
        out.view(-1).numpy(),
        np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF),
        np.uint8(dropped),
        np.float32(_LEVELS / (_LEVELS - dropped)),
    )
    return out


@njit(cache=True, nogil=True)
def _thin(x: Float32Array, out: Float32Array, seed: np.uint64, dropped: np.uint8, scale: np.float32) -> None:
    """out = x · scale where the element's byte of the stream mix64(seed + counter · GOLDEN) is ≥ dropped, else 0."""
    # Bytes through an array: both loops over a block are vectorized, and are then as fast as a copy.
    words = np.empty(_BLOCK // 8, np.uint64)
    bytes_ = words.view(np.uint8)
    zero = np.float32(0.0)
    blocks = x.shape[0] // _BLOCK
    for block in range(blocks + 1):
        start, first = seed + np.uint64(block * (_BLOCK // 8)) * GOLDEN, block * _BLOCK
        for k in range(_BLOCK // 8):
            words[k] = mix64(start + np.uint64(k) * GOLDEN)
        if block < blocks:
            for k in range(_BLOCK):
                out[first + k] = x[first + k] * scale if bytes_[k] >= dropped else zero
    for k in range(blocks * _BLOCK, x.shape[0]):
        out[k] = x[k] * scale if bytes_[k - blocks * _BLOCK] >= dropped else zero


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """Floats of any shape to the same shape."""
        return dropout(x, self.ratio, self.training)
